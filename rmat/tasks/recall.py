"""Associative recall: key-value pairs at the start, questions about them at any distance.

Tokens are numbered keys first, then values, then filler. A row opens with `n_pairs` pairs `key value key
value ...`; afterwards it is made of two-token slots, either a question (a key of the row, then its value) or
filler.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from rmat.data.lanes import IGNORED
from rmat.data.tokenizer import Tokenizer
from rmat.tasks.task import Member, NumberedTask, Row, RowCell, RowPart, RowQuestions, number, option, whole


@dataclass(frozen=True, kw_only=True)
class RecallTask(NumberedTask):
    """The task's sizes. Raises ValueError naming field, value and remedy."""

    n_pairs: int = 8
    """Pairs to remember; their keys are distinct."""

    n_keys: int = 64
    """Key tokens: 0..n_keys-1."""

    n_values: int = 64
    """Value tokens, after the keys."""

    n_filler: int = 64
    """Filler tokens, after the values."""

    length: int = 256
    """Tokens of a row."""

    query_share: float = 0.2
    """Probability that a two-token slot of `batch` is a question."""

    def __post_init__(self) -> None:
        for field in ("n_pairs", "n_keys", "n_values", "n_filler"):
            if getattr(self, field) < 1:
                raise ValueError(f"recall.{field} must be at least 1, got {getattr(self, field)}")
        if self.n_pairs > self.n_keys:
            raise ValueError(
                f"recall.n_pairs {self.n_pairs} exceeds n_keys {self.n_keys}; keys of a row are distinct"
            )
        if self.length < 2 * self.n_pairs + 2:
            raise ValueError(
                f"recall.length {self.length} leaves no question after {self.n_pairs} pairs; "
                f"give at least {2 * self.n_pairs + 2}"
            )
        if not 0.0 < self.query_share <= 1.0:
            raise ValueError(f"recall.query_share must lie in (0, 1], got {self.query_share}")

    @property
    def vocab_size(self) -> int:
        """Keys, values and filler together."""
        return self.n_keys + self.n_values + self.n_filler

    def row(self, random: np.random.Generator, length: int, tokenizer: Tokenizer | None = None) -> Row:
        """One row of `length` tokens, as `batch` makes them."""
        generator = torch.Generator("cpu").manual_seed(int(random.integers(2**62)))
        made = replace(self, length=length).batch(1, generator)
        return Row(made.tokens[0].numpy(), made.targets[0].numpy())

    def batch(self, batch_size: int, generator: torch.Generator) -> RowPart:
        """`batch_size` rows of `length` tokens, every slot after the pairs a question with `query_share`."""
        keys, values = self._pairs(batch_size, generator)
        n_slots = (self.length - 2 * self.n_pairs) // 2
        asked = _uniform(generator, batch_size, n_slots) < self.query_share
        pair = _below(self.n_pairs, generator, batch_size, n_slots)
        row, slot = asked.nonzero(as_tuple=True)
        return self._piece(
            0,
            self.length,
            keys,
            values,
            row,
            2 * (self.n_pairs + slot),
            pair[row, slot],
            _first(asked, pair)[row, slot],
            generator,
        )

    def stream(
        self, batch_size: int, generator: torch.Generator, piece: int, n_queries: int = 24
    ) -> Iterator[RowPart]:
        """The rows of `length` tokens in pieces of at most `piece`; memory does not grow with the length.

        After the pairs comes filler; `n_queries` questions a row are spread over the last tenth of the row.
        The tokens depend on the generator alone, not on `piece`.

        Raises:
            ValueError: the last tenth has fewer two-token slots than questions, or piece < 1.
        """
        if piece < 1:
            raise ValueError(f"recall.stream: piece must be at least 1 token, got {piece}")
        begin = max(2 * self.n_pairs, self.length - self.length // 10)
        n_slots = (self.length - begin) // 2
        if not 1 <= n_queries <= n_slots:
            raise ValueError(
                f"recall.stream: {n_queries} questions do not fit the {n_slots} slots in the last tenth of "
                f"{self.length} tokens; give 1..{n_slots} or a longer row"
            )
        keys, values = self._pairs(batch_size, generator)
        jitter = torch.rand(batch_size, n_queries, generator=generator, dtype=torch.float64, device="cpu")
        # One slot from each of n_queries equal strata: spread and distinct without a list of all slots.
        slot = (
            ((torch.arange(n_queries, device="cpu") + jitter) * (n_slots / n_queries))
            .long()
            .clamp(max=n_slots - 1)
        )
        pair = _below(self.n_pairs, generator, batch_size, n_queries)
        first = _first(torch.ones_like(pair, dtype=torch.bool), pair)
        row = torch.arange(batch_size, device="cpu")[:, None].expand_as(pair)
        flat = (row.flatten(), (begin + 2 * slot).flatten(), pair.flatten(), first.flatten())
        for start in range(0, self.length, piece):
            yield self._piece(start, min(start + piece, self.length), keys, values, *flat, generator)

    def _pairs(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Distinct keys and free values of each row, (B, n_pairs) token ids each."""
        keys = _uniform(generator, batch_size, self.n_keys).argsort(1)[:, : self.n_pairs]
        values = self.n_keys + _below(self.n_values, generator, batch_size, self.n_pairs)
        return keys, values

    def _piece(
        self,
        start: int,
        stop: int,
        keys: Tensor,
        values: Tensor,
        row: Tensor,
        position: Tensor,
        pair: Tensor,
        first: Tensor,
        generator: torch.Generator,
    ) -> RowPart:
        """Tokens start..stop of the rows, given their pairs and questions (row, key's position, pair,
        first)."""
        # Drawn time-major, so that a split into pieces draws the same numbers.
        filler = _below(self.n_filler, generator, stop - start, keys.shape[0])
        tokens = (self.n_keys + self.n_values + filler).t().contiguous()
        targets = torch.full_like(tokens, IGNORED)
        firsts = torch.zeros_like(tokens, dtype=torch.bool)
        opening = torch.stack((keys, values), 2).flatten(1)[:, start:stop]
        tokens[:, : opening.shape[1]] = opening
        key, value = keys[row, pair], values[row, pair]
        for offset, written in ((0, key), (1, value)):
            here = (position + offset >= start) & (position + offset < stop)
            tokens[row[here], position[here] + offset - start] = written[here]
        here = (position >= start) & (position < stop)
        targets[row[here], position[here] - start] = value[here]
        firsts[row[here], position[here] - start] = first[here]
        return RowPart(tokens, targets, firsts)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Numbers of [0, 1), the same whatever the process's default device and type are."""
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")


def _below(stop: int, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(stop, shape, generator=generator, device="cpu")


def _first(asked: Tensor, pair: Tensor) -> Tensor:
    """(B, Q) bool: questions about a pair that no earlier question of the row asked."""
    hot = torch.nn.functional.one_hot(pair, int(pair.max()) + 1) * asked[..., None]
    earlier = hot.cumsum(1) - hot
    return asked & (earlier.gather(2, pair[..., None])[..., 0] == 0)


def members(
    *,
    split: str,
    pairs: str = "8",
    keys: str = "64",
    values: str = "64",
    fillers: str = "64",
    queries: str = "0.2",
) -> list[Member]:
    """See `rmat.tasks.registry`; every row is drawn afresh, whatever the split."""
    counts = {
        "n_pairs": whole("pairs", pairs, 1),
        "n_keys": whole("keys", keys, 1),
        "n_values": whole("values", values, 1),
        "n_filler": whole("fillers", fillers, 1),
    }
    least = 2 * counts["n_pairs"] + 2  # every row gets the length of its batch
    return [Member(task=RecallTask(**counts, length=least, query_share=number("queries", queries)))]


END_QUERIES = 24
"""Queries of a row that asks at the end; as many as fit where the last tenth of the row is too short."""


@dataclass(frozen=True, kw_only=True)
class RecallQuestions(RowQuestions):
    """Accuracy of recalling key-value pairs from the start of a stream of each length, for a model that was
    trained on that task (rmat train --data recall).

    Local attention alone can answer a query only if the same pair was asked for shortly before, so the
    accuracy counts the first query of a key in its row, which only the memory can answer. That over all
    queries stands beside it.
    """

    note: ClassVar[str] = "accuracy of the first query of each key; "
    samples: ClassVar[int] = 0

    length: tuple[int, ...] = option((256,), "length", metavar="TOKENS")
    rows: int = option(64, "streams of each length")
    pairs: int = option(8, "pairs to remember")
    queries: Literal["end", "everywhere"] = option("end", "where they are asked")
    task: RecallTask | None = None
    """Keys, values and filler if they are not the default ones; its pairs count then, its length does not."""

    @property
    def vocab_size(self) -> int:
        """See `RowQuestions.vocab_size`."""
        return self._task.vocab_size

    @property
    def tokens(self) -> int:
        """See `RowQuestions.tokens`."""
        return sum(self.length)

    @property
    def _task(self) -> RecallTask:
        return self.task or RecallTask(n_pairs=self.pairs, length=max(256, 2 * self.pairs + 2))

    def cells(self, rows: int, seed: int, piece: int) -> Iterator[RowCell]:
        """By length; the rows of every length are drawn from the same seed, those at the end part by part."""
        for length in self.length:
            task = replace(self._task, length=length)
            generator = torch.Generator("cpu").manual_seed(seed)
            another = torch.Generator("cpu").manual_seed(seed + 1)
            yield RowCell(
                labels={
                    "task": "recall",
                    "length": length,
                    "depth": 0.0,
                    "rows": rows,
                    "queries": self.queries,
                },
                rows=rows,
                batch=partial(self._parts, task, generator, piece),
                donor=partial(self._parts, task, another, piece, 0, 1),
                by_row=False,
            )

    def _parts(
        self, task: RecallTask, generator: torch.Generator, piece: int, start: int, count: int
    ) -> Iterator[RowPart]:
        """Rows in parts of at most `piece` tokens."""
        if self.queries == "end":
            yield from task.stream(
                count, generator, piece, n_queries=max(1, min(END_QUERIES, task.length // 10 // 2))
            )
            return
        whole_rows = task.batch(count, generator)
        parts = zip(
            *(x.split(piece, dim=1) for x in (whole_rows.tokens, whole_rows.targets, whole_rows.first)),
            strict=True,
        )
        yield from (RowPart(*part) for part in parts)


QUESTIONS = RecallQuestions
