"""A memory of the local stream's keys: what its banks hold, states in files, other numbers of slots, training."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rmat.model import LanguageModel, StreamState
from tests.makers.models import (
    ADMITTED,
    gate_bias,
    make_config,
    make_model,
    make_tokens,
    split_points,
    stream,
)

WIDTH = 32
SEGMENT = 6
FIELDS: dict[str, Any] = {**ADMITTED, "chunk_len": SEGMENT}
SCORES = (
    torch.tensor([[((7 * t) % 13 - 5) / 4, ((5 * t) % 11 - 4) / 4] for t in range(WIDTH)]).double()
    + 0.5 / 256
)


def numbering_model(**fields: Any) -> LanguageModel:
    """One layer of two key heads whose values are the numbers of tokens, and whose scores are a table by token."""
    sizes = {
        "n_layers": 1,
        "d_model": WIDTH,
        "vocab_size": WIDTH,
        "conv_width": 0,
        "n_heads": 2,
        "n_kv_heads": 2,
    }
    model = LanguageModel(make_config({**FIELDS, **sizes, **fields}, norm="rmsnorm")).double().eval()
    length = (1 / WIDTH + 1e-6) ** 0.5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embedding.weight.copy_(torch.eye(WIDTH))
        model.get_parameter("blocks.0.norm.weight").fill_(1.0)
        value = model.get_parameter("blocks.0.local.chunked.value.weight")
        value[:: WIDTH // 2] = torch.arange(WIDTH, dtype=torch.float64) * length
        if model.config.scores_writes:
            weight = model.get_parameter("blocks.0.memory.writer.score.weight")
            weight.copy_(SCORES.T[: weight.shape[0]] * length)
    return model


def held_numbers(state: StreamState, head: int) -> list[float]:
    """Numbers in a key head's filled slots, oldest first."""
    tensors = state.tensors()
    pushed = tensors["layers.0.pushed"][0]
    count = min(int(pushed if pushed.dim() == 0 else pushed[head]), tensors["layers.0.slot_value"].shape[1])
    values = tensors["layers.0.slot_value"][0, :, head, 0].tolist()
    return [round(value, 6) for value in values[len(values) - count :]]


def expected_numbers(model: LanguageModel, numbers: list[int], head: int) -> list[float]:
    """The same by hand."""
    config = model.config
    group = head if config.slots_per == "key_head" else 0
    lag = SEGMENT if config.chunk_lookback else 0
    bank: list[int] = []
    for end in range(SEGMENT, len(numbers) + 1, SEGMENT):
        tokens = [p for p in range(end - lag - SEGMENT, end - lag) if p >= config.n_sinks]
        if config.writer == "select":
            best = sorted(tokens, key=lambda p: (-float(SCORES[numbers[p], group]), p))
            tokens = sorted(best[: config.writes_per_segment])
        if config.gate == "push":
            tokens = [p for p in tokens if SCORES[numbers[p], group] > 0]
        bank += tokens
        if config.eviction == "weakest":
            bank = sorted(
                sorted(bank, key=lambda p: (float(SCORES[numbers[p], group]), p))[-config.n_slots :]
            )
    return [float(numbers[p]) for p in bank[-config.n_slots :]]


