"""The one loop that reads token ids through a state: rows of any lengths side by side, in pieces of bounded
size.

`scan` is the loop; `read` also gives the logits after each row's last token; `read_row` reads a single row.
All of them read without dropout and without gradients, and leave the model in the mode it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmat.model import LanguageModel, StreamState
from rmat.model.evaluating import evaluating
from rmat.model.language_model import MemoryMode, tokens_to

PIECE_TOKENS = 4096
"""Most tokens of a row that are read in one call."""

PIECE_NUMBERS = 2**21
"""A piece is shorter where a feed-forward network would make more numbers of it than this: 8 MB in float32,
which stay in a processor's caches; and a large model is heard of every few seconds."""

Advance = Callable[[int], None]
"""Called with the number of tokens read since the last call, all rows together."""


@dataclass(frozen=True, eq=False)
class Piece:
    """What one call of the model has read: at most `size` tokens of each row, T of the longest."""

    model: LanguageModel
    rows: tuple[int, ...]
    """Numbers of the B rows that took part."""
    start: int
    """Tokens of each of these rows that were read before."""
    lengths: tuple[int, ...]
    """Tokens of each row in this piece; none for a row that ended before."""
    ended: tuple[int, ...]
    """Places in `rows` of the rows whose last token is in this piece."""
    hidden_BTE: Tensor
    """Hidden vectors for `LanguageModel.logits`; anything at padding, which stands behind each row's
    tokens."""
    state: StreamState
    """State of the rows after this piece."""

    @cached_property
    def logits_BTV(self) -> Tensor:
        """Logits of all places, computed when they are first asked for; anything at padding."""
        return self.model.logits(self.hidden_BTE)


