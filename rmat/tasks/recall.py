"""Associative recall: key-value pairs at the start, questions about them at any distance.

Tokens are numbered keys first, then values, then filler. A row opens with `n_pairs` pairs `key value key
value ...`; afterwards it is made of two-token slots, either a question (a key of the row, then its value) or
filler.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rmat.data.lanes import IGNORED
from rmat.data.tokenizer import Tokenizer
from rmat.tasks.task import NumberedTask, Row


@dataclass(frozen=True)
class RecallBatch:
    """Rows of the task."""

    tokens: Tensor
    """(B, T) int64."""

    targets: Tensor
    """(B, T) int64: the value at a question's key, -100 elsewhere."""

    first: Tensor
    """(B, T) bool: a question about a key that the row was not asked before."""


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
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        made = replace(self, length=length).batch(1, generator)
        return Row(made.tokens[0].numpy(), made.targets[0].numpy())

    def batch(self, batch_size: int, generator: torch.Generator) -> RecallBatch:
        """`batch_size` rows of `length` tokens, every slot after the pairs a question with `query_share`."""
        keys, values = self._pairs(batch_size, generator)
        n_slots = (self.length - 2 * self.n_pairs) // 2
        asked = torch.rand(batch_size, n_slots, generator=generator) < self.query_share
        pair = torch.randint(self.n_pairs, (batch_size, n_slots), generator=generator)
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
    ) -> Iterator[RecallBatch]:
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
        jitter = torch.rand(batch_size, n_queries, generator=generator, dtype=torch.float64)
        # One slot from each of n_queries equal strata: spread and distinct without a list of all slots.
        slot = ((torch.arange(n_queries) + jitter) * (n_slots / n_queries)).long().clamp(max=n_slots - 1)
        pair = torch.randint(self.n_pairs, (batch_size, n_queries), generator=generator)
        first = _first(torch.ones_like(pair, dtype=torch.bool), pair)
        row = torch.arange(batch_size)[:, None].expand_as(pair)
        flat = (row.flatten(), (begin + 2 * slot).flatten(), pair.flatten(), first.flatten())
        for start in range(0, self.length, piece):
            yield self._piece(start, min(start + piece, self.length), keys, values, *flat, generator)

    def _pairs(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Distinct keys and free values of each row, (B, n_pairs) token ids each."""
        keys = torch.rand(batch_size, self.n_keys, generator=generator).argsort(1)[:, : self.n_pairs]
        values = self.n_keys + torch.randint(self.n_values, (batch_size, self.n_pairs), generator=generator)
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
    ) -> RecallBatch:
        """Tokens start..stop of the rows, given their pairs and questions (row, key's position, pair, first)."""
        # Drawn time-major, so that a split into pieces draws the same numbers.
        filler = torch.randint(self.n_filler, (stop - start, keys.shape[0]), generator=generator)
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
        return RecallBatch(tokens, targets, firsts)


def _first(asked: Tensor, pair: Tensor) -> Tensor:
    """(B, Q) bool: questions about a pair that no earlier question of the row asked."""
    hot = torch.nn.functional.one_hot(pair, int(pair.max()) + 1) * asked[..., None]
    earlier = hot.cumsum(1) - hot
    return asked & (earlier.gather(2, pair[..., None])[..., 0] == 0)
