"""Where every token of a call stands: one idea for resets, padding, ragged rows and arbitrary splits.

Segments and chunks are counted from the start of the document. From the rows' positions, their lengths and the
document starts inside them follows, for every token, its segment and its offset there. Attention and memory work on
the grid of segments (B, N, S); embeddings, feed-forward and head on the flat tokens (B, T). Where all rows stand at
the same place and no document starts inside, the grid is a plain reshape. A call that adds little to one open segment
does without the grid: its queries stay flat and see the held tokens through a mask (`streaming`).

Coordinates: "flat" counts a row's tokens from 0 at the call's first; tokens held from before have negative ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from rmat.model.config import ModelConfig
from rmat.ops.fifo import take_rows


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The place of every token of a call; see the module's text. Integers are int64."""

    n_rows: int
    n_tokens: int
    n_segments: int
    n_cells: int
    """Cells of a grid row: segment_len, fewer if the call stays in one segment, n_tokens when streaming."""
    segment_len: int
    streaming: bool
    uniform: int | None
    """The common offset of the first token if all rows are aligned and whole, else None."""
    closes: bool
    """Whether any segment is completed by this call."""
    reach: int
    """Most tokens of its open segment that any row brings along."""
    length_B: Tensor
    """Tokens of each row; what follows them is padding."""
    position_BT: Tensor
    """Position of a token in its document."""
    segment_BT: Tensor
    """Segment (of this call) of a token."""
    first_BN: Tensor
    """Flat coordinate of a segment's first token in this call."""
    offset_BN: Tensor
    """Offset of that token in its segment."""
    count_BN: Tensor
    """Tokens that this call adds to the segment."""
    prior_BN: Tensor
    """Tokens of the same document before the segment."""
    document_BN: Tensor
    """Document of the segment, counted from 0 for the row's first."""
    end_B: Tensor
    """Position of each row after the call."""
    last_B: Tensor
    """The segment that holds a row's last token."""

    @cached_property  # all layers ask
    def base_BN(self) -> Tensor:
        """Flat coordinate of each segment's start."""
        return self.first_BN - self.offset_BN

    @cached_property
    def closes_BN(self) -> Tensor:
        """Whether the call completes the segment."""
        return self.offset_BN + self.count_BN == self.segment_len

    @cached_property
    def open_base_B(self) -> Tensor:
        """Flat coordinate of the start of the segment that is open after the call."""
        return self.length_B - self.end_B % self.segment_len

    @cached_property
    def cell_offset_BNS(self) -> Tensor:
        """Offset in its segment of every cell, broadcastable to (B, N, S)."""
        cells = torch.arange(self.n_cells, device=self.first_BN.device)
        return self.offset_BN[..., None] + cells if self.streaming else cells.view(1, 1, -1)

    @cached_property
    def live_BNS(self) -> Tensor:
        """Whether a cell holds a token of this call."""
        offset = self.offset_BN[..., None]
        cell = self.cell_offset_BNS
        return (cell >= offset) & (cell < offset + self.count_BN[..., None])

    def fold(self, x_BTE: Tensor) -> Tensor:
        """Flat tokens (B, T, ...) to cells (B, N, S, ...); cells without a token hold anything finite."""
        if self.streaming:
            return x_BTE[:, None]
        if self.uniform is not None:
            after = self.n_segments * self.n_cells - self.uniform - self.n_tokens
            return _pad(x_BTE, self.uniform, after).reshape(
                self.n_rows, self.n_segments, self.n_cells, *x_BTE.shape[2:]
            )
        return self.fold_held(x_BTE, 0, 0)

    def unfold(self, y_BNSE: Tensor) -> Tensor:
        """Cells (B, N, S, ...) back to flat tokens (B, T, ...)."""
        if self.streaming:
            return y_BNSE[:, 0]
        y_BXE = y_BNSE.reshape(self.n_rows, self.n_segments * self.n_cells, *y_BNSE.shape[3:])
        if self.uniform is not None:
            return y_BXE[:, self.uniform : self.uniform + self.n_tokens]
        cell_BT = self.segment_BT * self.n_cells + self.position_BT % self.segment_len
        return take_rows(y_BXE, cell_BT.clamp(max=y_BXE.shape[1] - 1))

    def fold_held(self, x_BXE: Tensor, n_held: int, before: int) -> Tensor:
        """Held and new tokens (B, n_held + T, ...) to the cells of every segment and the `before` tokens ahead of it:
        (B, N, before + S, ...). Not for streaming layouts."""
        if self.uniform is None:
            cells = torch.arange(-before, self.n_cells, device=x_BXE.device)
            index_BNS = (n_held + self.base_BN[..., None] + cells).clamp(0, x_BXE.shape[1] - 1)
            return take_rows(x_BXE, index_BNS)
        start = n_held - self.uniform - before
        stop = start + before + self.n_segments * self.n_cells
        x_BXE = _pad(x_BXE[:, max(start, 0) : stop], max(-start, 0), max(stop - x_BXE.shape[1], 0))
        shape = (self.n_rows, self.n_segments, self.n_cells, *x_BXE.shape[2:])
        cells_BNSE = x_BXE[:, before:].reshape(shape)
        if not before:
            return cells_BNSE
        ahead = x_BXE[:, : self.n_segments * self.n_cells].reshape(shape)[:, :, :before]
        return torch.cat([ahead, cells_BNSE], dim=2)

    def hold(self, x_BXE: Tensor, n_held: int) -> Tensor:
        """The last `n_held` of each row's held and new tokens (B, n_held + T, ...), padding left out, zero where the
        document is not that long. A copy: a state must not keep the tensors of a call alive."""
        if self.uniform is not None:
            return x_BXE[:, x_BXE.shape[1] - n_held :].clone()
        place = torch.arange(n_held, device=x_BXE.device)
        held = take_rows(x_BXE, self.length_B[:, None] + place)
        of_document = place >= n_held - self.end_B[:, None]
        return torch.where(of_document.view(*of_document.shape, *[1] * (held.dim() - 2)), held, 0.0)

    def pieces(self) -> Iterator[Piece]:
        """The call cut at segment edges and document starts, for the sequential schedule."""
        for n in range(self.n_segments):
            if self.uniform is not None:
                start = max(n * self.segment_len - self.uniform, 0)
                stop = min((n + 1) * self.segment_len - self.uniform, self.n_tokens)
                index = torch.arange(start, stop, device=self.first_BN.device).expand(self.n_rows, -1)
                yield Piece(index, None, None)
                continue
            length_B = self.count_BN[:, n]
            cells = torch.arange(max(int(length_B.max()), 1), device=length_B.device)
            index = (self.first_BN[:, n, None] + cells).clamp(max=self.n_tokens - 1)
            fresh_B = (self.document_BN[:, n] != self.document_BN[:, max(n - 1, 0)]) & (length_B > 0)
            yield Piece(index, length_B, fresh_B)


