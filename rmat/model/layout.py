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

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rmat.model.config import ModelConfig
from rmat.ops.append import append, newest
from rmat.ops.fifo import take_rows
from rmat.settings import once


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the tokens and the segments of a call stand. Integers are int64."""

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

    def map(self, change: Callable[[Tensor], Tensor]) -> Places:
        """The places with `change` applied to every tensor."""
        return Places(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The place of every token of a call; see the module's text.

    It is made on the CPU, from what is known there: a question to a GPU would wait for all its work.
    """

    n_rows: int
    n_tokens: int
    n_segments: int
    n_cells: int
    """Cells of a grid row: segment_len, fewer if the call stays in one segment, n_tokens when streaming."""
    segment_len: int
    streaming: bool
    start: int | None
    """The common position of the rows before the call if all are aligned and whole, else None."""
    closes: bool
    """Whether any segment is completed by this call."""
    reach: int
    """Most tokens of its open segment that any row brings along."""
    device: torch.device
    places: Callable[[], Places]
    """Makes `at`."""
    host: Places | None
    """The same on the CPU where rows are not aligned or not whole; None where they are."""

    @staticmethod
    def of(
        config: ModelConfig,
        position: Tensor,
        n_tokens: int,
        device: torch.device,
        length: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Layout:
        """Lay out a call, for tensors on `device`.

        Args (on the CPU):
            position: (B,) tokens of its document that each row has read before.
            n_tokens: T. length: (B,) how many of them are the row's, the rest is padding behind them; None
                for all.
            resets: (B, T) where a document starts; never at a row's first token, where position 0 says it.
        """
        starts, size = position.tolist(), config.segment_len
        start, host = starts[0], None
        places: Callable[[], Places]
        if length is None and resets is None and min(starts) == max(starts):
            reach = start % size
            places = partial(_aligned, size, start, len(starts), n_tokens, device)
            widest, closes, n_segments = (
                reach + n_tokens,
                reach + n_tokens >= size,
                -(-(reach + n_tokens) // size),
            )
        else:
            start, host = None, _ragged(size, position, n_tokens, length, resets)
            places = partial(host.map, lambda x: x.to(device, non_blocking=True))
            filled = host.offset + host.count
            reach, widest = int(host.offset[:, 0].max()), int(filled.max())
            closes, n_segments = bool((filled == size).any()), host.first.shape[1]
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
            start=start,
            closes=closes,
            reach=reach,
            device=device,
            places=places,
            host=host,
        )

    @once
    def at(self) -> Places:
        """The places, on the device of the call."""
        return self.places()

    @property
    def uniform(self) -> int | None:
        """The common offset of the first token if all rows are aligned and whole, else None."""
        return None if self.start is None else self.reach

    @property
    def single(self) -> bool:
        """Whether the call brings one token to each row, at one place: a step of decoding."""
        return self.streaming and self.start is not None and self.n_tokens == 1

    @once
    def end(self) -> Tensor:
        """(B,) position of each row after the call, on the CPU."""
        if self.host is not None:
            return self.host.end
        assert self.start is not None
        return torch.full((self.n_rows,), self.start + self.n_tokens, device="cpu")

    def repeated(self, times: int) -> Layout:
        """The layout of a batch in which every row stands so many times, one behind the other."""
        places = lambda: self.at.map(lambda x: x.repeat_interleave(times, 0))  # noqa: E731
        return replace(self, n_rows=self.n_rows * times, places=places)

    @once  # all layers ask
    def base(self) -> Tensor:
        """(B, N) flat coordinate of each segment's start."""
        return self.at.first - self.at.offset

    @once
    def closed(self) -> Tensor:
        """(B, N) whether the call completes the segment."""
        return self.at.offset + self.at.count == self.segment_len

    @once
    def open_base(self) -> Tensor:
        """(B,) flat coordinate of the start of the segment that is open after the call."""
        return self.at.length - self.at.end % self.segment_len

    @once
    def cell_offset_BNS(self) -> Tensor:
        """Offset in its segment of every cell, broadcastable to (B, N, S)."""
        cells = torch.arange(self.n_cells, device=self.device)
        return self.at.offset[..., None] + cells if self.streaming else cells.view(1, 1, -1)

    @once
    def live_BNS(self) -> Tensor:
        """Whether a cell holds a token of this call."""
        offset_BN1 = self.at.offset[..., None]
        cell_BNS = self.cell_offset_BNS
        return (cell_BNS >= offset_BN1) & (cell_BNS < offset_BN1 + self.at.count[..., None])

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
        cell = self.at.segment * self.n_cells + self.at.position % self.segment_len
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

    def join(self, held: Tensor, x: Tensor) -> Tensor:
        """Held tokens (B, L, ...) and behind them the call's (B, T, ...), in the type of what is held."""
        return append(held, x) if self.single else torch.cat([held, x.to(held.dtype)], dim=1)

    def hold(self, x: Tensor, n_held: int) -> Tensor:
        """The last `n_held` of each row's held and new tokens (B, n_held + T, ...), padding left out, zero
        where the document is not that long. A copy of many: a state must not keep the tensors of a call
        alive."""
        if self.uniform is not None:
            held = newest(x, n_held)
            return held if self.single else held.clone()
        place = torch.arange(n_held, device=x.device)
        held = take_rows(x, self.at.length[:, None] + place)
        of_document = place >= n_held - self.at.end[:, None]
        return torch.where(of_document.view(*of_document.shape, *[1] * (held.dim() - 2)), held, 0.0)

    def pieces(self) -> Iterator[Piece]:
        """The call cut at segment edges and document starts, for the sequential schedule."""
        for n in range(self.n_segments):
            if (at := self.host) is None:
                start = max(n * self.segment_len - self.reach, 0)
                stop = min((n + 1) * self.segment_len - self.reach, self.n_tokens)
                yield Piece(torch.arange(start, stop, device="cpu").expand(self.n_rows, -1), None, None)
                continue
            length = at.count[:, n]
            cells = torch.arange(max(int(length.max()), 1), device="cpu")
            index = (at.first[:, n, None] + cells).clamp(max=self.n_tokens - 1)
            fresh = (at.document[:, n] != at.document[:, max(n - 1, 0)]) & (length > 0)
            yield Piece(index, length, fresh)


@dataclass(frozen=True)
class Piece:
    """Tokens of at most one segment a row: (B, T) flat coordinates, (B,) lengths, (B,) rows that start a
    document (None: whole, none); on the CPU."""

    index: Tensor
    length: Tensor | None
    fresh: Tensor | None


def _aligned(size: int, start: int, n_rows: int, n_tokens: int, device: torch.device) -> Places:
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
    return Places(
        **{name: x.expand(n_rows, -1) for name, x in row.items()},
        **{name: torch.full((n_rows,), value, device=device) for name, value in ends.items()},
    )


def _ragged(
    size: int, position: Tensor, n_tokens: int, length: Tensor | None, resets: Tensor | None
) -> Places:
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
    return Places(
        length=length,
        position=at,
        segment=segment,
        first=first,
        offset=start_offset,
        count=count,
        prior=torch.where(present, at.gather(1, start), 0) - start_offset,
        document=resets.cumsum(1).gather(1, start),
        end=torch.where(length > 0, at.gather(1, tail)[:, 0] + 1, position),
        last=last,
    )


def _pad(x: Tensor, before: int, after: int) -> Tensor:
    if not before and not after:
        return x
    return F.pad(x, (0, 0) * (x.dim() - 2) + (before, after))
