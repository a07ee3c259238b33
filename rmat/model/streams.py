"""The local attention streams and the fusion of all streams.

    A_full   causal self-attention over the segment
    A_chunk  causal self-attention inside windows of C < S tokens (and the chunk before, with look-back)
    H = sum_i l_i A_i,   (l_1, l_2, l_3) = softmax(w_1, w_2, w_3)

Keys are held before rotation, so that a chunk of the previous segment can be seen at a negative position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmat.model.config import ModelConfig
from rmat.model.layout import Layout
from rmat.model.rotary import Rotary
from rmat.ops.attention import at_least_float32, attend, fold_chunks, rotate


@dataclass(frozen=True)
class Local:
    """Queries, keys and values of one set of projections, laid out for attention inside segments.

    R = B * N. Keys and values reach `before` tokens back from the segment's first cell (or from the first new token
    when streaming); everything is rotated.
    """

    q_RSHD: Tensor
    k_RJKD: Tensor
    v_RJKD: Tensor
    before: int
    offset_q: Tensor
    """Offsets of the queries in the segment, broadcastable to (R, S)."""
    offset_k: Tensor
    """Offsets of the keys, negative before the segment, broadcastable to (R, J)."""
    least_R1: Tensor
    """Smallest offset that is still of the same document."""


class LocalProjection(nn.Module):
    """Query, key and value projections of one local stream, or of both when they share them."""

    def __init__(self, config: ModelConfig, name: str) -> None:
        super().__init__()
        self.config = config
        self.n_held = config.held[name]
        self.lookback = (
            config.chunk_len * config.chunk_lookback if "chunked" in config.streams and name != "full" else 0
        )
        kv_width = config.n_kv_heads * config.head_dim
        self.query = nn.Linear(config.d_model, config.n_heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.d_model, kv_width, bias=False)
        self.value = nn.Linear(config.d_model, kv_width, bias=False)

    def forward(
        self, x_BTE: Tensor, held_key: Tensor, held_value: Tensor, layout: Layout, rotary: Rotary
    ) -> tuple[Local, Tensor, Tensor]:
        """Project, join with what is held (B, L, K, D), lay out and rotate. Returns also the new held pair."""
        heads = (self.config.n_kv_heads, self.config.head_dim)
        q_BTHD = self.query(x_BTE).unflatten(2, (self.config.n_heads, self.config.head_dim))
        key_BXKD = torch.cat([held_key, self.key(x_BTE).unflatten(2, heads).to(held_key.dtype)], dim=1)
        value_BXKD = torch.cat([held_value, self.value(x_BTE).unflatten(2, heads).to(held_key.dtype)], dim=1)
        held = (layout.hold(key_BXKD, self.n_held), layout.hold(value_BXKD, self.n_held))
        least_R1 = -layout.prior_BN.flatten()[:, None]
        if layout.streaming:
            before = min(self.n_held, max(layout.reach, self.lookback + layout.reach % self.config.chunk_len))
            before = min(self.n_held, before + self.config.chunk_len if layout.uniform is None else before)
            key_BXKD, value_BXKD = (x[:, self.n_held - before :] for x in (key_BXKD, value_BXKD))
            offset_q = layout.cell_offset_BNS[:, 0]
            back = torch.arange(-before, 0, device=offset_q.device)
            offset_k = torch.cat([layout.offset_BN + back, offset_q], dim=1)
            at_q, at_k = rotary.queries(offset_q), rotary.keys(offset_k)
            q_RSHD = q_BTHD
        else:
            before = self.lookback
            q_RSHD = layout.fold(q_BTHD).flatten(0, 1)
            key_BXKD, value_BXKD = (
                layout.fold_held(x, self.n_held, before).flatten(0, 1) for x in (key_BXKD, value_BXKD)
            )
            offset_q = torch.arange(layout.n_cells, device=least_R1.device)[None]
            offset_k = torch.arange(-before, layout.n_cells, device=least_R1.device)[None]
            at_q, at_k = rotary.queries(slice(0, layout.n_cells)), rotary.keys(slice(-before, layout.n_cells))
        q_RSHD = rotate(q_RSHD, at_q.cos, at_q.sin)
        k_RJKD = rotate(key_BXKD, at_k.cos, at_k.sin)
        local = Local(q_RSHD, k_RJKD, value_BXKD, before, offset_q, offset_k, least_R1)
        return local, *held


def seen(config: ModelConfig, local: Local, streams: tuple[str, ...]) -> Tensor:
    """Which keys the given local streams see together: bool, broadcastable to (R, S, J)."""
    query, key = local.offset_q[:, :, None], local.offset_k[:, None]
    chunk = config.chunk_len
    start = torch.full_like(query, torch.iinfo(torch.int64).max)
    if "full" in streams:
        start = torch.zeros_like(query)
    if "chunked" in streams:
        start = torch.minimum(start, (query // chunk - config.chunk_lookback) * chunk)
    return (key <= query) & (key >= start) & (key >= local.least_R1[..., None])


def full_attention(config: ModelConfig, local: Local, layout: Layout) -> Tensor:
    """A_full of every token: (B, T, H, D)."""
    if layout.streaming:
        mask = seen(config, local, ("full",))[:, None]
        return attend(local.q_RSHD, local.k_RJKD, local.v_RJKD, mask=mask)
    own = slice(local.before, None)  # held cells before a row's first new token are filled from what is held
    out_RSHD = attend(local.q_RSHD, local.k_RJKD[:, own], local.v_RJKD[:, own], causal=True)
    return layout.unfold(out_RSHD.unflatten(0, (layout.n_rows, -1)))


def chunked_attention(config: ModelConfig, local: Local, layout: Layout) -> Tensor:
    """A_chunk of every token: (B, T, H, D)."""
    if layout.streaming:
        mask = seen(config, local, ("chunked",))[:, None]
        return attend(local.q_RSHD, local.k_RJKD, local.v_RJKD, mask=mask)
    chunk, lookback = config.chunk_len, config.chunk_lookback
    q, k, v = fold_chunks(local.q_RSHD, local.k_RJKD, local.v_RJKD, chunk, lookback)
    if not lookback:
        out = attend(q, k, v, causal=True)
    else:
        n_chunks = layout.n_cells // chunk
        cells = torch.arange(chunk, device=q.device)
        causal = torch.cat([torch.ones_like(cells[:, None] > cells), cells[:, None] >= cells], dim=1)
        first_R = torch.arange(q.shape[0], device=q.device) % n_chunks == 0
        alone_R = first_R & (local.least_R1 == 0).repeat_interleave(n_chunks, 0)[:, 0]
        back = torch.arange(2 * chunk, device=q.device) < chunk
        out = attend(q, k, v, mask=causal & ~(alone_R[:, None, None, None] & back))
    return layout.unfold(out.reshape(layout.n_rows, layout.n_segments, layout.n_cells, *out.shape[2:]))


def joint_attention(
    config: ModelConfig,
    local: Local,
    layout: Layout,
    memory: tuple[Tensor, Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """One softmax over the keys of all streams: (B, T, H, D).

    Local logits need rotated queries, memory logits queries of their own: both stand side by side in a head of
    double width, and a key is zero in the half that is not meant for it.

    Args:
        memory: query (B, T, H, D) and, per segment, keys, values (B, N, J, K, D) and bias (B, N, J) of the slots.
    """
    visible = seen(config, local, config.local_streams)
    if memory is None:
        out_RSHD = attend(local.q_RSHD, local.k_RJKD, local.v_RJKD, mask=visible[:, None])
        return layout.unfold(out_RSHD.unflatten(0, (layout.n_rows, -1)))
    query_BTHD, slot_key, slot_value, slot_bias = memory
    query_RSHD = layout.fold(query_BTHD).flatten(0, 1)
    slot_key, slot_value, slot_bias = (x.flatten(0, 1) for x in (slot_key, slot_value, slot_bias))
    q = (
        torch.cat([local.q_RSHD, query_RSHD], dim=3) * 2**0.5
    )  # attend divides by the root of the double width
    k_local = torch.cat([local.k_RJKD, torch.zeros_like(local.k_RJKD)], dim=3)
    k_slots = torch.cat([torch.zeros_like(slot_key), slot_key], dim=3)
    k = torch.cat([k_slots, k_local], dim=1)
    v = torch.cat([slot_value, local.v_RJKD], dim=1)
    bias_RJ = torch.cat([slot_bias, slot_bias.new_zeros(q.shape[0], local.k_RJKD.shape[1])], dim=1)
    visible = visible.expand(q.shape[0], q.shape[1], -1)
    visible = torch.cat([visible.new_ones(*visible.shape[:2], slot_key.shape[1]), visible], dim=2)
    v = torch.cat([v, torch.zeros_like(v)], dim=3)
    out = attend(q, k, v, mask=visible[:, None], key_bias_BJ=bias_RJ)[..., : config.head_dim]
    return layout.unfold(out.unflatten(0, (layout.n_rows, -1)))


class Fusion(nn.Module):
    """H = sum_i l_i A_i with l = softmax over streams: of a learned scalar each ("scalar", the paper), of one per
    head ("head"), or of a linear map of the token that gives one per head ("token")."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.fusion
        self.shape = (len(config.streams), config.n_heads)
        if self.kind == "scalar":
            self.logits = nn.Parameter(torch.empty(len(config.streams)))
        elif self.kind == "head":
            self.logits = nn.Parameter(torch.empty(self.shape))
        elif self.kind == "token":
            self.map = nn.Linear(config.d_model, len(config.streams) * config.n_heads)

    def weights(self, x_BTE: Tensor) -> Tensor:
        """l in at least float32: broadcastable to (A, B, T, H)."""
        if self.kind == "token":
            logits = self.map(x_BTE).unflatten(2, self.shape).movedim(2, 0)
        else:
            logits = self.logits.view(self.shape[0], 1, 1, -1)
        return at_least_float32(logits).softmax(0)

    def forward(self, x_BTE: Tensor, streams: list[Tensor]) -> Tensor:
        """Mix the streams (B, T, H, D) of a block's input x."""
        mixed = torch.zeros_like(streams[0])
        for weight, stream in zip(self.weights(x_BTE), streams, strict=True):
            mixed = mixed + weight[..., None].to(stream.dtype) * stream
        return mixed
