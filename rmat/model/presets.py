"""Named sizes and variants: the paper, what we recommend, and the baselines, all as values of
`ModelConfig`."""

from __future__ import annotations

from typing import Any

from rmat.settings import nearest

SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(vocab_size=1024, d_model=128, n_layers=4, n_heads=4, segment_len=128),
    "small": dict(vocab_size=16384, d_model=512, n_layers=7, n_heads=8, segment_len=512),
    "base": dict(vocab_size=50304, d_model=768, n_layers=13, n_heads=12, segment_len=512),
    "large": dict(vocab_size=50304, d_model=2048, n_layers=18, n_heads=16, segment_len=512),
}
"""What a size fixes; about 1M, 30M, 137M and 1B parameters in the recommended variant."""

PAPER_LAYERS = {"tiny": 3, "small": 4, "base": 8, "large": 11}
"""Layers of the paper's variant: its own projections per stream make a layer larger, the size stays the
same."""

SLOTS = {"tiny": 128, "small": 256, "base": 512, "large": 1024}
"""Memory slots of the selecting variant at each size."""

FULL_CONTEXT = 16384
"""Segment length of the plain Transformer: its whole context window."""

_MODERN = dict(norm="rmsnorm", mlp="swiglu", conv_width=3, projections="shared", chunk_lookback=1)

ONE_ATTENTION: dict[str, Any] = dict(
    streams=("chunked", "memory"),
    chunk_lookback=1,
    gate="push",
    gate_gradient="value",
    write_from="input",
    memory_projections="local",
    memory_position="rotary",
    write_when="unseen",
    slots_per="key_head",
    fusion="joint",
)
"""The memory as admitted keys and values, in one softmax with local ones; chunks are as long as segments."""

VARIANTS: dict[str, dict[str, Any]] = {
    "recommended": dict(
        _MODERN,
        writer="select",
        gate="push",
        gate_gradient="value",
        write_from="input",
        memory_position="none",
        null_slot=True,
        fusion="head",
    ),
    "admitted": {**_MODERN, **ONE_ATTENTION, "writer": "select", "n_sinks": 4, "null_slot": True},
    "paper": dict(writer="mean", gate="gru", write_from="output", fusion="scalar", n_slots=32),
    "local": dict(_MODERN, streams=("full", "chunked"), fusion="head"),
    "xl": dict(
        _MODERN,
        writer="all",
        gate="none",
        write_from="input",
        memory_position="rank",
        null_slot=True,
        fusion="head",
    ),
    "full": dict(_MODERN, streams=("full",), segment_len=FULL_CONTEXT),
}
"""What a variant fixes beside its size."""


def resolve(size: str, variant: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """All fields of a preset. What is not overridden follows what is: chunks and writes scale with the
    segment, key/value heads with the heads, the feed-forward width with d_model. Raises `ValueError` on an
    unknown name."""
    for kind, name, known in (("size", size, SIZES), ("variant", variant, VARIANTS)):
        if name not in known:
            near = nearest(str(name), known)
            raise ValueError(f"no preset {kind} {name!r}: did you mean {near!r}? ({', '.join(known)} exist)")
    fields = {**SIZES[size], **VARIANTS[variant], **overrides}
    paper = variant == "paper"
    if paper:
        fields["n_layers"] = overrides.get("n_layers", PAPER_LAYERS[size])
    if variant == "admitted":
        # Chunks are segments: tokens are offered when local attention loses them.
        fields["segment_len"] = overrides.get("segment_len", fields["segment_len"] // 2)
        fields.setdefault("chunk_len", fields["segment_len"])
        if isinstance(fields["n_layers"], int):
            # One bank in the middle: in every layer it learned worse and cost more (docs/results/README.md).
            fields.setdefault("memory_layers", ((fields["n_layers"] - 1) // 2,))
    segment, heads = fields["segment_len"], fields["n_heads"]
    if not all(
        isinstance(fields[name], int) and fields[name] > 0 for name in ("segment_len", "n_heads", "d_model")
    ):
        fields.setdefault("chunk_len", 1)  # ModelConfig refuses the bad value with its own sentence
        fields.setdefault("n_kv_heads", 1)
        fields.setdefault("d_ff", 1)
        return fields
    fields.setdefault("chunk_len", _divisor(segment, segment // 8 if paper else min(segment // 2, 128)))
    fields.setdefault("n_kv_heads", heads if paper or heads % 2 else heads // 2)
    width = fields["d_model"]
    swiglu = fields.get("mlp", "gelu") == "swiglu"
    fields.setdefault("d_ff", _round_up(8 * width // 3, 32) if swiglu else 4 * width)
    writer = fields.get("writer", "mean")
    if writer == "all":
        fields.setdefault("writes_per_segment", segment)
        fields.setdefault("n_slots", segment)
    elif writer == "mean":
        fields.setdefault("writes_per_segment", 1)
    fields.setdefault("n_slots", SLOTS[size])
    slots: Any = fields["n_slots"]
    slots = slots if isinstance(slots, int) else 1
    fields.setdefault("writes_per_segment", max(1, min(64, max(16, segment // 4), segment, slots)))
    return fields


def _divisor(number: int, near: int) -> int:
    """The largest divisor of `number` that is at most `near` (at least 1)."""
    return max(d for d in range(1, max(1, near) + 1) if number % d == 0)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
