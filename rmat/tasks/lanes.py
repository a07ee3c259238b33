"""Batches of a mixture of tasks: every row made for its batch, never seen again.

Row r of batch k is made of the numbers (seed, k, r) alone, so the position in the data is k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rmat.data.lanes import IGNORED, Batch
from rmat.data.tokenizer import Tokenizer
from rmat.tasks.task import Member, Row


@dataclass(frozen=True, kw_only=True)
class TaskPosition:
    """Where a run stands."""

    lanes: str
    """Fingerprint of the lanes it belongs to."""
    batches: int
    """Batches made."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


class TaskLanes:
    """Endless batches of a mixture.

    Args:
        members: kinds of rows; each batch is of one kind and one length.
        specs: their SPECs, for the fingerprint.
        batch_size: rows, B.
        window: tokens of the longest row.
        seed: of all rows.
        accumulate: batches of one update; rows that grow do so by updates.
        rows: the rows that are made, as where processes share a batch; None for all.
    """

    def __init__(
        self,
        members: Sequence[Member],
        specs: Sequence[str],
        tokenizer: Tokenizer,
        batch_size: int,
        window: int,
        seed: int,
        accumulate: int = 1,
        rows: range | None = None,
    ) -> None:
        self._rows = range(batch_size) if rows is None else rows
        self._members, self._tokenizer = list(members), tokenizer
        self._window, self._seed = window, seed
        self._accumulate = accumulate
        shares = np.array([member.share for member in members], dtype=np.float64)
        self._edges = np.cumsum(shares / shares.sum())
        key = (list(specs), shares.tolist(), tokenizer.fingerprint, batch_size, window, seed)
        self._fingerprint = hashlib.sha256(repr(key).encode()).hexdigest()[:16]

    def resumed(self, values: Mapping[str, Any] | None) -> Iterator[tuple[Batch, TaskPosition]]:
        """`batches` from the position of `TaskPosition.to_dict`, or from the start. Raises ValueError if it
        belongs to other lanes."""
        if values is None:
            return self.batches()
        if values.get("lanes") != self._fingerprint:
            raise ValueError(
                f"this data state belongs to lanes {values.get('lanes')}, not {self._fingerprint}: SPEC, "
                "tokenizer, seed, batch size or window have changed; resume with those of the run"
            )
        return self.batches(TaskPosition(lanes=self._fingerprint, batches=int(values["batches"])))

    def batches(self, position: TaskPosition | None = None) -> Iterator[tuple[Batch, TaskPosition]]:
        """(batch, the position behind it) without end."""
        number = 0 if position is None else position.batches
        while True:
            batch = self.batch(number)
            number += 1
            yield batch, TaskPosition(lanes=self._fingerprint, batches=number)

    def batch(self, number: int) -> Batch:
        """Batch `number`, from 0."""
        random = np.random.default_rng([self._seed, number])
        member = self._members[int(np.searchsorted(self._edges[:-1], random.random(), side="right"))]
        length = member.draw_length(self._window, number // self._accumulate, random.random())
        own = [np.random.default_rng([self._seed, number, row]) for row in self._rows]
        rows = [member.task.row(each, length, self._tokenizer) for each in own]
        return pad_rows(rows, self._tokenizer.special_id("document"))


def pad_rows(rows: Sequence[Row], filling: int) -> Batch:
    """Rows as one batch, each a document of its own; short ones are filled up behind their end, unscored."""
    width = max(len(row.tokens) for row in rows)
    tokens = np.full((len(rows), width), filling, dtype=np.int64)
    targets = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = row.tokens
        targets[index, : len(row.targets)] = row.targets
    resets = torch.zeros(tokens.shape, dtype=torch.bool, device="cpu")
    resets[:, 0] = True
    return Batch(tokens=torch.from_numpy(tokens), targets=torch.from_numpy(targets), resets=resets)
