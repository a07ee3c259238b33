"""Rotary positions, relative to the segment: their precision does not depend on how much was read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmat.model.config import ModelConfig
from rmat.model.layout import Layout


@dataclass(frozen=True)
class Angles:
    """Cosines and sines, broadcastable to (rows, tokens, heads, D/2), in at least float32."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Rotary:
    """The angles that one call needs, for queries and for keys that reach back before the segment."""

    config: ModelConfig
    cos_XHD: Tensor
    """(positions, H or 1, D/2), from position -before on."""
    sin_XHD: Tensor
    before: int

    @staticmethod
    def of(config: ModelConfig, layout: Layout, dtype: torch.dtype) -> Rotary:
        """Angles position * theta^(-2i/D) for every position that a query or key of the call can have.

        Args:
            dtype: the model's type; angles are in float32 at least, from integers that are exact in it.
        """
        kind = torch.promote_types(dtype, torch.float32)
        device = layout.first_BN.device
        before = max(config.held.values(), default=0)
        last = layout.reach + layout.n_tokens if layout.streaming else layout.n_cells
        theta = config.rope_theta if isinstance(config.rope_theta, tuple) else (config.rope_theta,)
        pairs_D = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=device) / config.head_dim
        base_H1 = torch.tensor(theta, dtype=torch.float64, device=device)[:, None]
        frequency_HD = (base_H1**-pairs_D).to(kind)
        position_X11 = torch.arange(-before, last, dtype=kind, device=device)[:, None, None]
        angle_XHD = position_X11 * frequency_HD
        return Rotary(config, angle_XHD.cos(), angle_XHD.sin(), before)

    def queries(self, position: Tensor | slice) -> Angles:
        """Angles of query heads at segment positions: int64 (rows, tokens), or a slice that serves every row."""
        return self._at(position, 1)

    def keys(self, position: Tensor | slice) -> Angles:
        """Angles of key heads; the query heads of a group share theirs."""
        return self._at(position, self.config.n_heads // self.config.n_kv_heads)

    def _at(self, position: Tensor | slice, step: int) -> Angles:
        if isinstance(position, slice):
            position = slice(position.start + self.before, position.stop + self.before)
        else:
            position = position + self.before
        cos, sin = self.cos_XHD[position], self.sin_XHD[position]
        if cos.shape[-2] > 1:
            cos, sin = cos[..., ::step, :], sin[..., ::step, :]
        return Angles(cos, sin)
