"""How write gates learn (`gate_gradient`, `gate_noise`) and in which blocks there is a memory (`memory_layers`)."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from rmat.model import LanguageModel, ModelConfig
from rmat.reference.model import reference_logits
from tests.makers.models import assert_close, gradients, make_model, make_tokens, open_gates, schedules_of

LEARNING: dict[str, dict[str, Any]] = {
    "select": {},
    "no null slot": {"null_slot": False},
    "pool": {"writer": "pool", "gate": "push", "fusion": "token"},
    "all": {"writer": "all", "gate": "both", "fusion": "joint", "memory_position": "age"},
    "mean from output": {"writer": "mean", "gate": "push", "write_from": "output"},
}


def config_of(**fields: Any) -> ModelConfig:
    small = {"vocab_size": 29, "d_model": 16, "n_layers": 3, "n_heads": 2, "segment_len": 4, "n_slots": 8}
    return ModelConfig.preset("tiny", **{**small, **fields})


@pytest.mark.parametrize(
    ("case", "gradient"), [*((case, "value") for case in LEARNING), ("select", "logit"), ("pool", "logit")]
)
def test_gradients_equal_those_of_the_loops(case: str, gradient: str) -> None:
    """Of every parameter, the writers' scores among them, half of the gates shut."""
    model = make_model({"gate_gradient": gradient, **LEARNING[case]}, seed=5)
    tokens = make_tokens(1, 2 * model.config.segment_len + 4, seed=9)
    weights = torch.randn(tokens.shape[1], model.config.vocab_size, dtype=torch.float64)
    expected = dict(
        gradients(
            model, (reference_logits(model.config, dict(model.named_parameters()), tokens[0]) * weights).sum()
        )
    )
    scores = [name for name in expected if "writer.score" in name]
    assert scores and any(float(expected[name].abs().max()) > 1e-6 for name in scores), "nothing to compare"
    for schedule in schedules_of(model.config):
        logits, _ = model(tokens, schedule=schedule)
        for name, found in gradients(model, (logits[0] * weights).sum()):
            assert_close(found, expected[name], f"gradient of {name} in the {schedule} schedule")


@pytest.mark.parametrize("case", LEARNING)
def test_only_the_scores_gradient_depends_on_how_gates_learn(case: str) -> None:
    """The numbers that a model computes are the same; so are the gradients of all that is not before a score."""
    fields = {**LEARNING[case], "n_layers": 1}
    one, other = (make_model({"gate_gradient": kind, **fields}, seed=5) for kind in ("value", "logit"))
    tokens = make_tokens(2, 20)
    left, right = one(tokens)[0], other(tokens)[0]
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    changed = {
        name
        for (name, a), (_, b) in zip(
            gradients(one, left.square().sum()), gradients(other, right.square().sum()), strict=True
        )
        if not torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    }
    assert any("writer.score" in name for name in changed)
    after = {"norm.weight"}
    if one.config.write_from == "input":
        after |= {"blocks.0.output.weight", "blocks.0.memory.query.weight"}
    assert after <= dict(one.named_parameters()).keys() - changed


def test_a_gate_that_learns_through_values_is_not_told_to_open_by_a_value_of_nothing() -> None:
    """A slot whose value is zero takes attention from the others without saying anything: its logit has a gradient, its
    value has none."""
    for kind, learns in (("logit", True), ("value", False)):
        model = make_model({"gate_gradient": kind, "n_layers": 1}, seed=2)
        open_gates(model)
        with torch.no_grad():
            model.get_parameter("blocks.0.memory.value.weight").zero_()
            model.get_parameter("blocks.0.memory.writer.score.bias").fill_(0.5)
        found = dict(gradients(model, model(make_tokens(2, 20))[0].square().sum()))
        assert (float(found["blocks.0.memory.writer.score.bias"].abs().max()) > 1e-9) == learns, kind


def noisy(noise: float) -> LanguageModel:
    """Parameters do not depend on the noise."""
    return make_model({"gate_noise": noise}, seed=4)


