"""The local attention streams and the fusion of all streams.

    A_full   causal self-attention over the segment
    A_chunk  causal self-attention inside windows of C < S tokens (and the chunk before, with look-back)
    H = sum_i l_i A_i,   (l_1, l_2, l_3) = softmax(w_1, w_2, w_3)

Keys are held before rotation, so that a chunk of the previous segment can be seen at a negative position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rmat.model.config import ModelConfig
from rmat.model.layout import Layout
from rmat.model.parameters import linear, parameter, projected
from rmat.model.rotary import Angles, Rotary
from rmat.model.state import KeyValues
from rmat.ops.attention import additive, at_least_float32, attend, attend_slots, fold_chunks, rotate


def visible(config: ModelConfig, streams: Sequence[str], query: Tensor, key: Tensor, least: Tensor) -> Tensor:
    """The rule of sight: whether a token sees another through any of the given local streams.

    full: its own segment up to itself. chunked: its own chunk up to itself and `chunk_lookback` chunks
    before it. Never a token of another document.

    Args:
        query, key: int64 offsets in the query's segment; a key before it has a negative one.
        least: the smallest offset that is still of the same document. All three broadcast.
    """
    start = torch.full_like(query, torch.iinfo(torch.int64).max)
    if "full" in streams:
        start = torch.zeros_like(query)
    if "chunked" in streams:
        chunk = config.chunk_len
        start = torch.minimum(start, (query // chunk - config.chunk_lookback) * chunk)
    return (key <= query) & (key >= start) & (key >= least)


@dataclass(frozen=True)
class KeyRange:
    """Which keys one set of local projections lays before its queries in a call, and where both stand.

    The same for every layer. Keys reach `before` tokens back from the segment's first cell, or from the
    call's first token when streaming.
    """

    config: ModelConfig
    layout: Layout
    n_held: int
    """Tokens whose keys and values the state holds."""
    before: int
    query: Tensor
    """Offsets of the queries in the segment, broadcastable to (R, S)."""
    key: Tensor
    """Offsets of the keys, broadcastable to (R, J)."""
    least: Tensor
    """(R, 1) smallest offset that is still of the same document."""
    query_angles: Angles
    key_angles: Angles
    _masks: dict[tuple[str, ...], Tensor] = field(default_factory=dict)

    @staticmethod
    def of(config: ModelConfig, name: str, layout: Layout, rotary: Rotary) -> KeyRange:
        """The range of the projections `name` (see `ModelConfig.held`)."""
        n_held, chunk = config.held[name], config.chunk_len
        before = chunk * config.chunk_lookback if "chunked" in config.streams and name != "full" else 0
        least = -layout.prior.flatten()[:, None]
        heads, kv_heads = config.n_heads, config.n_kv_heads
        if layout.streaming:
            # Where rows stand at different places, the oldest token that any of them sees.
            spare = chunk if layout.uniform is None else 0
            before = min(n_held, min(n_held, max(layout.reach, before + layout.reach % chunk)) + spare)
            query = layout.cell_offset_BNS[:, 0]
            back = torch.arange(-before, 0, device=query.device)
            key = torch.cat([layout.offset + back, query], dim=1)
            angles = rotary.at(query, heads), rotary.at(key, kv_heads)
        else:
            query = torch.arange(layout.n_cells, device=least.device)[None]
            key = torch.arange(-before, layout.n_cells, device=least.device)[None]
            at = slice(0, layout.n_cells), slice(-before, layout.n_cells)
            angles = rotary.at(at[0], heads), rotary.at(at[1], kv_heads)
        return KeyRange(config, layout, n_held, before, query, key, least, *angles)

    def seen(self, *streams: str) -> Tensor:
        """What to add to logits, so that the given local streams see what they may together: broadcastable
        to (R, 1, S, J)."""
        if streams not in self._masks:
            least = self.least[:, None, :, None]
            at = self.query[:, None, :, None], self.key[:, None, None]
            seen = visible(self.config, streams, *at, least)
            self._masks[streams] = additive(seen, self.query_angles.cos.dtype)
        return self._masks[streams]

    def seen_in_chunks(self) -> Tensor:
        """The same of the chunked stream where chunks are rows of their own: (R * S / C, 1, C, C or 2 C)."""
        if (mask := self._masks.get(())) is None:
            chunk = self.config.chunk_len
            start = torch.arange(0, self.layout.n_cells, chunk, device=self.least.device)[None, :, None, None]
            query = start + torch.arange(chunk, device=start.device)[:, None]
            key = start + torch.arange(-self.before, chunk, device=start.device)
            seen = visible(self.config, ("chunked",), query, key, self.least[..., None, None])
            mask = additive(seen.flatten(0, 1)[:, None], self.query_angles.cos.dtype)
            self._masks[()] = mask
        return mask


@dataclass(frozen=True)
class Local:
    """Queries, keys and values of one set of projections, rotated and laid out for attention inside
    segments."""

    q_RSHD: Tensor
    k_RJKD: Tensor
    v_RJKD: Tensor
    range: KeyRange
    plain_RSHD: Tensor
    """The queries before rotation."""
    tokens: KeyValues
    """Keys before rotation and values of the tokens held from before and, behind them, the call's."""


