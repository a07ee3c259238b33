"""Rotary positions, relative to the segment: their precision does not depend on how much was read."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rmat.model.config import ModelConfig
from rmat.model.layout import Layout


@dataclass(frozen=True)
class Angles:
    """Cosines and sines, broadcastable to (rows, tokens, heads, D), in at least float32; see `rotate`."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Rotary:
    """The angles position * theta^(-2i/D), slow ones stretched by `rope_scaling`, of all positions in the
    segment that a call has."""

    config: ModelConfig
    table_2XHD: Tensor
    """Cosines and sines, (2, positions, H or 1, D), from position `-before` on."""
    before: int

    @staticmethod
    def of(config: ModelConfig, layout: Layout, dtype: torch.dtype) -> Rotary:
        """Angles for queries of a call, and for keys that reach back before the segment.

        Args:
            dtype: the model's type; angles are in float32 at least, from integers that are exact in it.
        """
        kind = torch.promote_types(dtype, torch.float32)
        before = max(config.held.values(), default=0)
        if config.memory_position == "rotary":
            before = max(before, config.lookback + config.n_slots + config.n_sinks)
        # Rows that are padded may reach beyond the segment.
        last = config.segment_len * (1 if layout.reach + layout.n_tokens <= config.segment_len else 2)
        return Rotary(config, _table(config, before, last, kind, layout.device), before)

    def at(self, position: Tensor | slice, n_heads: int) -> Angles:
        """Angles of `n_heads` heads at segment positions: int64 (rows, tokens), a slice that serves every
        row, or int64 (rows, tokens, n_heads).

        Key heads take the angles of the query heads that share them.
        """
        if isinstance(position, slice):
            position = slice(position.start + self.before, position.stop + self.before)
        else:
            position = position + self.before
        if isinstance(position, Tensor) and position.dim() == 3:
            step = self.config.n_heads // n_heads
            own_2XHD = self.table_2XHD[:, :, ::step].expand(-1, -1, n_heads, -1)
            head = torch.arange(n_heads, device=position.device)
            return Angles(*(x[position, head] for x in own_2XHD))
        cos, sin = (x[position] for x in self.table_2XHD)
        if cos.shape[-2] > 1:
            step = self.config.n_heads // n_heads
            cos, sin = cos[..., ::step, :], sin[..., ::step, :]
        return Angles(cos, sin)


@functools.lru_cache(maxsize=8)
def _table(config: ModelConfig, before: int, last: int, kind: torch.dtype, device: torch.device) -> Tensor:
    """The angles of positions from `-before` to `last`, as `Rotary` keeps them."""
    with torch.inference_mode(False):  # calls with and without gradients share them
        theta = config.rope_theta if isinstance(config.rope_theta, tuple) else (config.rope_theta,)
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=device) / config.head_dim
        base = torch.tensor(theta, dtype=torch.float64, device=device)[:, None]
        frequency = base**-pairs
        if config.rope_scaling is not None:
            factor, least, most, context = config.rope_scaling
            kept = ((context * frequency / (2 * math.pi) - least) / (most - least)).clamp(0, 1)
            frequency = frequency * (kept + (1 - kept) / factor)
        frequency = frequency.to(kind)
        position_X11 = torch.arange(-before, last, dtype=kind, device=device)[:, None, None]
        angle_XHD = position_X11 * frequency
        cos, sin = angle_XHD.cos(), angle_XHD.sin()
        return torch.stack([torch.cat([cos, cos], dim=2), torch.cat([-sin, sin], dim=2)])
