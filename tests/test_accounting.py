"""`account`: what it reports against what a real model has."""

from typing import Any

import pytest
import torch

from rmat.accounting import account
from rmat.model import LanguageModel, ModelConfig
from tests.makers.models import ADMITTED

CASES: dict[str, dict[str, Any]] = {
    "recommended": {},
    "paper": {"variant": "paper"},
    "local": {"variant": "local"},
    "xl": {"variant": "xl"},
    "full": {"variant": "full", "segment_len": 24},
    "untied": {"tie_embeddings": False, "gate": "both", "memory_position": "age"},
    "pool": {
        "writer": "pool",
        "gate": "gru",
        "fusion": "token",
        "memory_position": "rank",
        "null_slot": False,
    },
    "joint": {"fusion": "joint", "conv_width": 0, "mlp": "gelu", "norm": "layernorm"},
    "memory_only": {"streams": ("memory",)},
    "local_keys": {**ADMITTED, "chunk_len": 6, "slots_per": "key_head", "n_sinks": 3, "n_slots": 6},
    "memory_in_one_layer": {"memory_layers": (1,)},
    "biases_and_norms_of_heads": {"head_width": 10, "attention_bias": "all", "qk_norm": True},
}


def config_of(case: str, **more: Any) -> ModelConfig:
    small = {"vocab_size": 29, "d_model": 24, "n_layers": 2, "n_heads": 4, "segment_len": 6}
    fields = {**small, **CASES[case], **more}
    if "segment_len" not in CASES[case]:
        fields.setdefault("n_slots", 7)
    return ModelConfig.preset("tiny", variant=fields.pop("variant", "recommended"), **fields)


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_state_bytes_are_the_real_ones(case: str) -> None:
    config = config_of(case)
    model = LanguageModel(config)
    report = account(config)
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert report.state_bytes == model.initial_state(1).nbytes
    _, state = model(torch.zeros(1, 20, dtype=torch.int64))
    assert report.state_bytes == state.nbytes


@pytest.mark.parametrize("case", CASES)
def test_flops_hang_on_the_matrices(case: str) -> None:
    """Decoding costs at least two FLOPs for every matrix element that a token meets, training three times as much."""
    config = config_of(case)
    model = LanguageModel(config)
    met = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ".memory.gate" not in name)
    written = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name.endswith(("memory.key.weight", "memory.value.weight", "writer.queries"))
    )
    embedding = 0 if config.tie_embeddings else model.embedding.weight.numel()
    report = account(config)
    assert report.flops_per_token_decode >= 2 * (met - written - embedding)
    assert report.flops_per_token_train >= 2.5 * 2 * (met - written - embedding)


def test_horizon_is_slots_over_writes_segments() -> None:
    paper = account(ModelConfig.preset("tiny", variant="paper", segment_len=64, chunk_len=8, n_slots=32))
    assert paper.horizon_tokens == 32 * 64
    every = account(config_of("xl", n_slots=12))
    assert every.horizon_tokens == 12
    assert account(config_of("local")).horizon_tokens == 6
    assert account(config_of("full")).horizon_tokens == 24


def test_a_memory_of_local_keys_costs_only_its_scores() -> None:
    own = account(config_of("recommended", fusion="joint", null_slot=False))
    local = {"fusion": "joint", "null_slot": False, "memory_projections": "local"}
    one, heads = (
        account(config_of("recommended", **local, slots_per=each)) for each in ("layer", "key_head")
    )
    config = config_of("recommended")
    matrices = config.d_model * config.head_dim * (config.n_heads + 2 * config.n_kv_heads)
    assert own.parameters - one.parameters == config.n_layers * matrices
    assert heads.parameters - one.parameters == config.n_layers * (config.n_kv_heads - 1) * (
        config.d_model + 1
    )
    assert one.flops_per_token_train < own.flops_per_token_train
    whole = account(config_of("local_keys", slots_per="layer", writer="all", gate="none", n_slots=12))
    assert whole.horizon_tokens == 12 + 6


def test_horizon_of_the_selective_gate_depends_on_content() -> None:
    report = account(config_of("recommended"))
    assert report.horizon_tokens is None
    assert "content" in report.horizon and "later writes" in report.horizon
    assert "stronger" in account(config_of("recommended", eviction="weakest")).horizon


def test_larger_things_cost_more() -> None:
    small, large = account(config_of("recommended")), account(config_of("recommended", n_slots=70))
    assert large.state_bytes > small.state_bytes
    assert large.flops_per_token_decode > small.flops_per_token_decode
    assert large.parameters == small.parameters


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_presets_are_accounted_without_building_them(size: str) -> None:
    report = account(ModelConfig.preset(size))
    assert report.flops_per_token_train > 6 * 0.5 * report.parameters
    assert report.to_dict()["parameters"] == report.parameters
