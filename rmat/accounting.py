"""What a configuration costs: parameters, FLOPs, bytes of state, and how far its memory reaches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from rmat.model.config import ModelConfig
from rmat.model.state import state_bytes

CACHED = (8192, 131072, 1048576)
"""Tokens for which the cache of full attention is counted."""


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """Costs of one configuration; a multiplication and an addition count as two FLOPs."""

    parameters: int
    """Parameters, tied ones once."""
    flops_per_token_train: int
    """FLOPs of a token forward and backward (backward as twice the forward), averaged over the segment."""
    flops_per_token_decode: int
    """FLOPs of reading one token from a state, at the middle of a segment and with a full bank."""
    state_bytes: int
    """Bytes of a row's state in float32, however much was read."""
    cache_bytes: dict[int, int]
    """Bytes in float32 of the cache that full attention needs in the place of this state, by tokens read."""
    horizon_tokens: int | None
    """How far back in tokens the memory (or, without one, local attention) surely reaches; None if it
    depends on the content. What further blocks pass on from earlier tokens is not counted."""
    horizon: str
    """The horizon in words."""

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)


def account(config: ModelConfig) -> Accounting:
    """The costs of a configuration, counted from its shapes without building it in memory."""
    from rmat.model.language_model import (
        LanguageModel,  # only here: the model imports nothing of its accounting
    )

    with torch.device("meta"):
        model = LanguageModel(config)
    tokens, words = _horizon(config)
    forward = _flops(config)
    return Accounting(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_token_train=3 * forward,
        flops_per_token_decode=forward,
        state_bytes=state_bytes(config, torch.float32),
        cache_bytes={tokens: tokens * _cache_bytes(config) for tokens in CACHED},
        horizon_tokens=tokens,
        horizon=words,
    )


def _cache_bytes(config: ModelConfig) -> int:
    """Bytes of one token's keys and values in all layers, in float32."""
    return 2 * 4 * config.n_layers * config.n_kv_heads * config.head_dim


def _flops(config: ModelConfig) -> int:
    """Forward FLOPs of one token: matrices, attention scores and sums."""
    blocks = sum(_block_flops(config.of_layer(index)) for index in range(config.n_layers))
    return blocks + 2 * config.vocab_size * config.d_model


def _block_flops(config: ModelConfig) -> int:
    """The same in one block."""
    width, head_width = config.d_model, config.n_heads * config.head_dim
    kv_width = config.n_kv_heads * config.head_dim
    projections = width * (head_width + 2 * kv_width)
    matrices = head_width * width + config.d_ff * width * (3 if config.mlp == "swiglu" else 2)
    matrices += len(config.held) * projections + config.conv_width * width
    chunk = config.chunk_len
    keys = {
        "full": (config.segment_len + 1) // 2,
        "chunked": (chunk + 1) // 2 + chunk * config.chunk_lookback,
    }
    n_keys = sum(keys[stream] for stream in config.local_streams)
    if config.has_memory:
        if config.memory_projections == "own":
            share = config.writes_per_segment / config.segment_len
            matrices += width * head_width + int(share * 2 * width * kv_width)
        if config.recurrent_gate:
            matrices += int(share * width * width) + width * width // config.segment_len
        if config.scores_writes:
            matrices += width * config.slot_groups if config.writer in ("select", "all") else 0
        if config.writer == "pool":
            matrices += 2 * width * config.writes_per_segment
        n_keys += config.n_slots + config.n_sinks + config.null_slot
    if config.fusion == "token" and len(config.streams) > 1:
        matrices += width * config.n_heads * len(config.streams)
    attention = 2 * n_keys * head_width
    return 2 * (matrices + attention)


def _horizon(config: ModelConfig) -> tuple[int | None, str]:
    reach = max(config.held.values(), default=0)
    if not config.has_memory:
        return reach, f"{reach} tokens: local attention only"
    if config.eviction == "weakest":
        fading = f", less {config.fade:g} of every score in 1,024 tokens" if config.fade else ""
        count = "n_slots" if not config.n_newest else f"{config.n_slots - config.n_newest}"
        newest = f", the {config.n_newest} newest aside" if config.n_newest else ""
        return None, (
            f"depends on content: a slot stays until {count} stronger ones have been written{fading}{newest}"
        )
    if config.refuses_writes:
        return None, "depends on content: a slot stays until n_slots later writes pass the gate"
    segments = config.n_slots // config.writes_per_segment
    reach = segments * config.segment_len + config.write_lag
    behind = f" behind {config.write_lag} that are seen" if config.write_lag else ""
    return reach, (
        f"{reach} tokens: {config.n_slots} slots / {config.writes_per_segment} "
        f"writes = {segments} segments of {config.segment_len}{behind}"
    )
