"""Contract 2: parallel, sequential and streaming give the same logits, final state and gradients, at any split."""

import random

import pytest
import torch

from rmat.model import ModelConfig
from tests.makers.configurations import quick, sampled_cases
from tests.makers.models import (
    CASES,
    assert_close,
    assert_same_state,
    gradients,
    make_config,
    make_model,
    make_tokens,
    schedules_of,
    split_points,
    stream,
)

SAMPLED = sampled_cases(12, seed=2)
QUICK = 3
SEEDS = quick(range(12), 2)


def random_layout(rng: random.Random, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Resets anywhere (documents of one token among them) and padding at the left, at the right and inside."""
    resets = torch.zeros(batch_size, length, dtype=torch.bool)
    valid = torch.ones(batch_size, length, dtype=torch.bool)
    for b in range(batch_size):
        for _ in range(rng.randint(0, 3)):
            resets[b, rng.randrange(length)] = True
        if rng.random() < 0.6:
            valid[b, rng.randint(length // 2, length) :] = False
        for _ in range(rng.randint(0, 2)):
            start = rng.randrange(length)
            valid[b, start : start + rng.randint(1, 4)] = False
    return {"resets": resets, "valid": valid}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [*CASES, *quick(SAMPLED, QUICK)])
@torch.no_grad()
def test_any_split_gives_the_same_logits_and_state(name: str, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    model = make_model(SAMPLED.get(name, name), seed=seed % 5)
    length = rng.randint(1, 4 * model.config.segment_len + 2)
    tokens = make_tokens(3, length, seed=seed)
    layout = random_layout(rng, 3, length) if rng.random() < 0.7 else {}
    _, earlier = (
        model(make_tokens(3, rng.randint(1, 15), seed=seed + 1)) if rng.random() < 0.5 else (None, None)
    )
    ends = split_points(length, rng, pieces=rng.randint(1, 6))
    expected, state = stream(model, tokens, list(range(1, length + 1)), earlier, **layout)
    for schedule in schedules_of(model.config):
        logits, final = model(tokens, earlier, schedule=schedule, **layout)
        assert_close(logits, expected, f"logits, {schedule} against token by token")
        assert_same_state(final, state, f"state, {schedule} against token by token")
    logits, final = stream(model, tokens, ends, earlier, **layout)
    assert_close(logits, expected, f"logits, split at {ends} against token by token")
    assert_same_state(final, state, f"state, split at {ends} against token by token")


@pytest.mark.parametrize("name", [*CASES, *quick(SAMPLED, QUICK)])
def test_any_split_gives_the_same_gradients(name: str) -> None:
    """The loss reads logits and final state; gradients go to all parameters and into the incoming state."""
    model = make_model(SAMPLED.get(name, name), seed=1)
    rng = random.Random(name)
    length = 3 * model.config.segment_len + 1
    tokens = make_tokens(2, length, seed=4)
    layout = random_layout(rng, 2, length)
    prefix = make_tokens(2, model.config.segment_len + 2, seed=5)
    weights = torch.randn(2, length, model.config.vocab_size, dtype=torch.float64)

    def run(way: str) -> dict[str, torch.Tensor]:
        _, incoming = model(prefix)
        if way == "pieces":
            logits, state = stream(
                model, tokens, split_points(length, random.Random(1), 5), incoming, **layout
            )
        else:
            logits, state = model(tokens, incoming, schedule=way, **layout)
        kept = [tensor.sum() for tensor in state.tensors().values() if tensor.requires_grad]
        return dict(gradients(model, (logits * weights).sum() + sum(kept, torch.zeros(()))))

    expected = run("pieces")
    assert any(bool(gradient.abs().max() > 0) for gradient in expected.values())
    for schedule in schedules_of(model.config):
        for parameter, gradient in run(schedule).items():
            assert_close(gradient, expected[parameter], f"gradient of {parameter}, {schedule}")


@pytest.mark.parametrize("name", ["recommended", "paper", "xl", "joint_both_gates"])
def test_float32_agrees_within_1e_4(name: str) -> None:
    model = make_model(name, dtype=torch.float32)
    tokens = make_tokens(3, 41)
    layout = random_layout(random.Random(3), 3, 41)
    with torch.no_grad():
        expected, state = stream(model, tokens, list(range(1, 42)), **layout)
        for schedule in schedules_of(model.config):
            logits, final = model(tokens, schedule=schedule, **layout)
            assert_close(logits, expected, f"logits, {schedule}")
            assert_same_state(final, state, f"state, {schedule}")


@pytest.mark.parametrize("memory", ["zeroed", "frozen", "shuffled"])
@pytest.mark.parametrize(
    "name", ["recommended", "joint_both_gates", "pool_gru_token", "paper", "xl", "all_both_output"]
)
def test_ablated_memories_agree_too(name: str, memory: str) -> None:
    """A measurement with an ablated memory must not depend on how the text was cut. Shuffled rows stand in step."""
    model = make_model(name)
    tokens = make_tokens(3, 29)
    layout = {} if memory == "shuffled" else random_layout(random.Random(5), 3, 29)
    with torch.no_grad():
        parts, state = [], None
        for t in range(29):
            at = {key: value[:, t : t + 1] for key, value in layout.items()}
            logits, state = model(tokens[:, t : t + 1], state, memory=memory, **at)
            parts.append(logits)
        assert state is not None
        for schedule in schedules_of(model.config):
            logits, final = model(tokens, memory=memory, schedule=schedule, **layout)
            assert_close(logits, torch.cat(parts, 1), f"logits, {memory}, {schedule}")
            assert_same_state(final, state, f"state, {memory}, {schedule}")


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_auto_picks_a_schedule_and_says_why(name: str) -> None:
    model = make_model(name)
    chosen, reason = model.resolve_schedule("auto")
    assert chosen in schedules_of(model.config)
    assert len(reason.split()) > 2
    tokens = make_tokens(1, 20)
    assert torch.equal(model(tokens)[0], model(tokens, schedule=chosen)[0])


def test_parallel_is_refused_where_the_bank_is_written_from_the_output() -> None:
    model = make_model("paper")
    with pytest.raises(ValueError, match=r"parallel.*output|output.*parallel"):
        model(make_tokens(1, 9), schedule="parallel")
    with pytest.raises(ValueError, match="schedule"):
        model(make_tokens(1, 9), schedule="diagonal")


def test_the_old_state_stays_valid() -> None:
    """A state is a value: reading on from it twice gives the same numbers twice, and it is not changed by reading."""
    model = make_model("joint_both_gates")
    _, state = model(make_tokens(2, 16))
    copy = {name: tensor.clone() for name, tensor in state.tensors().items()}
    first, _ = model(make_tokens(2, 11, seed=2), state)
    second, _ = model(make_tokens(2, 11, seed=2), state)
    assert torch.equal(first, second)
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, copy[name]), name


def test_makers_cover_every_value_of_every_axis() -> None:
    """The cases above are only worth something if no value of an axis is left out."""
    configs: list[ModelConfig] = [make_config(case) for case in (*CASES, *list(SAMPLED.values())[:QUICK])]
    for field, values in {
        "writer": {"mean", "pool", "select", "all"},
        "gate": {"none", "gru", "push", "both"},
        "write_from": {"input", "output"},
        "fusion": {"scalar", "head", "token", "joint"},
        "memory_position": {"none", "rank", "age", "rotary"},
        "memory_projections": {"own", "local"},
        "write_when": {"closed", "unseen"},
        "slots_per": {"layer", "key_head"},
        "memory_read": {"softmax", "stick_breaking"},
        "projections": {"separate", "shared"},
        "chunk_lookback": {0, 1},
        "null_slot": {True, False},
        "norm": {"layernorm", "rmsnorm"},
        "mlp": {"gelu", "swiglu"},
        "tie_embeddings": {True, False},
    }.items():
        assert {getattr(config, field) for config in configs} == values, field
