"""Multi-query associative recall, the protocol of zoology (Arora et al., arXiv 2312.04927, section 4 and its code).

A row opens with N pairs `key value`; keys are distinct tokens of the lower half of the vocabulary (0 left out), values
distinct tokens of the upper half. The rest of the row is two-token slots; every key stands once more, in slot i with
probability proportional to (i + 1)^-0.99, and is to be answered by its value. All other places hold random tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmat.data.lanes import IGNORED
from rmat.data.tokenizer import Tokenizer
from rmat.tasks.task import NumberedTask, Row

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
    """Of the pairs, so many are stated a second time, after all the others, with another value: the newest must win."""

    def __post_init__(self) -> None:
        if self.vocabulary < 4 or not 1 <= self.pairs < self.vocabulary // 2:
            raise ValueError(
                f"mqar.pairs is {self.pairs} with {self.vocabulary} tokens: give 1 to {max(1, self.vocabulary // 2 - 1)}"
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
        """One row of exactly `length` tokens. Raises ValueError if it does not hold every pair and question."""
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
