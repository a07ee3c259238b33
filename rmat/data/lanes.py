"""Documents as continuing rows: row i of a batch goes on where row i of the batch before it stopped.

    store -> order of an epoch (shuffled by seed) -> documents dealt to rows -> windows of T tokens

Every iterator yields (item, state), and from that state the same items follow as if nothing had happened.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmat.data.documents import said_by_assistant
from rmat.data.fim import rearrange
from rmat.data.store import TokenStore
from rmat.data.tokenizer import Tokenizer

Supply = TypeVar("Supply")
"""What documents are dealt from, and how far."""

State = TypeVar("State")
"""Where rows and documents stand; JSON-able through `to_dict`."""

IGNORED = -100
"""Target of a position that is not scored."""

MOST_NEIGHBOURS = 3
"""A file stands behind so many others of its folder at most."""


@dataclass(frozen=True)
class Batch:
    """A window of every row."""

    tokens: Tensor
    """(B, T) int64."""

    targets: Tensor
    """(B, T) int64: the next token; at a document's last token that is the document token. `IGNORED` where
    nothing is scored."""

    resets: Tensor
    """(B, T) bool: a document begins at this token."""


@dataclass(frozen=True, kw_only=True)
class LaneState:
    """Where the rows stand; small, and JSON-able through `to_dict`."""

    lanes: str
    """Fingerprint of the lanes it belongs to."""

    rows: tuple[tuple[int, int, int], ...]
    """Of each row (group, ordinal of the document among those dealt from the group, tokens read of it)."""

    dealt: tuple[tuple[int, int], ...]
    """Of each group of documents (documents dealt, tokens dealt)."""

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LaneState:
        """The state of `to_dict`, also after a way through JSON. Raises ValueError for anything else."""
        try:
            return cls(
                lanes=str(values["lanes"]),
                rows=tuple(
                    (int(group), int(ordinal), int(offset)) for group, ordinal, offset in values["rows"]
                ),
                dealt=tuple((int(documents), int(tokens)) for documents, tokens in values["dealt"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"this is no state of data lanes ({error!r}); resume from a whole checkpoint"
            ) from None


class ContinuingRows(ABC, Generic[Supply, State]):
    """Endless windows of rows, each of which goes on where it stopped; which document a row takes next is for
    the subclass to say.

    Args:
        batch_size: rows, B.
        window: tokens of a row in a batch, T.
        assistant_only_loss: whether of a dialogue only the assistant's turns are scored.
        tokenizer: needed with `assistant_only_loss` and `fim_rate`.
        fim_rate: share of documents rearranged for fill-in-the-middle.
        rows: the rows that are made, as where processes share a batch; None for all. Of the others only their
            places are kept.

    Raises ValueError for sizes below 1, and where the tokenizer does not do.
    """

    def __init__(
        self,
        batch_size: int,
        window: int,
        assistant_only_loss: bool,
        tokenizer: Tokenizer | None,
        fim_rate: float,
        rows: range | None,
    ) -> None:
        for field, value in (("batch_size", batch_size), ("window", window)):
            if value < 1:
                raise ValueError(f"lanes: {field} must be at least 1, got {value}")
        if fim_rate > 0 and tokenizer is None:
            raise ValueError(
                f"lanes: fim_rate {fim_rate} needs the tokenizer, for its special tokens; pass tokenizer="
            )
        if fim_rate > 0 and tokenizer is not None and not tokenizer.concatenates:
            raise ValueError(
                f"lanes: fim_rate {fim_rate} cuts texts, which this tokenizer cannot join: it puts a blank "
                "in front of each; "
                "use 'bytes' or 'bpe:N', or set data.fim_rate=0"
            )
        if assistant_only_loss and tokenizer is None:
            raise ValueError(
                "lanes: assistant_only_loss needs the tokenizer; set data.assistant_only_loss=false"
            )
        if assistant_only_loss and tokenizer is not None:
            _ = tokenizer.answer_opening  # raises where nothing tells who speaks
        self.batch_size, self.window = batch_size, window
        self._rows = range(batch_size) if rows is None else rows
        self._fim_rate, self._tokenizer = fim_rate, tokenizer
        self._assistant_only = assistant_only_loss
        self._document_token = 0
        """Opens every document."""

    @abstractmethod
    def _deal(self, supply: Supply, own: bool) -> Row:
        """A row at the start of the next document, which is counted in `supply`."""

    @abstractmethod
    def _state(self, supply: Supply, rows: Sequence[Row]) -> State:
        """Where all of it stands."""

    def _batches(self, supply: Supply, rows: list[Row]) -> Iterator[tuple[Batch, State]]:
        while True:
            tokens = np.empty((len(self._rows), self.window + 1), dtype=np.int64)
            scored = np.ones(tokens.shape, dtype=np.bool_)
            resets = np.zeros((len(self._rows), self.window), dtype=np.bool_)
            for index in range(self.batch_size):
                own = index in self._rows
                if index == len(rows):
                    rows.append(self._deal(supply, own))
                place = index - self._rows.start
                window = (tokens[place], scored[place], resets[place]) if own else None
                rows[index] = self._fill(rows[index], supply, window)
            yield (
                Batch(
                    tokens=torch.from_numpy(tokens[:, :-1].copy()),
                    targets=torch.from_numpy(np.where(scored, tokens, IGNORED)[:, 1:]),
                    resets=torch.from_numpy(resets),
                ),
                self._state(supply, rows),
            )

    def _fill(
        self,
        row: Row,
        supply: Supply,
        window: tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]] | None,
    ) -> Row:
        """Writes the row's next tokens and the one behind them, whether they are scored, and resets into
        `window`; None: another process does. Returns the row as it then stands."""
        filled = 0
        while True:
            ended = row
            if row.offset == row.length:
                row = self._deal(supply, window is not None)
            start, taken = row.offset, min(self.window - filled, row.length - row.offset)
            if window is not None:
                tokens, scored, resets = window
                resets[filled] = start == 0
                tokens[filled : filled + taken] = row.tokens[start : start + taken]
                if self._assistant_only:
                    scored[filled : filled + taken] = row.scored[start : start + taken]
                    scored[filled] = ended.ends_scored if start == 0 else scored[filled]
            filled += taken
            row = replace(row, offset=start + taken)
            if filled == self.window:
                if window is not None:
                    # Every document opens with the same token: known before the next one is dealt.
                    done = row.offset == row.length
                    tokens[filled] = self._document_token if done else row.tokens[row.offset]
                    if self._assistant_only:
                        scored[filled] = row.ends_scored if done else row.scored[row.offset]
                return row

    def _scored(self, tokens: NDArray[Any]) -> NDArray[np.bool_]:
        """Which tokens of a document are scored; nothing where all are."""
        if not self._assistant_only:
            return NOTHING
        assert self._tokenizer is not None
        return said_by_assistant(self._tokenizer, tokens)


class Lanes(ContinuingRows[list[list[int]], "LaneState"]):
    """Endless batches over one or several stores.

    Documents are shuffled anew every epoch. A row that finishes its document takes the next one that no row
    has taken. With weights the next document comes from the group that is furthest behind its share of
    tokens.

    Args:
        stores: one store or several.
        batch_size: rows, B.
        window: tokens of a row in a batch, T.
        seed: decides order and rearrangement.
        weights: shares of tokens, one a store; for one store, one for each SPEC it was made from. None reads
            every document once an epoch.
        fim_rate: share of documents rearranged for fill-in-the-middle.
        context_rate: share of files that stand behind others of their folder.
        assistant_only_loss: whether of a dialogue only the assistant's turns are scored.
        tokenizer: needed with `fim_rate` and `assistant_only_loss`; checked against the stores when given.
        rows: the rows that are made, as where processes share a batch; None for all. Of the others only their
            places are kept.

    Raises:
        ValueError: nothing to read, sizes below 1, weights that do not fit, another tokenizer's tokens.
    """

    def __init__(
        self,
        stores: TokenStore | Sequence[TokenStore],
        batch_size: int,
        window: int,
        seed: int,
        weights: Sequence[float] | None = None,
        fim_rate: float = 0.0,
        context_rate: float = 0.0,
        assistant_only_loss: bool = False,
        tokenizer: Tokenizer | None = None,
        rows: range | None = None,
    ) -> None:
        super().__init__(batch_size, window, assistant_only_loss, tokenizer, fim_rate, rows)
        self._stores = [stores] if isinstance(stores, TokenStore) else list(stores)
        if not any(len(store) for store in self._stores):
            raise ValueError("lanes: the stores hold no document; check the data's split")
        if len({store.tokenizer_fingerprint for store in self._stores}) > 1:
            raise ValueError("lanes: the stores were made by different tokenizers; tokenise all with one")
        if tokenizer is not None:
            for store in self._stores:
                store.require_tokenizer(tokenizer)
        self.seed, self._context_rate = seed, context_rate
        self._neighbours = [Neighbours(store) for store in self._stores] if context_rate > 0 else []
        self._groups = _grouped(self._stores, weights)
        self._weights = [1.0] if weights is None else [float(weight) for weight in weights]
        self._first = np.cumsum([0, *map(len, self._stores)])
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._document_token = next(int(store.view(0)[0]) for store in self._stores if len(store))
        key = (
            batch_size,
            seed,
            self._weights,
            fim_rate,
            context_rate,
            [store.fingerprint for store in self._stores],
            *(["assistant_only_loss"] if assistant_only_loss else []),
        )
        self._fingerprint = hashlib.sha256(repr(key).encode()).hexdigest()[:16]

    def resumed(self, values: Mapping[str, Any] | None) -> Iterator[tuple[Batch, LaneState]]:
        """`batches` from the state of `LaneState.to_dict`, or from the start."""
        return self.batches(None if values is None else LaneState.from_dict(values))

    def batches(self, state: LaneState | None = None) -> Iterator[tuple[Batch, LaneState]]:
        """(batch, the state behind it) without end, from the start or from the state behind an earlier batch.

        Raises ValueError for a state of other data, tokenizer, seed, batch size, weights, fim_rate,
        context_rate or assistant_only_loss; the window may differ.
        """
        if state is not None and state.lanes != self._fingerprint:
            raise ValueError(
                f"this data state belongs to lanes {state.lanes}, not {self._fingerprint}: data, tokenizer, "
                "seed, batch size, weights, fim_rate, context_rate or assistant_only_loss have changed; "
                "resume with those of the run"
            )
        dealt = [list(counts) for counts in state.dealt] if state else [[0, 0] for _ in self._groups]
        rows = [
            self._row(*row, own=index in self._rows) for index, row in enumerate(state.rows if state else ())
        ]
        return self._batches(dealt, rows)

    def _state(self, supply: list[list[int]], rows: Sequence[Row]) -> LaneState:
        return LaneState(
            lanes=self._fingerprint,
            rows=tuple((row.group, row.ordinal, row.offset) for row in rows),
            dealt=tuple((documents, count) for documents, count in supply),
        )

    def _deal(self, supply: list[list[int]], own: bool) -> Row:
        group = min(range(len(supply)), key=lambda number: supply[number][1] / self._weights[number])
        ordinal = supply[group][0]
        store, index = self._locate(group, ordinal)
        supply[group][0] += 1
        supply[group][1] += int(self._stores[store].lengths[index])
        return self._row(group, ordinal, 0, own)

    def _row(self, group: int, ordinal: int, offset: int, own: bool) -> Row:
        """A row at a place of a document, with its tokens if the row is made here."""
        if not own and self._fim_rate == 0 and self._context_rate == 0:
            store, index = self._locate(group, ordinal)
            length = int(self._stores[store].lengths[index])
            return Row(group, ordinal, offset, length, NOTHING, NOTHING)
        tokens = self._document(group, ordinal)
        return Row(group, ordinal, offset, len(tokens), tokens, self._scored(tokens) if own else NOTHING)

    def _locate(self, group: int, ordinal: int) -> tuple[int, int]:
        """The number of the store and the number in it of the `ordinal`-th document that a group deals."""
        members = self._groups[group]
        epoch, place = divmod(ordinal, len(members))
        if (group, epoch) not in self._orders:
            # Rows lag behind one another by an epoch at most times; older orders are made again when needed.
            if len(self._orders) >= 4 * len(self._groups):
                del self._orders[next(iter(self._orders))]
            generator = np.random.default_rng([self.seed, group, epoch])
            self._orders[group, epoch] = members[generator.permutation(len(members))]
        document = int(self._orders[group, epoch][place])
        store = int(np.searchsorted(self._first, document, side="right")) - 1
        return store, document - int(self._first[store])

    def _document(self, group: int, ordinal: int) -> NDArray[Any]:
        """The tokens of that document, rearranged and behind its neighbours if the draws of (seed, epoch,
        document) say so."""
        store, index = self._locate(group, ordinal)
        tokens = self._stores[store].view(index)
        if self._fim_rate > 0:
            assert self._tokenizer is not None
            generator = np.random.default_rng([self.seed, group, ordinal, 1])
            if generator.random() < self._fim_rate:
                header = self._stores[store].document_header(index)
                tokens = rearrange(tokens, header, self._tokenizer, generator)
        if self._context_rate > 0:
            generator = np.random.default_rng([self.seed, group, ordinal, 2])
            if generator.random() < self._context_rate:
                tokens = self._neighbours[store].before(index, tokens, generator)
        return tokens


NOTHING: NDArray[Any] = np.empty(0, dtype=np.bool_)


@dataclass(frozen=True)
class Row:
    """A row and the document it is in: the `ordinal`-th that was dealt from its group."""

    group: int
    ordinal: int
    offset: int
    length: int
    tokens: NDArray[Any]
    """Nothing where only the place of the row is kept."""
    scored: NDArray[np.bool_]
    """(tokens,) with `assistant_only_loss`: whether a token is scored."""
    place: Mapping[str, Any] | None = None
    """Of a stream: the place before the document."""

    @property
    def ends_scored(self) -> bool:
        """Whether the document token behind it is scored: where nobody has a turn."""
        return bool(self.scored.all())


def _grouped(stores: Sequence[TokenStore], weights: Sequence[float] | None) -> list[NDArray[np.int64]]:
    """Documents of each weighted group, numbered through all stores."""
    if len(stores) == 1:
        labels = stores[0].parts
    else:
        labels = np.repeat(np.arange(len(stores)), list(map(len, stores)))
    if weights is None:
        return [np.arange(len(labels))]
    groups = [np.flatnonzero(labels == number) for number in range(len(weights))]
    expected = int(labels.max()) + 1 if len(stores) == 1 else len(stores)
    if len(weights) < expected or not all(weight > 0 for weight in weights):
        raise ValueError(
            f"lanes: weights {tuple(weights)} must be {expected} positive numbers, one for each source"
        )
    for number, members in enumerate(groups):
        if not len(members):
            raise ValueError(
                f"lanes: source {number} has no document in this split; leave it out or give it more text"
            )
    return groups


class Neighbours:
    """Which documents of a store are files of one folder. Only documents that open with a file name count.

    Args:
        store: where the documents are; two are neighbours if they came from one SPEC and their names have one
        folder.
    """

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self._folder: dict[int, tuple[int, str]] = {}
        self._members: dict[tuple[int, str], list[int]] = {}
        for index, part in enumerate(store.parts.tolist()):
            if store.document_header(index) > 1:
                folder = (part, PurePosixPath(store.name(index)).parent.as_posix())
                self._folder[index] = folder
                self._members.setdefault(folder, []).append(index)

    def before(self, index: int, tokens: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """`tokens` of document `index` behind one to MOST_NEIGHBOURS others of its folder, drawn at random.

        Every file keeps its header; the document token stands once, in front. A document without neighbours
        stays as it is.
        """
        others = [
            other for other in self._members.get(self._folder.get(index, (-1, "")), []) if other != index
        ]
        if not others:
            return tokens
        count = min(len(others), int(generator.integers(1, MOST_NEIGHBOURS, endpoint=True)))
        chosen = generator.choice(len(others), size=count, replace=False)
        files = [self._store.view(others[number])[1:] for number in chosen]
        return np.concatenate((tokens[:1], *files, tokens[1:]))