def piece_length(model: LanguageModel, rows: int = 1) -> int:
    """Tokens of a row read in one call beside `rows - 1` others: whole segments for a single row, or less
    than one where segments are very long."""
    segment = model.config.segment_len
    most = min(PIECE_TOKENS, max(segment, PIECE_NUMBERS // model.config.d_ff))
    return max(1, (most - most % segment or most) // rows)


def spans(model: LanguageModel, n_tokens: int, position: int) -> list[slice]:
    """The pieces in which one row that has read `position` tokens reads `n_tokens` more."""
    size = piece_length(model)
    cuts = [0, *range(_first(model, size, position), n_tokens, size), n_tokens]
    return [slice(*cut) for cut in pairwise(cuts)] if n_tokens else []


def _first(model: LanguageModel, size: int, position: int) -> int:
    """Length of the first piece of rows that stand at `position`: pieces of whole segments end where segments
    do, so that none has more segments than it needs."""
    segment = model.config.segment_len
    return size if size % segment else size - position % segment


# no_grad rather than inference_mode: tensors that a model caches, or the state handed out, may enter training
# later.
@torch.no_grad()
def scan(
    model: LanguageModel,
    rows: Sequence[Iterable[int]] | NDArray[Any],
    state: StreamState | None = None,
    *,
    size: int | None = None,
    memory: MemoryMode = "on",
    leave: bool = False,
    each: Callable[[Piece], None] | None = None,
    advance: Advance | None = None,
) -> StreamState:
    """Read every row to its end and return the state (B rows) after their last tokens.

    Args:
        model: stays on its device.
        rows: the ids of B rows, in any mixture of lengths, none among them. Iterators are consumed piece by
            piece, so that memory does not grow with a row's length.
        state: what the B rows have read before; None for nothing. It stays valid.
        size: most tokens of a row in one call; None for `piece_length`.
        memory: "on", or an ablation of the model's memory (`LanguageModel.forward`).
        leave: rows that have ended take no part in later pieces, which saves their time; not with "shuffled",
            where a row's bank is read by its neighbour.
        each: called with each piece, for its logits, hidden vectors or state.
        advance: called after each piece with its number of tokens.

    Raises ValueError for ids that the model has not, or a state of other rows.
    """
    device = next(model.parameters()).device
    present, left, start = list(range(len(rows))), [], 0
    first = None
    if size is None:
        size = piece_length(model, max(1, len(rows)))
        stand = {0} if state is None else set(state.position_on_cpu().tolist())
        first = _first(model, size, stand.pop()) if len(stand) == 1 else None
    taken = _taken(rows, size, first)
    with evaluating(model):
        for ids, following in pairwise(chain(taken, (None,))):
            assert ids is not None
            if (
                leave
                and memory != "shuffled"
                and state is not None
                and not all(len(ids[row]) for row in present)
            ):
                staying = [place for place, row in enumerate(present) if len(ids[row])]
                gone = [place for place, row in enumerate(present) if not len(ids[row])]
                left.append(([present[place] for place in gone], state.select(gone)))
                present, state = [present[place] for place in staying], state.select(staying)
            lengths = tuple(len(ids[row]) for row in present)
            longest = max(lengths)
            grid = np.zeros((len(present), longest), dtype=np.int64)
            for place, row in enumerate(present):
                grid[place, : lengths[place]] = ids[row]
            valid = None
            if min(lengths) < longest:
                valid = torch.from_numpy(np.arange(longest) < np.array(lengths)[:, None])
            tokens = tokens_to(device, torch.from_numpy(grid), model.config.vocab_size)
            hidden_BTE, state = model.hidden(tokens, state, valid=valid, memory=memory)
            if each is not None:
                ended = [
                    p
                    for p, row in enumerate(present)
                    if lengths[p] and not (following and len(following[row]))
                ]
                each(Piece(model, tuple(present), start, lengths, tuple(ended), hidden_BTE, state))
            start += longest
            if advance is not None:
                advance(sum(lengths))
    if state is None:  # there was nothing to read
        return model.initial_state(batch_size=len(rows))
    if not left:
        return state
    order = [*(row for some, _ in left for row in some), *present]
    return StreamState.concat([*(some for _, some in left), state]).select(np.argsort(order).tolist())


def read(
    model: LanguageModel,
    rows: Sequence[Iterable[int]] | NDArray[Any],
    state: StreamState | None = None,
    *,
    size: int | None = None,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> tuple[Tensor, StreamState]:
    """Logits (B, V) after the last token of each row, zero for a row without tokens, and the state.

    Arguments as in `scan`. Raises also `NotFiniteError`.
    """
    found: list[tuple[list[int], Tensor]] = []

    def collect(piece: Piece) -> None:
        if piece.ended:
            ended = list(piece.ended)
            lasts = [piece.lengths[place] - 1 for place in ended]
            # The head at these places alone: with a large vocabulary it costs as much as many layers.
            logits_BV = model.logits(piece.hidden_BTE[ended, lasts])
            found.append(([piece.rows[place] for place in ended], logits_BV))

    state = scan(model, rows, state, size=size, memory=memory, each=collect, advance=advance)
    last_BV = next(model.parameters()).new_zeros(len(rows), model.config.vocab_size)
    for ended, logits_BV in found:
        last_BV[ended] = logits_BV.to(last_BV.dtype)  # narrower under autocast
    check_finite(last_BV)
    return last_BV, state


def read_row(
    model: LanguageModel,
    ids: Sequence[int] | NDArray[Any],
    state: StreamState | None = None,
    *,
    advance: Advance | None = None,
) -> tuple[Tensor, StreamState]:
    """Read a single row of at least one id: logits (V,) after the last token, and the state. Errors as in
    `read`."""
    assert len(ids) > 0, "a row without ids has no last token"
    last_BV, state = read(model, [ids], state, advance=advance)
    return last_BV[0], state


class NotFiniteError(FloatingPointError, ValueError):
    """A model's output is infinite or not a number."""

    def __init__(
        self,
        message: str = "the model's output is not finite: a weight or a carried state is broken (infinite or "
        "not a number); use another checkpoint, start from an empty state, or compute in float32",
    ) -> None:
        super().__init__(message)


def check_finite(values: Tensor) -> None:
    """Raise `NotFiniteError` if not all of `values` are finite."""
    if not bool(values.isfinite().all()):
        raise NotFiniteError


def _taken(
    rows: Iterable[Iterable[int]], size: int, first: int | None = None
) -> Iterator[list[NDArray[np.int64]]]:
    """The next ids of each row, at most `size` (`first` in the first piece), until all rows have ended."""
    if size < 1:
        raise ValueError(f"size={size}: read at least one token at a time")
    iterators, count = [iter(row) for row in rows], first or size
    while True:
        taken = [np.fromiter(islice(iterator, count), dtype=np.int64) for iterator in iterators]
        if not any(map(len, taken)):
            return
        yield taken
        count = size