@dataclass(frozen=True)
class Piece:
    """Tokens of at most one segment a row: flat coordinates, lengths, rows that start a document (None: whole, none)."""

    index_BT: Tensor
    length_B: Tensor | None
    fresh_B: Tensor | None


def make_layout(
    config: ModelConfig, position_B: Tensor, n_tokens: int, length_B: Tensor | None, resets_BT: Tensor | None
) -> Layout:
    """Lay out a call.

    Args:
        position_B: tokens of its document that each row has read before.
        n_tokens: T. length_B: how many of them are the row's (the rest is padding behind them); None for all.
        resets_BT: where a document starts; never at a row's first token, where `position_B` = 0 says it.
    """
    starts = position_B.tolist()
    size = config.segment_len
    if length_B is None and resets_BT is None and min(starts) == max(starts):
        return _uniform(config, starts[0], len(starts), n_tokens, position_B.device)
    n_rows, device = len(starts), position_B.device
    if length_B is None:
        length_B = torch.full((n_rows,), n_tokens, device=device)
    t = torch.arange(n_tokens, device=device)
    live_BT = t < length_B[:, None]
    resets_BT = torch.zeros_like(live_BT) if resets_BT is None else resets_BT & live_BT
    reset_at_BT = torch.where(resets_BT, t, -1).cummax(1).values
    position_BT = torch.where(reset_at_BT >= 0, t - reset_at_BT, position_B[:, None] + t)
    offset_BT = position_BT % size
    opens_BT = live_BT & (resets_BT | (offset_BT == 0) | (t == 0))
    segment_BT = (opens_BT.cumsum(1) - 1).clamp(min=0)
    tail_B = (length_B - 1).clamp(min=0)[:, None]
    last_B = segment_BT.gather(1, tail_B)[:, 0]
    n_segments = int(last_B.max()) + 1

    spare = torch.where(opens_BT, segment_BT, n_segments)
    first_BN = length_B[:, None].repeat(1, n_segments + 1)
    first_BN[:, 0] = 0
    first_BN = first_BN.scatter(1, spare, t.expand(n_rows, -1))[:, :n_segments]
    count_BN = torch.zeros_like(first_BN).scatter_add(1, segment_BT.clamp(max=n_segments - 1), live_BT.long())
    present_BN = torch.arange(n_segments, device=device) <= last_B[:, None]
    at_BN = first_BN.clamp(max=n_tokens - 1)
    offset_BN = torch.where(present_BN, offset_BT.gather(1, at_BN), 0)
    prior_BN = torch.where(present_BN, position_BT.gather(1, at_BN), 0) - offset_BN
    ends_B = torch.where(length_B > 0, position_BT.gather(1, tail_B)[:, 0] + 1, position_B)
    reach, widest, closes = torch.stack(
        [offset_BN[:, 0].max(), (offset_BN + count_BN).max(), (offset_BN + count_BN == size).any().long()]
    ).tolist()
    streaming, n_cells = _shape(config, n_segments, n_tokens, reach, widest)
    return Layout(
        n_rows=n_rows,
        n_tokens=n_tokens,
        n_segments=n_segments,
        n_cells=n_cells,
        segment_len=size,
        streaming=streaming,
        uniform=None,
        closes=bool(closes),
        reach=reach,
        length_B=length_B,
        position_BT=position_BT,
        segment_BT=segment_BT,
        first_BN=first_BN,
        offset_BN=offset_BN,
        count_BN=count_BN,
        prior_BN=prior_BN,
        document_BN=resets_BT.cumsum(1).gather(1, at_BN),
        end_B=ends_B,
        last_B=last_B,
    )