class LocalProjection(nn.Module):
    """Query, key and value projections of one local stream, or of both when they share them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = (config.n_heads, config.n_kv_heads, config.head_dim)
        kv_width = config.n_kv_heads * config.head_dim
        bias = config.attention_bias != "none"
        self.query = linear(config.d_model, config.n_heads * config.head_dim, bias=bias)
        self.key = linear(config.d_model, kv_width, bias=bias)
        self.value = linear(config.d_model, kv_width, bias=bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.query_norm, self.key_norm = (
                nn.RMSNorm(config.head_dim, eps=config.epsilon, dtype=torch.float32) for _ in range(2)
            )

    def forward(self, x_BTE: Tensor, held: KeyValues, keys: KeyRange) -> tuple[Local, KeyValues]:
        """Project, join with what is held, lay out and rotate. Returns also what is held after the call."""
        n_heads, n_kv_heads, width = self.heads
        layout, n_held = keys.layout, keys.n_held
        kind = held.key.dtype
        made = projected(x_BTE, self.query, self.key, self.value)
        q_RSHD, k_RJKD, v_RJKD = (
            x.unflatten(2, (n, width)) for x, n in zip(made, (n_heads, n_kv_heads, n_kv_heads), strict=True)
        )
        if self.qk_norm:
            q_RSHD, k_RJKD = self.query_norm(q_RSHD), self.key_norm(k_RJKD)
        k_RJKD = torch.cat([held.key, k_RJKD.to(kind)], dim=1)
        v_RJKD = torch.cat([held.value, v_RJKD.to(kind)], dim=1)
        tokens = KeyValues(k_RJKD, v_RJKD)
        held = KeyValues(layout.hold(k_RJKD, n_held), layout.hold(v_RJKD, n_held))
        if layout.streaming:
            k_RJKD, v_RJKD = (x[:, n_held - keys.before :] for x in (k_RJKD, v_RJKD))
        else:
            q_RSHD = layout.fold(q_RSHD).flatten(0, 1)
            k_RJKD, v_RJKD = (
                layout.fold_held(x, n_held, keys.before).flatten(0, 1) for x in (k_RJKD, v_RJKD)
            )
        plain_RSHD = q_RSHD
        q_RSHD = rotate(q_RSHD, keys.query_angles.cos, keys.query_angles.sin)
        k_RJKD = rotate(k_RJKD, keys.key_angles.cos, keys.key_angles.sin)
        return Local(q_RSHD, k_RJKD, v_RJKD, keys, plain_RSHD, tokens), held


def full_attention(local: Local) -> Tensor:
    """A_full of every token: (B, T, H, D)."""
    layout, before = local.range.layout, local.range.before
    if layout.streaming:
        return attend(local.q_RSHD, local.k_RJKD, local.v_RJKD, mask=local.range.seen("full"))
    # The rule of sight on the segment's own cells; those before a row's first new token are filled from what
    # is held.
    out_RSHD = attend(local.q_RSHD, local.k_RJKD[:, before:], local.v_RJKD[:, before:], causal=True)
    return layout.unfold(out_RSHD.unflatten(0, (layout.n_rows, -1)))


def chunked_attention(local: Local) -> Tensor:
    """A_chunk of every token: (B, T, H, D)."""
    config, layout = local.range.config, local.range.layout
    if layout.streaming:
        return attend(local.q_RSHD, local.k_RJKD, local.v_RJKD, mask=local.range.seen("chunked"))
    chunk, lookback = config.chunk_len, config.chunk_lookback
    chunks = fold_chunks(local.q_RSHD, local.k_RJKD, local.v_RJKD, chunk, lookback)
    out_RCHD = (
        attend(*chunks, mask=local.range.seen_in_chunks()) if lookback else attend(*chunks, causal=True)
    )
    return layout.unfold(
        out_RCHD.reshape(layout.n_rows, layout.n_segments, layout.n_cells, *out_RCHD.shape[2:])
    )


def joint_attention(
    local: Local, slots: tuple[Tensor, Tensor, Tensor] | None = None, query_RSHD: Tensor | None = None
) -> Tensor:
    """One softmax over the keys of all streams: (B, T, H, D).

    Args:
        slots: per segment, keys, values (B, N, J, K, D) and bias (B, N, J) or (B, N, J, K) of the slots.
        query_RSHD: what asks the slots; None: the rotated local queries.
    """
    mask_R1SJ = local.range.seen(*local.range.config.local_streams)
    keys = (local.q_RSHD, local.k_RJKD, local.v_RJKD)
    if slots is None:
        out_RSHD = attend(*keys, mask=mask_R1SJ)
    else:
        query_RSHD = local.q_RSHD if query_RSHD is None else query_RSHD
        out_RSHD = attend_slots(*keys, mask_R1SJ, query_RSHD, *(x.flatten(0, 1) for x in slots))
    layout = local.range.layout
    return layout.unfold(out_RSHD.unflatten(0, (layout.n_rows, -1)))


class Fusion(nn.Module):
    """H = sum_i l_i A_i with l = softmax over streams: of a learned scalar each ("scalar", the paper), of
    one per head ("head"), or of a linear map of the token that gives one per head ("token")."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.fusion
        self.shape = (len(config.streams), config.n_heads)
        if self.kind == "token":
            self.map = linear(config.d_model, len(config.streams) * config.n_heads, bias=True)
        elif self.kind != "joint":
            self.logits = parameter(*(self.shape if self.kind == "head" else self.shape[:1]))

    def weights(self, x_BTE: Tensor) -> Tensor:
        """l in at least float32: broadcastable to (A, B, T, H)."""
        if self.kind == "token":
            logits_ABTH = self.map(x_BTE).unflatten(2, self.shape).movedim(2, 0)
        else:
            logits_ABTH = self.logits.view(self.shape[0], 1, 1, -1)
        return at_least_float32(logits_ABTH).softmax(0)

    def forward(self, x_BTE: Tensor, streams: list[Tensor]) -> Tensor:
        """Mix the streams (B, T, H, D) of a block's input x."""
        mixed_BTHD = torch.zeros_like(streams[0])
        for weight_BTH, stream_BTHD in zip(self.weights(x_BTE), streams, strict=True):
            mixed_BTHD = mixed_BTHD + weight_BTH[..., None].to(stream_BTHD.dtype) * stream_BTHD
        return mixed_BTHD
