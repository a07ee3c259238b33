"""Contract 12: every config field changes something; unknown keys are refused with the nearest valid name."""

import dataclasses
from typing import Any

import pytest
import torch

from rmat.model import LanguageModel, ModelConfig
from tests.makers.models import ADMITTED, TINY, make_config, make_model, make_tokens

OTHER: dict[str, dict[str, Any]] = {
    "vocab_size": {"vocab_size": 31},
    "d_model": {"d_model": 32},
    "n_layers": {"n_layers": 3},
    "n_heads": {"n_heads": 2},
    "n_kv_heads": {"n_kv_heads": 4},
    "head_width": {"head_width": 10},
    "segment_len": {"segment_len": 9},
    "chunk_len": {"chunk_len": 2},
    "chunk_lookback": {"chunk_lookback": 0},
    "streams": {"streams": ("full", "memory")},
    "projections": {"projections": "separate"},
    "writer": {"writer": "pool"},
    "writes_per_segment": {"writes_per_segment": 2},
    "n_slots": {"n_slots": 4},
    "gate": {"gate": "none"},
    "gate_gradient": {"gate_gradient": "logit"},
    "gate_bias": {"gate_bias": -0.5},
    "gate_noise": {"gate_noise": 0.5},
    "write_cost": {"write_cost": 0.5},
    "write_budget": {"write_budget": 0.9},
    "memory_layers": {"memory_layers": (0,)},
    "write_from": {"write_from": "output"},
    "memory_position": {"memory_position": "rank"},
    "memory_projections": {"memory_projections": "local"},
    "write_when": {"write_when": "unseen"},
    "slots_per": {"slots_per": "key_head"},
    "n_sinks": {"n_sinks": 2},
    "memory_read": {"memory_read": "stick_breaking"},
    "eviction": {"eviction": "weakest"},
    "fade": {"fade": 64.0},
    "newest_share": {"newest_share": 0.8},
    "null_slot": {"null_slot": False},
    "fusion": {"fusion": "token"},
    "rope_theta": {"rope_theta": 50.0},
    "rope_scaling": {"rope_scaling": (8.0, 1.0, 4.0, 60.0)},
    "attention_bias": {"attention_bias": "all"},
    "qk_norm": {"qk_norm": True},
    "norm": {"norm": "layernorm"},
    "norm_eps": {"norm_eps": 0.01},
    "mlp": {"mlp": "gelu"},
    "d_ff": {"d_ff": 24},
    "conv_width": {"conv_width": 4},
    "tie_embeddings": {"tie_embeddings": False},
    "dropout": {"dropout": 0.5},
}

WEAKEST = {"eviction": "weakest"}
LOCAL_KEYS: dict[str, Any] = {**ADMITTED, "chunk_len": TINY["segment_len"], "write_when": "closed"}
BASE: dict[str, dict[str, Any]] = {
    "write_budget": {"write_cost": 0.5},
    "fade": WEAKEST,
    "newest_share": WEAKEST,
    "memory_projections": {"fusion": "joint"},
    **dict.fromkeys(("write_when", "slots_per", "n_sinks"), LOCAL_KEYS),
}
"""What a field needs beside it."""


def pair(field: str) -> tuple[ModelConfig, ModelConfig]:
    """A config, and the same with another value of the field."""
    base = BASE.get(field, {})
    return make_config("recommended", **base), make_config("recommended", **{**base, **OTHER[field]})


def observe(config: ModelConfig, source: dict[str, torch.Tensor]) -> tuple[Any, Any, torch.Tensor]:
    """What a config makes: shapes of parameters, shapes of the state, logits in training mode with, behind them, the
    gradient of what the scores of writes are made of, and the biases of those scores as they were drawn.

    Parameters that `source` has in the same shape are taken from there, so that logits differ only by the config.
    """
    torch.manual_seed(0)
    model = LanguageModel(config).double()
    own = model.state_dict()
    first = [own[name].flatten().clone() for name in own if "writer.score.bias" in name]
    same = {k: v for k, v in source.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict({**own, **same})
    torch.manual_seed(1)
    logits, state = model.train()(make_tokens(2, 40))
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    logits.square().sum().backward()
    scores = [p.grad for name, p in model.named_parameters() if "writer.score" in name and p.grad is not None]
    observed = torch.cat([logits.detach().flatten(), *(gradient.flatten() for gradient in scores), *first])
    return parameters, {name: tuple(t.shape) for name, t in state.tensors().items()}, observed


def test_every_field_is_varied_here() -> None:
    assert set(OTHER) == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("field", OTHER)
def test_every_field_changes_parameters_state_or_output(field: str) -> None:
    base, changed = pair(field)
    assert getattr(base, field) != getattr(changed, field)
    source = make_model(base).state_dict()
    shapes, state_shapes, logits = observe(base, source)
    new_shapes, new_state_shapes, new_logits = observe(changed, source)
    differs = shapes != new_shapes or state_shapes != new_state_shapes
    if not differs:
        assert float((logits - new_logits).abs().max()) > 1e-9, f"{field} changes nothing"


TRAINING_ONLY = ("dropout", "gate_noise", "gate_bias", "gate_gradient", "write_cost", "write_budget")


@pytest.mark.parametrize("field", [name for name in OTHER if name not in TRAINING_ONLY])
def test_every_field_of_the_function_changes_the_fingerprint(field: str) -> None:
    """A state must not be read by a model that would understand it differently."""
    base, changed = pair(field)
    assert base.fingerprint() != changed.fingerprint()


@pytest.mark.parametrize("field", TRAINING_ONLY)
def test_what_acts_in_training_only_leaves_the_fingerprint(field: str) -> None:
    base, changed = pair(field)
    assert base.fingerprint() == changed.fingerprint()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("segmentlen", "segment_len"),
        ("n_head", "n_heads"),
        ("n_slot", "n_slots"),
        ("writes_per_segement", "writes_per_segment"),
        ("ropetheta", "rope_theta"),
        ("tie_embedding", "tie_embeddings"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(wrong: str, right: str) -> None:
    with pytest.raises(ValueError, match=rf"{wrong}.*{right}"):
        ModelConfig.preset("tiny", **{wrong: 1})
    with pytest.raises(ValueError, match=rf"{wrong}.*{right}"):
        ModelConfig.from_dict({**make_config("recommended").to_dict(), wrong: 1})


def test_the_table_of_alternatives_is_legal_for_the_tiny_config() -> None:
    assert all(OTHER[name].get(name) != TINY.get(name) for name in TINY)