def _uniform(config: ModelConfig, start: int, n_rows: int, n_tokens: int, device: torch.device) -> Layout:
    """The layout of rows that all stand at `start`, with no document start and no padding: arithmetic only."""
    size = config.segment_len
    offset = start % size
    n_segments = (offset + n_tokens - 1) // size + 1
    n = torch.arange(n_segments, device=device)
    t = torch.arange(n_tokens, device=device)
    base_N = n * size - offset
    first_N = base_N.clamp(min=0)
    count_N = (base_N + size).clamp(max=n_tokens) - first_N
    streaming, n_cells = _shape(config, n_segments, n_tokens, offset, offset + n_tokens)

    def rows(x: Tensor) -> Tensor:
        return x.expand(n_rows, *x.shape)

    return Layout(
        n_rows=n_rows,
        n_tokens=n_tokens,
        n_segments=n_segments,
        n_cells=n_cells,
        segment_len=size,
        streaming=streaming,
        uniform=offset,
        closes=offset + n_tokens >= size,
        reach=offset,
        length_B=torch.full((n_rows,), n_tokens, device=device),
        position_BT=rows(start + t),
        segment_BT=rows((offset + t) // size),
        first_BN=rows(first_N),
        offset_BN=rows(first_N - base_N),
        count_BN=rows(count_N),
        prior_BN=rows(start - offset + n * size),
        document_BN=rows(torch.zeros_like(n)),
        end_B=torch.full((n_rows,), start + n_tokens, device=device),
        last_B=torch.full((n_rows,), n_segments - 1, device=device),
    )


def _shape(config: ModelConfig, n_segments: int, n_tokens: int, reach: int, widest: int) -> tuple[bool, int]:
    """Whether to stream, and the cells of a grid row. Streaming scores n_tokens queries against everything held and
    new without the causal shortcut; a grid row scores half of the square of its cells."""
    if n_segments > 1:
        return False, config.segment_len
    n_cells = min(config.segment_len, -(-max(widest, 1) // config.chunk_len) * config.chunk_len)
    if 2 * n_tokens * (reach + n_tokens) < n_cells * n_cells:
        return True, n_tokens
    return False, n_cells


def _pad(x_BTE: Tensor, before: int, after: int) -> Tensor:
    if not before and not after:
        return x_BTE
    return F.pad(x_BTE, (0, 0) * (x_BTE.dim() - 2) + (before, after))
