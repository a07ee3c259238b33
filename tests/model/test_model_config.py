"""`ModelConfig`: what is refused, in which words, and how presets follow their overrides."""

import dataclasses
from typing import Any

import pytest
import torch

from rmat.model import LanguageModel, ModelConfig

LOCAL = {"memory_projections": "local", "fusion": "joint"}
SIZES = {"tiny": 1e6, "small": 30e6, "base": 137e6, "large": 1e9}
VARIANTS = ("recommended", "paper", "local", "xl", "full")


def tiny(variant: str = "recommended", **overrides: Any) -> ModelConfig:
    small = {"vocab_size": 29, "d_model": 24, "n_layers": 2, "n_heads": 4, "segment_len": 6, "chunk_len": 3}
    return ModelConfig.preset("tiny", variant=variant, **{**small, "n_slots": 7, **overrides})


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 2.5}, "vocab_size"),
        ({"d_model": -8}, "d_model"),
        ({"d_model": 20, "n_heads": 4}, "n_heads"),
        ({"d_model": 26, "n_heads": 4}, "n_heads"),
        ({"n_layers": 0}, "n_layers"),
        ({"n_layers": True}, "n_layers"),
        ({"n_kv_heads": 3}, "n_kv_heads"),
        ({"segment_len": 0}, "segment_len"),
        ({"chunk_len": 4}, "chunk_len"),
        ({"chunk_len": 12}, "chunk_len"),
        ({"chunk_lookback": 2}, "chunk_lookback"),
        ({"chunk_lookback": -1}, "chunk_lookback"),
        ({"streams": ()}, "streams"),
        ({"streams": ("full", "full")}, "streams"),
        ({"streams": ("global",)}, "streams"),
        ({"projections": "both"}, "projections"),
        ({"writer": "best"}, "writer"),
        ({"writer": "mean", "writes_per_segment": 2}, "writes_per_segment"),
        ({"writer": "all", "writes_per_segment": 5}, "writes_per_segment"),
        ({"writes_per_segment": 7}, "writes_per_segment"),
        ({"writes_per_segment": 4, "n_slots": 3}, "writes_per_segment"),
        ({"n_slots": 0}, "n_slots"),
        ({"gate": "lstm"}, "gate"),
        ({"write_from": "middle"}, "write_from"),
        ({"memory_position": "rope"}, "memory_position"),
        ({"fusion": "sum"}, "fusion"),
        ({"fusion": "joint", "projections": "separate"}, "fusion"),
        ({"memory_projections": "local"}, "memory_projections"),
        ({**LOCAL, "streams": ("memory",)}, "memory_projections"),
        ({**LOCAL, "writer": "pool"}, "memory_projections"),
        ({**LOCAL, "gate": "both"}, "memory_projections"),
        ({**LOCAL, "write_from": "output"}, "memory_projections"),
        ({**LOCAL, "memory_position": "rank"}, "memory_position"),
        ({**LOCAL, "write_when": "unseen"}, "write_when"),
        ({**LOCAL, "write_when": "unseen", "streams": ("chunked", "memory")}, "write_when"),
        ({**LOCAL, "n_sinks": -1}, "n_sinks"),
        ({"n_sinks": 4}, "n_sinks"),
        ({"memory_position": "rotary"}, "memory_position"),
        ({"write_when": "unseen"}, "write_when"),
        ({"slots_per": "key_head"}, "slots_per"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"rope_theta": (10.0, 100.0)}, "rope_theta"),
        ({"rope_theta": (10.0, 20.0, 30.0, 40.0), "n_kv_heads": 2}, "rope_theta"),
        ({"norm": "batchnorm"}, "norm"),
        ({"mlp": "relu"}, "mlp"),
        ({"d_ff": 0}, "d_ff"),
        ({"conv_width": -1}, "conv_width"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
    ],
    ids=str,
)
def test_an_impossible_value_is_refused_by_name_value_and_remedy(
    overrides: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValueError) as caught:
        tiny(**overrides)
    message = str(caught.value)
    assert field in message
    assert repr(overrides.get(field, getattr(tiny(), field))) in message
    remedy = message.partition(":")[2]
    assert len(remedy.split()) >= 2, f"no remedy in: {message}"