POINTS: dict[str, dict[str, Any]] = {
    "heads": {"slots_per": "key_head", "n_slots": 5},
    "heads_weakest": {"slots_per": "key_head", "n_slots": 5, "eviction": "weakest"},
    "heads_all_with_sinks": {"slots_per": "key_head", "writer": "all", "n_slots": 6, "n_sinks": 8},
    "layer": {"n_slots": 7, "chunk_lookback": 0, "n_sinks": 2},
    "layer_never_refusing": {"n_slots": 7, "writer": "all", "gate": "none", "n_sinks": 3},
}


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("seed", range(4))
def test_what_each_key_head_holds_in_which_order(name: str, seed: int) -> None:
    rng = random.Random(seed)
    model = numbering_model(**POINTS[name])
    numbers = [rng.randrange(WIDTH) for _ in range(rng.randint(1, 50))]
    tokens = torch.tensor([numbers])
    n_sinks, lag = model.config.n_sinks, model.config.write_lag
    for state in (model(tokens)[1], stream(model, tokens, split_points(len(numbers), rng, 6))[1]):
        for head in (0, 1):
            assert held_numbers(state, head) == expected_numbers(model, numbers, head), head
            if n_sinks:
                unseen = max(0, len(numbers) // SEGMENT * SEGMENT - lag)
                sinks = state.tensors()["layers.0.sink_value"][0, :, head, 0].tolist()
                known = [float(n) for n in numbers[: min(n_sinks, unseen)]]
                assert [round(x, 6) for x in sinks] == known + [0.0] * (n_sinks - len(known))


@pytest.mark.parametrize("case", ["admitted", "admitted_of_heads", "admitted_weakest_with_sinks"])
def test_a_state_goes_through_a_file(case: str, tmp_path: Path) -> None:
    model = make_model(case, dtype=torch.float32)
    _, state = model(make_tokens(2, 27))
    state.save(tmp_path / "s.safetensors")
    again = StreamState.load(tmp_path / "s.safetensors", model.config)
    assert all(torch.equal(x, again.tensors()[name]) for name, x in state.tensors().items())
    assert torch.equal(model(make_tokens(2, 9, seed=1), again)[0], model(make_tokens(2, 9, seed=1), state)[0])


@pytest.mark.parametrize("slots_per", ["layer", "key_head"])
def test_rotary_places_take_any_number_of_slots(slots_per: str) -> None:
    """A bank that never fills gives the same logits whatever its size; one that does forgets."""
    model = make_model({**FIELDS, "slots_per": slots_per, "writer": "all", "gate": "none", "n_sinks": 2})
    tokens = make_tokens(2, 4 * SEGMENT)
    many, more, few = (model.with_slots(n)(tokens)[0] for n in (40, 200, 6))
    torch.testing.assert_close(many, more, rtol=1e-12, atol=1e-12)
    assert float((many - few).detach().abs().max()) > 1e-6
    scored = make_model({**FIELDS, "slots_per": slots_per})
    assert scored.with_slots(eviction="weakest").config.eviction == "weakest"


@pytest.mark.parametrize("gate_gradient", ["logit", "value"])
def test_every_key_heads_score_learns(gate_gradient: str) -> None:
    """Its own slots teach it, and only where its own logits read them; noise and a price act in training."""
    model = make_model({**FIELDS, "slots_per": "key_head", "gate_gradient": gate_gradient})
    with torch.no_grad():
        for layer in range(2):
            gate_bias(model, layer).fill_(1.0)
    model(make_tokens(2, 40))[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        if "writer.score" in name:
            assert bool((parameter.grad.abs() > 0).all(0 if parameter.ndim == 1 else 1).all()), name


def test_a_price_is_paid_once_a_write() -> None:
    """Whole and in pieces: the gradient of the bias is the price of g for everything that entered."""
    found = []
    tokens = make_tokens(1, 5 * SEGMENT)
    for ends in ([30], [4, 13, 14, 30]):
        model = numbering_model(slots_per="key_head", write_cost=0.5, n_slots=60).train()
        logits, state = stream(model, tokens, ends)
        gates = state.tensors()["layers.0.slot_log_gate"].exp()
        loss = 0 * (logits.sum() + state.tensors()["layers.0.slot_value"].sum())
        (gradient,) = torch.autograd.grad(loss, [gate_bias(model, 0)])
        numbers = tokens[0].tolist()
        expected = torch.zeros(2, dtype=torch.float64)
        for head in (0, 1):
            for number in expected_numbers(model, numbers, head):
                g = SCORES[int(number), head].sigmoid()
                expected[head] += 0.5 * g * (1 - g)
        torch.testing.assert_close(gradient, expected)
        assert gates.numel()
        found.append(gradient)
    torch.testing.assert_close(*found)
