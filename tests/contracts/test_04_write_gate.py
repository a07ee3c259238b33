"""Contract 4: what segment s writes is unseen inside s; gate 0 keeps, gate 1 replaces; a refused write leaves no trace."""

import pytest
import torch

from tests.makers.models import (
    CASES,
    WITH_MEMORY,
    assert_close,
    assert_same_state,
    bank_positions,
    banks,
    first_reader,
    gate_bias,
    make_config,
    make_model,
    make_tokens,
    open_gates,
    recurrent_bias,
    schedules_of,
)

REFUSING = [name for name in WITH_MEMORY if make_config(name).gate in ("push", "both")]
RECURRENT = [name for name in WITH_MEMORY if make_config(name).gate in ("gru", "both")]


@pytest.mark.parametrize("name", WITH_MEMORY)
@torch.no_grad()
def test_a_segment_does_not_read_what_it_writes(name: str) -> None:
    """With and without memory the first segment gives the same logits; the first token after it does not. (Where the
    bank takes what local attention loses sight of, the first that finds something may be the third.)"""
    model = make_model(name)
    open_gates(model)
    length = model.config.segment_len * first_reader(model.config)
    tokens = make_tokens(2, length + 1)
    for schedule in schedules_of(model.config):
        on, _ = model(tokens, schedule=schedule)
        zeroed, _ = model(tokens, schedule=schedule, memory="zeroed")
        assert_close(
            on[:, :length], zeroed[:, :length], f"logits of the first segment, {schedule}", tolerance=1e-12
        )
        assert float((on - zeroed)[:, length].detach().abs().max()) > 1e-6, "the second segment reads nothing"


@pytest.mark.parametrize("name", WITH_MEMORY)
@torch.no_grad()
def test_the_bank_changes_only_where_a_segment_closes(name: str) -> None:
    model = make_model(name)
    open_gates(model)
    length, earlier = model.config.segment_len, first_reader(model.config) - 1
    _, state = model(make_tokens(1, length * (1 + earlier) - 1))
    assert bank_positions(state, banks(model.config)[0], length) == [[]]
    _, state = model(make_tokens(1, 1, seed=2), state)
    written = bank_positions(state, banks(model.config)[0], length)
    assert written != [[]]
    for _ in range(length - 1):
        _, state = model(make_tokens(1, 1, seed=3), state)
        assert bank_positions(state, banks(model.config)[0], length) == written


@pytest.mark.parametrize("name", [name for name in REFUSING if not make_config(name).n_sinks])
@torch.no_grad()
def test_a_refused_write_leaves_no_trace(name: str) -> None:
    """Closed gates: the bank stays as it was and the logits are those of an empty bank, whatever was read."""
    model = make_model(name)
    with torch.no_grad():
        for layer in banks(model.config):
            gate_bias(model, layer).fill_(-60.0)
    tokens = make_tokens(2, 4 * model.config.segment_len + 1)
    for schedule in schedules_of(model.config):
        logits, state = model(tokens, schedule=schedule)
        zeroed, _ = model(tokens, schedule=schedule, memory="zeroed")
        assert_close(logits, zeroed, f"logits, {schedule}", tolerance=1e-12)
        fresh = model.initial_state(2).tensors()
        for key, tensor in state.tensors().items():
            if ("slot" in key and "age" not in key) or "recurrent" in key or "pushed" in key:
                assert torch.equal(tensor, fresh[key]), key


@pytest.mark.parametrize("name", REFUSING)
@torch.no_grad()
def test_refusals_do_not_move_what_is_held(name: str) -> None:
    """Open gates fill the bank, then closed gates read on: the same slots stay, in the same order. (Tokens that wait to
    be offered were scored when they were read: they enter first.)"""
    model = make_model(name)
    open_gates(model)
    lag = model.config.write_lag
    _, state = model(make_tokens(1, 3 * model.config.segment_len))
    with torch.no_grad():
        for layer in banks(model.config):
            gate_bias(model, layer).fill_(-60.0)
    state = model(make_tokens(1, lag, seed=4), state)[1] if lag else state
    held = ("slot_key", "slot_value", "slot_log_gate", "pushed", "recurrent")
    before = {key: tensor for key, tensor in state.tensors().items() if key.endswith(held)}
    positions = [bank_positions(state, layer, model.config.segment_len) for layer in banks(model.config)]
    _, state = model(make_tokens(1, 3 * model.config.segment_len, seed=2), state)
    after = state.tensors()
    assert before
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor), key
    for layer, expected in zip(banks(model.config), positions, strict=True):
        assert bank_positions(state, layer, model.config.segment_len) == expected


@pytest.mark.parametrize("name", RECURRENT)
@torch.no_grad()
def test_recurrent_gate_zero_keeps_and_one_replaces(name: str) -> None:
    case = {**CASES[name], "n_layers": 1}
    if name in ("paper",):
        case["variant"] = "paper"
    ungated = {"gru": "none", "both": "push"}[make_config(case).gate]
    model, plain = make_model(case), make_model(case, gate=ungated)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    for each in (model, plain):
        open_gates(each)
    tokens = make_tokens(2, 3 * model.config.segment_len + 1)
    with torch.no_grad():
        recurrent_bias(model, 0).fill_(60.0)
        logits, state = model(tokens)
        expected, plain_state = plain(tokens)
        assert_close(logits, expected, "logits with a gate of 1 against no gate")
        kept = plain_state.tensors()
        for key, tensor in state.tensors().items():
            if "slot" in key:
                assert_close(tensor, kept[key], key)
        recurrent_bias(model, 0).fill_(-60.0)
        _, state = model(tokens)
        for key, tensor in state.tensors().items():
            if "recurrent" in key or "slot_key" in key or "slot_value" in key:
                assert_close(tensor, torch.zeros_like(tensor), f"{key} with a gate of 0", tolerance=1e-20)


@pytest.mark.parametrize("name", REFUSING)
def test_the_gate_learns_through_its_log(name: str) -> None:
    """The score of a written token gets a gradient; nothing that was refused does."""
    model = make_model(name)
    open_gates(model)
    logits, _ = model(make_tokens(1, 3 * model.config.segment_len))
    for layer in banks(model.config):
        (gradient,) = torch.autograd.grad(logits.square().sum(), [gate_bias(model, layer)], retain_graph=True)
        assert float(gradient.abs().max()) > 0, f"layer {layer}"


@torch.no_grad()
def test_frozen_memory_keeps_the_start_of_the_document() -> None:
    model = make_model({"writer": "all", "gate": "none", "n_slots": 9})
    tokens = make_tokens(1, 30)
    _, state = model(tokens, memory="frozen")
    _, at_first = model(tokens[:, :12])
    assert bank_positions(state, 0)[0][:6] == list(range(6))
    assert max(bank_positions(state, 0)[0]) < 12
    assert bank_positions(at_first, 0) == [list(range(3, 12))]


@torch.no_grad()
def test_shuffled_memory_reads_the_neighbours_bank() -> None:
    model = make_model("recommended")
    tokens = make_tokens(3, 24)
    on, _ = model(tokens)
    shuffled, _ = model(tokens, memory="shuffled")
    length = model.config.segment_len
    assert_close(shuffled[:, :length], on[:, :length], "the first segment")
    assert float((shuffled - on)[:, length:].detach().abs().max()) > 1e-6
    same, same_state = model(tokens[:1].expand(3, -1), memory="shuffled")
    alone, alone_state = model(tokens[:1].expand(3, -1))
    assert_close(same, alone, "equal rows have equal banks")
    assert_same_state(same_state, alone_state)
