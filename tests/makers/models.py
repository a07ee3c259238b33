"""Shared makers: tiny models of every variant and of many combinations of axes, with odd lengths.

A maker scrambles the parameters: a fresh model has open gates, equal fusion weights and zero offsets, and a comparison
of two ways to compute one thing would not notice that one of them ignores such a parameter.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rmat.model import LanguageModel, ModelConfig, StreamState

Overrides = Mapping[str, Any]

TINY: dict[str, Any] = {
    "vocab_size": 29,
    "d_model": 24,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "segment_len": 6,
    "chunk_len": 3,
    "d_ff": 20,
    "n_slots": 7,
    "dropout": 0.0,
    "gate_noise": 0.0,
}
WRITES = {"mean": 1, "pool": 2, "select": 3, "all": TINY["segment_len"]}

ADMITTED: dict[str, Any] = {
    "streams": ("chunked", "memory"),
    "fusion": "joint",
    "memory_projections": "local",
    "memory_position": "rotary",
    "write_when": "unseen",
}
"""A memory of the local stream's keys and values."""

# Every variant, then combinations that the variants do not show. The name says what is unusual.
CASES: dict[str, Overrides] = {
    "recommended": {},
    "paper": {"variant": "paper", "n_kv_heads": 4},
    "local": {"variant": "local"},
    "xl": {"variant": "xl"},
    "full": {"variant": "full"},
    "joint_both_gates": {"fusion": "joint", "gate": "both", "memory_position": "age"},
    "joint_separate_output": {
        "streams": ("chunked", "memory"),
        "fusion": "joint",
        "projections": "separate",
        "write_from": "output",
        "memory_position": "rank",
    },
    "pool_gru_token": {"writer": "pool", "gate": "gru", "fusion": "token", "null_slot": False},
    "pool_push_head": {
        "writer": "pool",
        "gate": "push",
        "fusion": "head",
        "memory_position": "age",
        "conv_width": 4,
    },
    "all_push_scalar": {"writer": "all", "gate": "push", "fusion": "scalar", "memory_position": "rank"},
    "all_both_output": {"writer": "all", "gate": "both", "write_from": "output", "null_slot": False},
    "mean_push_output": {
        "variant": "paper",
        "gate": "push",
        "chunk_lookback": 1,
        "n_kv_heads": 1,
        "n_slots": 3,
    },
    "select_none_token": {"gate": "none", "fusion": "token", "chunk_lookback": 0, "tie_embeddings": False},
    "select_gru_wide_conv": {"gate": "gru", "conv_width": 5, "norm": "layernorm", "mlp": "gelu"},
    "memory_only": {"streams": ("memory",), "conv_width": 3, "fusion": "scalar"},
    "chunked_only_lookback": {"streams": ("chunked",), "chunk_lookback": 1},
    "full_and_memory": {
        "streams": ("full", "memory"),
        "fusion": "joint",
        "rope_theta": (10.0, 10.0, 500.0, 500.0),
    },
    "chunked_and_memory": {"streams": ("chunked", "memory"), "chunk_len": 2, "segment_len": 4},
    "memory_in_one_layer": {"memory_layers": (1,), "gate_gradient": "logit"},
    "memory_in_one_layer_joint_output": {"memory_layers": (0,), "fusion": "joint", "write_from": "output"},
    "newest_first": {"memory_read": "stick_breaking"},
    "newest_first_output": {
        "memory_read": "stick_breaking",
        "write_from": "output",
        "gate": "both",
        "null_slot": False,
        "memory_position": "age",
    },
    "weakest_leaves": {"eviction": "weakest", "n_slots": 5, "newest_share": 0.4},
    "weakest_leaves_newest_first": {
        "eviction": "weakest",
        "fade": 40.0,
        "memory_read": "stick_breaking",
        "write_from": "output",
        "gate": "both",
        "memory_position": "rank",
    },
    "weakest_leaves_whole_segments": {
        "eviction": "weakest",
        "writer": "all",
        "gate": "push",
        "n_slots": 6,
        "segment_len": 6,
    },
    "admitted": {**ADMITTED, "chunk_len": 6, "null_slot": False},
    "admitted_of_heads": {
        **ADMITTED,
        "chunk_len": 6,
        "slots_per": "key_head",
        "n_slots": 5,
        "rope_theta": (10.0, 10.0, 500.0, 500.0),
        "gate_gradient": "logit",
    },
    "admitted_all_with_sinks": {
        **ADMITTED,
        "chunk_len": 6,
        "writer": "all",
        "gate": "none",
        "n_sinks": 4,
    },
    "admitted_weakest_with_sinks": {
        **ADMITTED,
        "streams": ("full", "chunked", "memory"),
        "chunk_lookback": 0,
        "slots_per": "key_head",
        "eviction": "weakest",
        "fade": 20.0,
        "newest_share": 0.5,
        "n_sinks": 2,
        "n_slots": 4,
        "memory_layers": (1,),
    },
    "admitted_when_closed": {
        **ADMITTED,
        "write_when": "closed",
        "memory_position": "none",
        "slots_per": "key_head",
        "n_kv_heads": 4,
    },
    "admitted_of_qwen3": {
        **ADMITTED,
        "chunk_len": 6,
        "slots_per": "key_head",
        "n_sinks": 2,
        "null_slot": False,
        "conv_width": 0,
        "head_width": 10,
        "qk_norm": True,
        "attention_bias": "all",
        "rope_scaling": (8.0, 1.0, 4.0, 60.0),
        "norm_eps": 0.01,
    },
    "local_of_qwen2": {
        "variant": "local",
        "head_width": 4,
        "attention_bias": "qkv",
        "norm": "layernorm",
        "norm_eps": 0.01,
        "projections": "separate",
    },
    "bank_below_one_segment": {
        "writer": "all",
        "gate": "push",
        "segment_len": 6,
        "n_slots": 6,
        "n_layers": 3,
    },
}
VARIANTS = ("recommended", "paper", "local", "xl", "full")
WITH_MEMORY = tuple(
    name for name in CASES if name not in ("local", "full", "local_of_qwen2", "chunked_only_lookback")
)


