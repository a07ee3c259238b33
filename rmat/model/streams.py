"""The local attention streams and the fusion of all streams.

    A_full   causal self-attention over the segment
    A_chunk  causal self-attention inside windows of C < S tokens (and the chunk before, with look-back)
    H = sum_i l_i A_i,   (l_1, l_2, l_3) = softmax(w_1, w_2, w_3)

Keys are held before rotation, so that a chunk of the previous segment can be seen at a negative position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmat.model.config import ModelConfig
from rmat.model.layout import Layout
from rmat.model.parameters import linear, parameter, projected
from rmat.model.rotary import Angles, Rotary
from rmat.model.state import KeyValues, Window
from rmat.ops.append import append
from rmat.ops.attention import additive, at_least_float32, attend, attend_slots, fold_chunks, rotate
from rmat.settings import once


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


def sight(config: ModelConfig, layout: Layout, stream: str) -> int:
    """How many tokens a single one sees through a local stream, itself among them."""
    chunk, start = config.chunk_len, layout.start
    assert start is not None
    before = layout.reach if stream == "full" else config.lookback + layout.reach % chunk
    return 1 + min(before, start)


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
    query_angles: Angles
    key_angles: Angles
    make_offsets: Callable[[], tuple[Tensor, Tensor]]
    """Makes `offsets`."""
    _masks: dict[tuple[str, ...], Tensor] = field(default_factory=dict)

    @staticmethod
    def of(config: ModelConfig, name: str, layout: Layout, rotary: Rotary) -> KeyRange:
        """The range of the projections `name` (see `ModelConfig.held`)."""
        n_held, chunk = config.held[name], config.chunk_len
        chunked = "chunked" in config.streams and name != "full"
        before = chunk * config.chunk_lookback if chunked else 0
        first: int | None = 0
        if layout.streaming:
            first, least = layout.uniform, before + layout.reach % chunk
            if layout.single:  # just what is seen
                streams = config.local_streams if name == "shared" else (name,)
                before = max(sight(config, layout, stream) for stream in streams) - 1
            else:
                # Where rows stand at different places, the oldest token that any of them sees.
                before = min(n_held, max(layout.reach, least)) + (0 if first is not None else chunk)
                before = min(n_held, before)
        if first is None:
            query = layout.cell_offset_BNS[:, 0]
            key = torch.cat([layout.at.offset + torch.arange(-before, 0, device=query.device), query], dim=1)
            angles = rotary.at(query, config.n_heads), rotary.at(key, config.n_kv_heads)
            return KeyRange(config, layout, n_held, before, *angles, lambda: (query, key))
        stop = first + layout.n_cells
        angles = (
            rotary.at(slice(first, stop), config.n_heads),
            rotary.at(slice(first - before, stop), config.n_kv_heads),
        )
        offsets = partial(_offsets, first, before, stop, layout.device)
        return KeyRange(config, layout, n_held, before, *angles, offsets)

    @once
    def offsets(self) -> tuple[Tensor, Tensor]:
        """Offsets of the queries and of the keys in the segment, broadcastable to (R, S) and to (R, J)."""
        return self.make_offsets()

    @once
    def least(self) -> Tensor:
        """(R, 1) smallest offset that is still of the same document."""
        return -self.layout.at.prior.flatten()[:, None]

    def seen(self, *streams: str) -> Tensor | None:
        """What to add to logits, so that the given local streams see what they may together: broadcastable
        to (R, 1, S, J); None where they see every key."""
        if self.layout.single:
            return None
        if streams not in self._masks:
            least = self.least[:, None, :, None]
            query, key = self.offsets
            seen = visible(self.config, streams, query[:, None, :, None], key[:, None, None], least)
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


def _offsets(first: int, before: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
    key = torch.arange(first - before, stop, device=device)[None]
    return key[:, before:], key


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
    n_slots: int = 0
    """Slots of the memory that stand before the local keys, where one token is read."""
    bias: Tensor | None = None
    """What is added to the logits of these slots and of what may follow them."""

    def behind(self, slots: tuple[Tensor, Tensor, Tensor]) -> Local:
        """The same with slots before the local keys, for a step of decoding; arguments as in
        `joint_attention`."""
        key_RJKD, value_RJKD, bias = (x.flatten(0, 1) for x in slots)
        bias = bias if bias.dim() == 3 else bias[..., None]
        n_heads = self.q_RSHD.shape[2] if bias.shape[2] > 1 else 1
        bias_RHJ = bias.repeat_interleave(n_heads // bias.shape[2], 2).mT
        return replace(
            self,
            k_RJKD=torch.cat([key_RJKD, self.k_RJKD], dim=1),
            v_RJKD=torch.cat([value_RJKD, self.v_RJKD], dim=1),
            n_slots=key_RJKD.shape[1],
            bias=F.pad(bias_RHJ, (0, self.range.n_held + 1))[:, :, None],
        )

    def window(self, learned: tuple[object, ...]) -> Window:
        """What the next token finds of it."""
        return Window(self.k_RJKD, self.v_RJKD, self.n_slots, self.bias, learned)

    def attend(self, *streams: str) -> Tensor:
        """Attention of a streaming call through local streams: (B, T, H, D)."""
        keys, n_seen = self.range, self.k_RJKD.shape[1]
        if keys.layout.single:
            n_seen = max(sight(keys.config, keys.layout, stream) for stream in streams)
        k_RJKD, v_RJKD = (x[:, -n_seen:] for x in (self.k_RJKD, self.v_RJKD))
        return attend(self.q_RSHD, k_RJKD, v_RJKD, mask=keys.seen(*streams))


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

    def forward(
        self, x_BTE: Tensor, held: KeyValues, keys: KeyRange, window: Window | None = None
    ) -> tuple[Local, KeyValues]:
        """Project, join with what is held, lay out and rotate; or go on with the `window` of the step before.
        Returns also what is held after the call."""
        n_heads, n_kv_heads, width = self.heads
        layout, n_held = keys.layout, keys.n_held
        made = projected(x_BTE, self.query, self.key, self.value)
        q_RSHD, k_RJKD, v_RJKD = (
            x.view(*x.shape[:2], n, width)
            for x, n in zip(made, (n_heads, n_kv_heads, n_kv_heads), strict=True)
        )
        if self.qk_norm:
            q_RSHD, k_RJKD = self.query_norm(q_RSHD), self.key_norm(k_RJKD)
        new = KeyValues(k_RJKD, v_RJKD)
        tokens = KeyValues(layout.join(held.key, k_RJKD), layout.join(held.value, v_RJKD))
        held = KeyValues(layout.hold(tokens.key, n_held), layout.hold(tokens.value, n_held))
        plain_RSHD = q_RSHD if layout.streaming else layout.fold(q_RSHD).flatten(0, 1)
        q_RSHD = rotate(plain_RSHD, keys.query_angles.cos, keys.query_angles.sin)
        angles = keys.key_angles
        if window is not None and window.key.shape[1] - window.n_slots == keys.before:
            k_RJKD = append(window.key, rotate(new.key, angles.cos[-1:], angles.sin[-1:]))
            v_RJKD = append(window.value, new.value)
            local = Local(q_RSHD, k_RJKD, v_RJKD, keys, plain_RSHD, tokens, window.n_slots, window.bias)
            return local, held
        if layout.streaming:
            k_RJKD, v_RJKD = (x[:, n_held - keys.before :] for x in (tokens.key, tokens.value))
        else:
            k_RJKD, v_RJKD = (
                layout.fold_held(x, n_held, keys.before).flatten(0, 1) for x in (tokens.key, tokens.value)
            )
        k_RJKD = rotate(k_RJKD, angles.cos, angles.sin)
        return Local(q_RSHD, k_RJKD, v_RJKD, keys, plain_RSHD, tokens), held


def full_attention(local: Local) -> Tensor:
    """A_full of every token: (B, T, H, D)."""
    layout, before = local.range.layout, local.range.before
    if layout.streaming:
        return local.attend("full")
    # The rule of sight on the segment's own cells; those before a row's first new token are filled from what
    # is held.
    out_RSHD = attend(local.q_RSHD, local.k_RJKD[:, before:], local.v_RJKD[:, before:], causal=True)
    return layout.unfold(out_RSHD.unflatten(0, (layout.n_rows, -1)))


def chunked_attention(local: Local) -> Tensor:
    """A_chunk of every token: (B, T, H, D)."""
    config, layout = local.range.config, local.range.layout
    if layout.streaming:
        return local.attend("chunked")
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
    if local.bias is not None:
        out_RSHD = attend(*keys, mask=local.bias[..., : local.k_RJKD.shape[1]])
    elif slots is None:
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
