"""Multi-query associative recall, the protocol of zoology (Arora et al., arXiv 2312.04927, section 4 and its
code).

A row opens with N pairs `key value`; keys are distinct tokens of the lower half of the vocabulary (0 left
out), values distinct tokens of the upper half. The rest of the row is two-token slots; every key stands once
more, in slot i with probability proportional to (i + 1)^-0.99, and is to be answered by its value. All other
places hold random tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from rmat.data.lanes import IGNORED
from rmat.data.tokenizer import Tokenizer
from rmat.tasks.task import Member, NumberedTask, Row, RowCell, RowPart, RowQuestions, option, whole

VOCABULARY = 8192
"""Tokens of the published protocol."""

TRAIN_MIX: tuple[tuple[int, int, int], ...] = (
    (64, 4, 100_000),
    (128, 8, 20_000),
    (256, 16, 20_000),
    (256, 32, 20_000),
    (256, 64, 20_000),
)
"""(length, pairs, share) of the published training set."""

TEST_MIX: tuple[tuple[int, int], ...] = (
    (64, 4),
    (64, 8),
    (64, 16),
    (128, 32),
    (256, 64),
    (512, 128),
    (1024, 256),
)
"""(length, pairs) of the published test sets, 1,000 rows each."""

POWER = 0.01
"""Exponent a of the slots' law a * (i + 1)^(a - 1)."""


@dataclass(frozen=True, kw_only=True)
class MqarTask(NumberedTask):
    """Rows of one number of pairs. Raises ValueError naming field, value and remedy."""

    pairs: int = 8
    """Key-value pairs N of a row."""

    vocabulary: int = VOCABULARY
    """Tokens V: keys from 1..V/2-1, values from V/2..V-1."""

    changes: int = 0
    """Of the pairs, so many are stated a second time, after all the others, with another value: the newest
    must win."""

    def __post_init__(self) -> None:
        if self.vocabulary < 4 or not 1 <= self.pairs < self.vocabulary // 2:
            raise ValueError(
                f"mqar.pairs is {self.pairs} with {self.vocabulary} tokens: "
                f"give 1 to {max(1, self.vocabulary // 2 - 1)}"
            )
        if not 0 <= self.changes <= self.pairs:
            raise ValueError(f"mqar.changes is {self.changes}: give 0 to {self.pairs}, the pairs there are")

    @property
    def vocab_size(self) -> int:
        """Keys, values and filler together."""
        return self.vocabulary

    @property
    def stated(self) -> int:
        """Tokens of the opening."""
        return 2 * (self.pairs + self.changes)

    def row(self, random: np.random.Generator, length: int, tokenizer: Tokenizer | None = None) -> Row:
        """One row of exactly `length` tokens. Raises ValueError if it does not hold every pair and
        question."""
        slots = (length - self.stated) // 2
        if slots < self.pairs:
            raise ValueError(
                f"mqar: {self.pairs} pairs and questions do not fit {length} tokens: "
                f"give at least {self.stated + 2 * self.pairs}"
            )
        half = self.vocabulary // 2
        keys = _distinct(random, 1, half, self.pairs)
        values = _distinct(random, half, self.vocabulary, self.pairs)
        tokens = random.integers(0, self.vocabulary, length)
        tokens[0 : 2 * self.pairs : 2], tokens[1 : 2 * self.pairs : 2] = keys, values
        if self.changes:
            again = random.permutation(self.pairs)[: self.changes]
            values = values.copy()
            count = self.vocabulary - half
            values[again] = half + (values[again] - half + random.integers(1, count, self.changes)) % count
            tokens[2 * self.pairs : self.stated : 2] = keys[again]
            tokens[2 * self.pairs + 1 : self.stated : 2] = values[again]
        # Gumbel's trick: the N largest of log p + noise are a draw without replacement.
        law = (POWER - 1) * np.log(np.arange(1, slots + 1))
        place = self.stated + 2 * np.argsort(-(law + random.gumbel(size=slots)))[: self.pairs]
        tokens[place] = keys
        targets = np.full(length, IGNORED, dtype=np.int64)
        targets[place] = values
        return Row(tokens, targets)


def _distinct(random: np.random.Generator, start: int, stop: int, count: int) -> NDArray[np.int64]:
    """`count` distinct numbers of start..stop-1."""
    return start + random.choice(stop - start, count, replace=False, shuffle=True)


def members(
    *,
    split: str,
    pairs: str | None = None,
    length: str | None = None,
    vocabulary: str = str(VOCABULARY),
    changes: str = "0",
) -> list[Member]:
    """See `rmat.tasks.registry`; every row is drawn afresh, whatever the split."""
    size = whole("vocabulary", vocabulary, 4)
    if (pairs is None) != (length is None):
        raise ValueError("give pairs and length together, or neither for the published mixture")
    mix = TRAIN_MIX
    if pairs is not None and length is not None:
        mix = ((whole("length", length, 4), whole("pairs", pairs, 1), 1),)
    again = whole("changes", changes, 0)
    return [
        Member(task=MqarTask(pairs=n, vocabulary=size, changes=again), share=share, length=tokens)
        for tokens, n, share in mix
    ]


@dataclass(frozen=True, kw_only=True)
class MqarQuestions(RowQuestions):
    """Multi-query associative recall (zoology's protocol), for models trained with --data mqar."""

    note: ClassVar[str] = "samples are rows, each with its share of right answers; "
    samples: ClassVar[int] = 1000
    samples_are: ClassVar[str] = "rows of each test set"

    set: tuple[str, ...] = option((), "test set", metavar="LENGTH,PAIRS", shown="the seven published")
    vocabulary: int = option(VOCABULARY, "tokens, as in training", metavar="V")
    changes: int = option(0, "pairs stated again with another value", metavar="N")

    @property
    def sets(self) -> tuple[tuple[int, int], ...]:
        """(length, pairs) of every test set. Raises ValueError for one that is not written so."""
        return tuple(map(_pair, self.set)) or TEST_MIX

    @property
    def vocab_size(self) -> int:
        """See `RowQuestions.vocab_size`."""
        return self.vocabulary

    @property
    def tokens(self) -> int:
        """See `RowQuestions.tokens`."""
        return sum(length for length, _ in self.sets)

    def cells(self, rows: int, seed: int, piece: int) -> Iterator[RowCell]:
        """By test set; whole rows. Each row has a seed of its own, of other numbers than those of
        training."""
        for length, pairs in self.sets:
            task = MqarTask(pairs=pairs, vocabulary=self.vocabulary, changes=min(self.changes, pairs))
            batch = partial(_rows, task, length, [seed, 1, length, pairs])
            yield RowCell(
                labels={"task": "mqar", "length": length, "pairs": pairs, "depth": None},
                rows=rows,
                batch=batch,
                donor=partial(batch, rows, 1),
                by_row=True,
            )


def _rows(task: MqarTask, length: int, seed: list[int], start: int, count: int) -> Iterator[RowPart]:
    made = [task.row(np.random.default_rng([*seed, n]), length) for n in range(start, start + count)]
    tokens, targets = (
        torch.from_numpy(np.stack([getattr(row, name) for row in made])) for name in ("tokens", "targets")
    )
    yield RowPart(tokens, targets, targets != IGNORED)


def _pair(text: str) -> tuple[int, int]:
    length, comma, pairs = text.partition(",")
    if not comma or not length.isdecimal() or not pairs.isdecimal():
        raise ValueError(f"--set {text!r} is no test set: write LENGTH,PAIRS, for example 1024,256")
    return int(length), int(pairs)


QUESTIONS = MqarQuestions