def read(model: LanguageModel, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        logits, _ = model(make_tokens(2, 30))
    return logits


def test_noise_on_the_scores_acts_in_training_only() -> None:
    quiet, loud = noisy(0.0), noisy(1.0)
    assert torch.equal(read(loud, 0), read(loud, 1)), "evaluation draws no numbers"
    assert torch.equal(read(loud), read(quiet))
    quiet.train(), loud.train()
    assert torch.equal(read(quiet, 0), read(quiet, 1))
    assert not torch.equal(read(loud, 0), read(loud, 1))
    assert torch.equal(read(loud, 1), read(loud, 1)), "seeded"
    assert torch.equal(read(quiet), read(quiet.eval()))


def test_noise_lets_shut_gates_open_now_and_then() -> None:
    """Scores near the threshold: with noise some writes get in that were refused, and some are refused that got in."""

    def written(noise: float) -> Tensor:
        model = noisy(noise).train()
        with torch.no_grad():
            model.get_parameter("blocks.0.memory.writer.score.weight").zero_()
            model.get_parameter("blocks.0.memory.writer.score.bias").fill_(-0.5)
        torch.manual_seed(0)
        _, state = model(make_tokens(8, 60))
        return state.openness()[0]

    assert not written(0.0).any()
    assert float(written(1.0).min()) > 0 and float(written(1.0).max()) < 0.6


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf"), "much", True])
def test_impossible_noise_is_refused(noise: Any) -> None:
    with pytest.raises(
        ValueError, match=r"ModelConfig.gate_noise=.* is not possible: give a number of at least 0"
    ):
        config_of(gate_noise=noise)


def test_an_unknown_way_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ModelConfig.gate_gradient='both' is not possible: choose one of"):
        config_of(gate_gradient="both")


@pytest.mark.parametrize(
    ("layers", "streams"), [((0,), [True, False, False]), ((2, 0), [True, False, True]), (None, [True] * 3)]
)
def test_the_memory_stands_in_the_blocks_that_are_named(layers: Any, streams: list[bool]) -> None:
    config = config_of(memory_layers=layers)
    model = LanguageModel(config)
    assert [config.of_layer(index).has_memory for index in range(3)] == streams
    names = [name for name, _ in model.named_parameters()]
    assert [any(n.startswith(f"blocks.{i}.memory.") for n in names) for i in range(3)] == streams
    held = model.initial_state(2).tensors()
    assert [f"layers.{i}.slot_key" in held for i in range(3)] == streams
    assert json.loads(json.dumps(config.to_dict()))["memory_layers"] == (layers and list(layers))
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_all_blocks_by_name_are_all_blocks() -> None:
    torch.manual_seed(0)
    named = LanguageModel(config_of(memory_layers=[0, 1, 2]))
    plain = LanguageModel(config_of())
    plain.load_state_dict(named.state_dict())
    tokens = make_tokens(2, 20)
    with torch.no_grad():
        assert torch.equal(named(tokens)[0], plain(tokens)[0])


def test_openness_has_a_row_for_every_bank() -> None:
    _, state = LanguageModel(config_of(memory_layers=(1,), gate="none"))(make_tokens(2, 20))
    assert state.openness().shape == (1, 2) and state.openness().min() > 0


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"memory_layers": ()}, r"name different blocks of 0..2, or none \(all\)"),
        ({"memory_layers": (3,)}, r"name different blocks of 0..2"),
        ({"memory_layers": (-1,)}, r"name different blocks of 0..2"),
        ({"memory_layers": (0, 0)}, r"name different blocks of 0..2"),
        ({"memory_layers": (True,)}, r"name different blocks of 0..2"),
        ({"memory_layers": 1}, r"name different blocks of 0..2"),
        ({"memory_layers": "all"}, r"name different blocks of 0..2"),
        (
            {"memory_layers": (0,), "streams": ("memory",)},
            r"blocks without memory need a local stream: add 'full' or 'chunked'",
        ),
    ],
    ids=str,
)
def test_impossible_blocks_are_refused(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=r"ModelConfig.memory_layers=.* is not possible: " + remedy):
        config_of(**fields)