@pytest.mark.parametrize(
    "field",
    ["segment_len", "d_model", "n_heads", "n_slots", "dropout", "rope_theta", "tie_embeddings", "null_slot"],
)
def test_a_value_of_a_wrong_type_is_refused_with_a_sentence(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        tiny(**{field: "many"})


def test_a_config_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().d_model = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        ModelConfig(29, 24)  # type: ignore[misc, call-arg]


@pytest.mark.parametrize("variant", VARIANTS)
def test_dict_round_trip(variant: str) -> None:
    import json

    config = tiny(variant, rope_theta=(10.0, 10.0, 20.0, 20.0), n_kv_heads=2)
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    assert again.fingerprint() == config.fingerprint()


def test_an_incomplete_dict_names_what_is_missing() -> None:
    values = tiny().to_dict()
    del values["d_model"]
    with pytest.raises(ValueError, match="d_model"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(("size", "variant"), [("tinny", "recommended"), ("tiny", "recomended")])
def test_an_unknown_preset_is_refused_with_the_nearest(size: str, variant: str) -> None:
    with pytest.raises(ValueError, match=r"'tiny'|'recommended'"):
        ModelConfig.preset(size, variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_presets_have_the_size_that_they_say(size: str, variant: str) -> None:
    """Built without memory for the weights. The paper's streams own their projections, which costs half as much again."""
    with torch.device("meta"):
        model = LanguageModel(ModelConfig.preset(size, variant=variant))
    count = sum(parameter.numel() for parameter in model.parameters())
    lower, upper = (0.8, 1.25) if variant == "recommended" else (0.6, 1.65)
    assert lower * SIZES[size] < count < upper * SIZES[size], f"{count:,} parameters"


def test_variants_are_what_their_names_say() -> None:
    paper = ModelConfig.preset("small", variant="paper")
    assert (paper.segment_len, paper.chunk_len, paper.chunk_lookback) == (512, 64, 0)
    assert (paper.streams, paper.projections) == (("full", "chunked", "memory"), "separate")
    assert (paper.writer, paper.writes_per_segment, paper.gate, paper.write_from) == (
        "mean",
        1,
        "gru",
        "output",
    )
    assert (paper.fusion, paper.norm, paper.mlp, paper.conv_width) == ("scalar", "layernorm", "gelu", 0)
    assert (paper.n_slots, paper.memory_position, paper.n_kv_heads) == (32, "none", paper.n_heads)
    recommended = ModelConfig.preset("small")
    assert (recommended.segment_len, recommended.chunk_len, recommended.chunk_lookback) == (512, 128, 1)
    assert (recommended.writer, recommended.write_from, recommended.null_slot) == ("select", "input", True)
    assert recommended.gate in ("push", "both") and recommended.n_kv_heads < recommended.n_heads
    assert (recommended.norm, recommended.mlp, recommended.conv_width) == ("rmsnorm", "swiglu", 3)
    assert "memory" not in ModelConfig.preset("tiny", variant="local").streams
    assert ModelConfig.preset("tiny", variant="full").streams == ("full",)
    xl = ModelConfig.preset("tiny", variant="xl")
    assert xl.writer == "all" and xl.writes_per_segment == xl.segment_len
    admitted = {
        n: ModelConfig.preset("tiny", variant="admitted", n_layers=n).memory_layers for n in (1, 2, 4, 7)
    }
    assert admitted == {1: (0,), 2: (0,), 4: (1,), 7: (3,)}
    everywhere = ModelConfig.preset("tiny", variant="admitted", memory_layers=None)
    assert everywhere.memory_layers is None and everywhere.chunk_len == everywhere.segment_len == 64


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        ("recommended", {"segment_len": 32, "n_slots": 32, "d_model": 64, "n_layers": 2}),
        ("paper", {"n_layers": 2, "d_model": 64}),
        ("paper", {"segment_len": 32}),
        ("xl", {"segment_len": 24}),
        ("full", {"segment_len": 48}),
        ("local", {"segment_len": 30, "n_heads": 2}),
        ("recommended", {"n_slots": 3}),
        ("recommended", {"writer": "all"}),
        ("recommended", {"n_heads": 1, "d_model": 16}),
    ],
    ids=str,
)
def test_any_field_can_be_overridden_and_the_others_follow(variant: str, overrides: dict[str, Any]) -> None:
    config = ModelConfig.preset("tiny", variant=variant, vocab_size=40, **overrides)
    assert all(getattr(config, name) == value for name, value in overrides.items())
    logits, _ = LanguageModel(config)(torch.zeros(1, 5, dtype=torch.int64))
    assert logits.shape == (1, 5, 40)