def make_config(case: str | Overrides, **overrides: Any) -> ModelConfig:
    """A tiny config: a name from CASES or a mapping of fields, with further fields on top."""
    chosen = {**(CASES[case] if isinstance(case, str) else case), **overrides}
    variant = chosen.pop("variant", case if case in VARIANTS else "recommended")
    fields = {**TINY, **chosen}
    plain = ModelConfig.preset("tiny", variant=variant)
    writer = fields.get("writer", plain.writer)
    writes = fields["segment_len"] if writer == "all" else min(WRITES[writer], fields["segment_len"])
    fields.setdefault("writes_per_segment", writes)
    if variant == "full" and "chunk_len" not in chosen:
        fields["chunk_len"] = fields["segment_len"]
    return ModelConfig.preset("tiny", variant=variant, **fields)


def banks(config: ModelConfig) -> list[int]:
    """The layers that have a memory bank."""
    return [layer for layer in range(config.n_layers) if config.of_layer(layer).has_memory]


def make_model(
    case: str | Overrides | ModelConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **overrides: Any,
) -> LanguageModel:
    """A model in evaluation mode with scrambled parameters: about half of the write gates are closed."""
    config = case if isinstance(case, ModelConfig) else make_config(case, **overrides)
    torch.manual_seed(seed)
    model = LanguageModel(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            scale = 0.3 if parameter.ndim < 2 else 0.5 / parameter.shape[-1] ** 0.5
            parameter.add_((scale * noise).to(dtype))
            if is_gate_bias(name):
                parameter.sub_(1.0)
    return model


def is_gate_bias(name: str) -> bool:
    """Whether a parameter is the bias of a write gate's score (it starts at +1)."""
    return name.endswith("writer.score.bias")


def gate_bias(model: LanguageModel, layer: int) -> Tensor:
    """The bias of the write gate's score in a layer."""
    return model.get_parameter(f"blocks.{layer}.memory.writer.score.bias")


def recurrent_bias(model: LanguageModel, layer: int) -> Tensor:
    """The bias b_z of the GRU gate in a layer."""
    return model.get_parameter(f"blocks.{layer}.memory.gate.candidate.bias")


def open_gates(model: LanguageModel) -> None:
    """Let every write pass: the scores of a model with write gates become large."""
    if model.config.scores_writes:
        with torch.no_grad():
            for layer in banks(model.config):
                gate_bias(model, layer).fill_(30.0)


def bank_positions(state: StreamState, layer: int, segment_len: int = TINY["segment_len"]) -> list[list[int]]:
    """For every row the source positions of the filled slots of a layer's bank, oldest first; where key heads have
    banks of their own, one behind the other."""
    tensors = state.tensors()
    ages, pushed = tensors[f"layers.{layer}.slot_age"], tensors[f"layers.{layer}.pushed"]
    rows = []
    for position, age, count in zip(state.position.tolist(), ages.tolist(), pushed.tolist(), strict=True):
        start = position - position % segment_len
        counts, ages_of = (count, [*zip(*age, strict=True)]) if isinstance(count, list) else ([count], [age])
        rows.append(
            [
                start - a
                for n, each in zip(counts, ages_of, strict=True)
                for a in each[max(0, len(each) - n) :]
            ]
        )
    return rows


def shifted(state: StreamState, config: ModelConfig, tokens: int) -> StreamState:
    """The state as it would be if `tokens` more (whole segments) had been read before everything it knows of."""
    tensors = dict(state.tensors())
    tensors["position"] = tensors["position"] + tokens
    for name, tensor in tensors.items():
        if name.endswith("pushed"):
            tensors[name] = torch.where(tensor >= config.n_slots, tensor + tokens, tensor)
    return StreamState.from_tensors(config, tensors)


def first_reader(config: ModelConfig) -> int:
    """The first segment that can find something in the bank."""
    return 1 + -(-config.write_lag // config.segment_len)


def make_tokens(
    batch_size: int, length: int, *, vocab_size: int = TINY["vocab_size"], seed: int = 0
) -> Tensor:
    """Random tokens (batch_size, length), int64."""
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randint(0, vocab_size, (batch_size, length), generator=generator)


def schedules_of(config: ModelConfig) -> tuple[str, ...]:
    """The schedules that a config can run in one call."""
    parallel = config.write_from == "input" or "memory" not in config.streams
    return ("parallel", "sequential") if parallel else ("sequential",)


def split_points(length: int, rng: random.Random, pieces: int = 4) -> list[int]:
    """Ends of consecutive pieces that cover `length` tokens."""
    inner = rng.sample(range(1, length), min(pieces - 1, length - 1)) if length > 1 else []
    return [*sorted(inner), length]


def stream(
    model: LanguageModel,
    tokens: Tensor,
    ends: list[int],
    state: StreamState | None = None,
    **per_token: Tensor,
) -> tuple[Tensor, StreamState]:
    """Read `tokens` in pieces that end at `ends`; `per_token` (resets, valid) is cut alike. Logits and final state."""
    parts = []
    for start, end in itertools.pairwise([0, *ends]):
        cut = {name: value[:, start:end] for name, value in per_token.items()}
        logits, state = model(tokens[:, start:end], state, **cut)
        parts.append(logits)
    assert state is not None
    return torch.cat(parts, 1), state


def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float | None = None) -> None:
    """Compare two tensors and say what differs, by how much and where; tolerance 1e-9 in float64, 1e-4 in float32."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype} != {expected.dtype}"
    if actual.numel() == 0:
        return
    if not actual.is_floating_point():
        assert torch.equal(actual, expected), f"{what}: {actual.tolist()} != {expected.tolist()}"
        return
    limit = tolerance if tolerance is not None else (1e-9 if actual.dtype == torch.float64 else 1e-4)
    error = (actual - expected).detach().abs()
    error = torch.where(actual == expected, torch.zeros_like(error), error)
    scale = max(1.0, float(expected.detach().abs().nan_to_num(0.0, 0.0, 0.0).max()))
    worst = float(error.max())
    if not worst <= limit * scale:
        where = torch.unravel_index(error.argmax(), error.shape)
        place = tuple(int(index) for index in where)
        raise AssertionError(f"{what}: largest error {worst:.3e} at {place}, allowed {limit * scale:.1e}")


def assert_same_state(
    actual: StreamState, expected: StreamState, what: str = "state", **options: float
) -> None:
    """Compare two states tensor by tensor."""
    left, right = actual.tensors(), expected.tensors()
    assert left.keys() == right.keys(), f"{what}: {sorted(left)} != {sorted(right)}"
    for name in left:
        assert_close(left[name], right[name], f"{what}.{name}", **options)


def gradients(model: LanguageModel, loss: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Gradient of every parameter, zeros where the loss does not depend on it."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    for name, parameter, gradient in zip(names, parameters, found, strict=True):
        yield name, torch.zeros_like(parameter) if gradient is None else gradient
