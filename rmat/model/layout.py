"""Where every token of a call stands: one idea for resets, padding, ragged rows and arbitrary splits.

Segments and chunks are counted from the start of the document. From the rows' positions, their lengths and
the document starts inside them follows, for every token, its segment and its offset there. Attention and
memory work on the grid of segments (B, N, S); embeddings, feed-forward and head on the flat tokens (B, T).
Where all rows stand at the same place and no document starts inside, the grid is a plain reshape. A call
that adds little to one open segment does without the grid: its queries stay flat and see the held tokens
through a mask (`streaming`).

Coordinates: "flat" counts a row's tokens from 0 at the call's first; tokens held from before have negative
ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

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
    length: Tensor
    """(B,) tokens of each row; what follows them is padding."""
    position: Tensor
    """(B, T) position of a token in its document."""
    segment: Tensor
    """(B, T) segment of this call that holds a token."""
    first: Tensor
    """(B, N) flat coordinate of a segment's first token in this call."""
    offset: Tensor
    """(B, N) offset of that token in its segment."""
    count: Tensor
    """(B, N) tokens that this call adds to the segment."""
    prior: Tensor
    """(B, N) tokens of the same document before the segment."""
    document: Tensor
    """(B, N) document of the segment, counted from 0 for the row's first."""
    end: Tensor
    """(B,) position of each row after the call."""
    last: Tensor
    """(B,) the segment that holds a row's last token."""

    @staticmethod
    def of(
        config: ModelConfig,
        position: Tensor,
        n_tokens: int,
        length: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Layout:
        """Lay out a call.

        Args:
            position: (B,) tokens of its document that each row has read before.
            n_tokens: T. length: (B,) how many of them are the row's, the rest is padding behind them; None
                for all.
            resets: (B, T) where a document starts; never at a row's first token, where position 0 says it.
        """
        starts, size = position.tolist(), config.segment_len
        if length is None and resets is None and min(starts) == max(starts):
            uniform = starts[0] % size
            places = _aligned(size, starts[0], len(starts), n_tokens, position.device)
            reach, widest, closes = uniform, uniform + n_tokens, uniform + n_tokens >= size
        else:
            uniform = None
            places = _ragged(size, position, n_tokens, length, resets)
            filled = places["offset"] + places["count"]
            reach, widest, closes = torch.stack(
                [places["offset"][:, 0].max(), filled.max(), (filled == size).any().long()]
            ).tolist()
        n_segments = places["first"].shape[1]
        n_cells = min(size, -(-max(widest, 1) // config.chunk_len) * config.chunk_len)
        # Streaming scores n_tokens queries against everything held and new without the causal shortcut; a
        # grid row scores half of the square of its cells.
        streaming = n_segments == 1 and 2 * n_tokens * (reach + n_tokens) < n_cells * n_cells
        return Layout(
            n_rows=len(starts),
            n_tokens=n_tokens,
            n_segments=n_segments,
            n_cells=n_tokens if streaming else size if n_segments > 1 else n_cells,
            segment_len=size,
            streaming=streaming,
            uniform=uniform,
            closes=bool(closes),
            reach=reach,
            **places,
        )

    def repeated(self, times: int) -> Layout:
        """The layout of a batch in which every row stands so many times, one behind the other."""
        more: dict[str, Any] = {"n_rows": self.n_rows * times}
        for field in fields(self):
            if isinstance(x := getattr(self, field.name), Tensor):
                more[field.name] = x.repeat_interleave(times, 0)
        return replace(self, **more)

    @cached_property  # all layers ask
    def base(self) -> Tensor:
        """(B, N) flat coordinate of each segment's start."""
        return self.first - self.offset

    @cached_property
    def closed(self) -> Tensor:
        """(B, N) whether the call completes the segment."""
        return self.offset + self.count == self.segment_len

    @cached_property
    def open_base(self) -> Tensor:
        """(B,) flat coordinate of the start of the segment that is open after the call."""
        return self.length - self.end % self.segment_len

    @cached_property
    def cell_offset_BNS(self) -> Tensor:
        """Offset in its segment of every cell, broadcastable to (B, N, S)."""
        cells = torch.arange(self.n_cells, device=self.first.device)
        return self.offset[..., None] + cells if self.streaming else cells.view(1, 1, -1)

    @cached_property
    def live_BNS(self) -> Tensor:
        """Whether a cell holds a token of this call."""
        offset_BN1 = self.offset[..., None]
        cell_BNS = self.cell_offset_BNS
        return (cell_BNS >= offset_BN1) & (cell_BNS < offset_BN1 + self.count[..., None])

    def fold(self, x: Tensor) -> Tensor:
        """Flat tokens (B, T, ...) to cells (B, N, S, ...); cells without a token hold anything finite."""
        if self.streaming:
            return x[:, None]
        if self.uniform is not None:
            after = self.n_segments * self.n_cells - self.uniform - self.n_tokens
            return _pad(x, self.uniform, after).reshape(
                self.n_rows, self.n_segments, self.n_cells, *x.shape[2:]
            )
        return self.fold_held(x, 0, 0)

    def unfold(self, x: Tensor) -> Tensor:
        """Cells (B, N, S, ...) back to flat tokens (B, T, ...)."""
        if self.streaming:
            return x[:, 0]
        x = x.reshape(self.n_rows, self.n_segments * self.n_cells, *x.shape[3:])
        if self.uniform is not None:
            return x[:, self.uniform : self.uniform + self.n_tokens]
        cell = self.segment * self.n_cells + self.position % self.segment_len
        return take_rows(x, cell.clamp(max=x.shape[1] - 1))

    def fold_held(self, x: Tensor, n_held: int, before: int) -> Tensor:
        """Held and new tokens (B, n_held + T, ...) to the cells of every segment and the `before` tokens
        ahead of it: (B, N, before + S, ...). Not for streaming layouts."""
        if self.uniform is None:
            cells = torch.arange(-before, self.n_cells, device=x.device)
            index_BNS = (n_held + self.base[..., None] + cells).clamp(0, x.shape[1] - 1)
            return take_rows(x, index_BNS)
        start = n_held - self.uniform - before
        stop = start + before + self.n_segments * self.n_cells
        x = _pad(x[:, max(start, 0) : stop], max(-start, 0), max(stop - x.shape[1], 0))
        shape = (self.n_rows, self.n_segments, self.n_cells, *x.shape[2:])
        own = x[:, before:].reshape(shape)
        if not before:
            return own
        ahead = x[:, : self.n_segments * self.n_cells].reshape(shape)[:, :, :before]
        return torch.cat([ahead, own], dim=2)

    def hold(self, x: Tensor, n_held: int) -> Tensor:
        """The last `n_held` of each row's held and new tokens (B, n_held + T, ...), padding left out, zero
        where the document is not that long. A copy: a state must not keep the tensors of a call alive."""
        if self.uniform is not None:
            return x[:, x.shape[1] - n_held :].clone()
        place = torch.arange(n_held, device=x.device)
        held = take_rows(x, self.length[:, None] + place)
        of_document = place >= n_held - self.end[:, None]
        return torch.where(of_document.view(*of_document.shape, *[1] * (held.dim() - 2)), held, 0.0)

    def pieces(self) -> Iterator[Piece]:
        """The call cut at segment edges and document starts, for the sequential schedule."""
        for n in range(self.n_segments):
            if self.uniform is not None:
                start = max(n * self.segment_len - self.uniform, 0)
                stop = min((n + 1) * self.segment_len - self.uniform, self.n_tokens)
                index = torch.arange(start, stop, device=self.first.device).expand(self.n_rows, -1)
                yield Piece(index, None, None)
                continue
            length = self.count[:, n]
            cells = torch.arange(max(int(length.max()), 1), device=length.device)
            index = (self.first[:, n, None] + cells).clamp(max=self.n_tokens - 1)
            fresh = (self.document[:, n] != self.document[:, max(n - 1, 0)]) & (length > 0)
            yield Piece(index, length, fresh)


@dataclass(frozen=True)
class Piece:
    """Tokens of at most one segment a row: (B, T) flat coordinates, (B,) lengths, (B,) rows that start a
    document (None: whole, none)."""

    index: Tensor
    length: Tensor | None
    fresh: Tensor | None


def _aligned(size: int, start: int, n_rows: int, n_tokens: int, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a layout whose rows all stand at `start`, with no document start and no padding:
    arithmetic only."""
    offset = start % size
    n = torch.arange((offset + n_tokens - 1) // size + 1, device=device)
    t = torch.arange(n_tokens, device=device)
    base = n * size - offset
    first = base.clamp(min=0)
    row = {
        "position": start + t,
        "segment": (offset + t) // size,
        "first": first,
        "offset": first - base,
        "count": (base + size).clamp(max=n_tokens) - first,
        "prior": start - offset + n * size,
        "document": torch.zeros_like(n),
    }
    ends = {"length": n_tokens, "end": start + n_tokens, "last": len(n) - 1}
    return {name: x.expand(n_rows, -1) for name, x in row.items()} | {
        name: torch.full((n_rows,), value, device=device) for name, value in ends.items()
    }


def _ragged(
    size: int, position: Tensor, n_tokens: int, length: Tensor | None, resets: Tensor | None
) -> dict[str, Tensor]:
    """The tensors of any layout; the arguments are those of `Layout.of`."""
    n_rows, device = position.shape[0], position.device
    if length is None:
        length = torch.full((n_rows,), n_tokens, device=device)
    t = torch.arange(n_tokens, device=device)
    live = t < length[:, None]
    resets = torch.zeros_like(live) if resets is None else resets & live
    reset_at = torch.where(resets, t, -1).cummax(1).values
    at = torch.where(reset_at >= 0, t - reset_at, position[:, None] + t)
    offset = at % size
    opens = live & (resets | (offset == 0) | (t == 0))
    segment = (opens.cumsum(1) - 1).clamp(min=0)
    tail = (length - 1).clamp(min=0)[:, None]
    last = segment.gather(1, tail)[:, 0]
    n_segments = int(last.max()) + 1

    spare = torch.where(opens, segment, n_segments)
    first = length[:, None].repeat(1, n_segments + 1)
    first[:, 0] = 0
    first = first.scatter(1, spare, t.expand(n_rows, -1))[:, :n_segments]
    count = torch.zeros_like(first).scatter_add(1, segment.clamp(max=n_segments - 1), live.long())
    present = torch.arange(n_segments, device=device) <= last[:, None]
    start = first.clamp(max=n_tokens - 1)
    start_offset = torch.where(present, offset.gather(1, start), 0)
    return {
        "length": length,
        "position": at,
        "segment": segment,
        "first": first,
        "offset": start_offset,
        "count": count,
        "prior": torch.where(present, at.gather(1, start), 0) - start_offset,
        "document": resets.cumsum(1).gather(1, start),
        "end": torch.where(length > 0, at.gather(1, tail)[:, 0] + 1, position),
        "last": last,
    }


def _pad(x: Tensor, before: int, after: int) -> Tensor:
    if not before and not after:
        return x
    return F.pad(x, (0, 0) * (x.dim() - 2) + (before, after))
