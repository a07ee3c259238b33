"""Recall of key-value pairs stated at the start of a stream, at any length in constant memory.

The task is `rmat.tasks.recall`: pairs first, then queries among filler. Local attention alone can answer a
query only if the same pair was asked for shortly before, so the headline accuracy counts *first* queries: the first
time a key is asked for in its row, which only the memory can answer. The accuracy over all queries stands beside it.

Queries stand "everywhere" after the pairs, as in training, or at the "end": filler, then queries in the last tenth of
the row, so that every first query is answered over nearly the whole length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rmat.data.lanes import IGNORED
from rmat.evaluation.intervals import wilson
from rmat.generation.reader import Piece, scan
from rmat.model import LanguageModel, StreamState
from rmat.model.language_model import MemoryMode
from rmat.tasks.recall import RecallBatch, RecallTask

Place = Literal["everywhere", "end"]

END_QUERIES = 24
"""Queries of a row that asks at the end; as many as fit where the last tenth of the row is too short."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How many queries were asked and how many answered right."""

    first_right: int = 0
    """Right answers to the first query of a key in its row."""
    first_asked: int = 0
    """First queries of a key in its row."""
    right: int = 0
    """Right answers to all queries."""
    asked: int = 0
    """All queries."""

    def __add__(self, other: Answers) -> Answers:
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        names = [item.name for item in dataclasses.fields(self)]
        return Answers(**{name: a + b for name, a, b in zip(names, ours, theirs, strict=True)})


def score_answers(predicted: Tensor, targets: Tensor, first: Tensor) -> Answers:
    """Compare answers with targets.

    Args:
        predicted: (B, T) int64, the token the model would say at each position.
        targets: (B, T) int64, the right value at query keys, -100 elsewhere.
        first: (B, T) bool, True at the first query of a key in its row.
    """
    asked = targets != IGNORED
    right = asked & (predicted == targets)
    return Answers(
        first_right=int((right & first).sum()),
        first_asked=int((asked & first).sum()),
        right=int(right.sum()),
        asked=int(asked.sum()),
    )


@dataclass(frozen=True, kw_only=True)
class RecallCell:
    """Accuracy at one length."""

    length: int
    """Tokens of a row."""
    queries: Place
    """Where in the row the queries stand."""
    rows: int
    """Rows read."""
    answers: Answers
    """What was asked and answered."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. `accuracy`, `low`, `high` (Wilson, 95 %) and `samples` are of first queries; `all` of every query.

        `depth` is the place of the pairs as a share of the length: always the start.
        """
        first = wilson(self.answers.first_right, self.answers.first_asked)
        every = wilson(self.answers.right, self.answers.asked)
        return {
            "task": "recall",
            "length": self.length,
            "depth": 0.0,
            "samples": self.answers.first_asked,
            "accuracy": first.value,
            "low": first.low,
            "high": first.high,
            "rows": self.rows,
            "queries": self.queries,
            "all": {
                "samples": self.answers.asked,
                "accuracy": every.value,
                "low": every.low,
                "high": every.high,
            },
        }


@dataclass(frozen=True, kw_only=True)
class RecallResult:
    """Result of `recall`."""

    cells: tuple[RecallCell, ...]
    """One per length."""
    state_bytes: int
    """Size of the streaming state of one row."""
    memory: MemoryMode
    """How the memory was used while scoring."""
    seed: int
    """Seed of the rows."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: cells, state_bytes, memory, seed."""
        cells = [cell.to_dict() for cell in self.cells]
        return {"cells": cells, "state_bytes": self.state_bytes, "memory": self.memory, "seed": self.seed}


def recall(
    model: LanguageModel,
    task: RecallTask,
    *,
    lengths: Sequence[int] = (256,),
    queries: Place = "end",
    rows: int = 64,
    batch_size: int = 32,
    piece: int = 4096,
    seed: int = 0,
    memory: MemoryMode = "on",
) -> RecallResult:
    """Ask a model for the pairs at each length, from an empty state.

    Rows are read piece by piece through the carried state; with queries at the end they are also made piece by piece,
    so that memory does not grow with the length at all.

    Args:
        model: the model; it stays on its device and its training mode is restored.
        task: pairs, keys, values and filler; its length is replaced by each of `lengths`.
        lengths: tokens of a row.
        queries: where in the row the queries stand.
        rows: rows read at each length.
        batch_size: rows read side by side.
        piece: tokens of a row read in one call.
        seed: seed of the rows; the same at every length.
        memory: "on", or an ablation of the model's memory.

    Raises ValueError if the model's vocabulary is smaller than the task's or a count is below one.
    """
    if task.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the task needs {task.vocab_size} tokens, the model has {model.config.vocab_size}: "
            "train one with vocab_size=task.vocab_size"
        )
    if min(rows, batch_size, piece) < 1 or not lengths:
        raise ValueError(
            f"rows={rows}, batch_size={batch_size}, piece={piece}, lengths={lengths}: give at least one each"
        )
    cells = []
    for length in lengths:
        generator = torch.Generator().manual_seed(seed)
        answers = Answers()
        for start in range(0, rows, batch_size):
            count = min(batch_size, rows - start)
            answers += _answers(
                model,
                _parts(dataclasses.replace(task, length=length), queries, count, generator, piece),
                memory,
            )
        cells.append(RecallCell(length=length, queries=queries, rows=rows, answers=answers))
    state_bytes = model.initial_state(batch_size=1).nbytes
    return RecallResult(cells=tuple(cells), state_bytes=state_bytes, memory=memory, seed=seed)


def _answers(model: LanguageModel, parts: Iterator[RecallBatch], memory: MemoryMode) -> Answers:
    """What the model answers in one batch of rows, which comes part by part."""
    found: list[Answers] = []
    state: StreamState | None = None
    for part in parts:

        def score(read: Piece, part: RecallBatch = part) -> None:
            found.append(score_answers(read.logits_BTV.argmax(-1).cpu(), part.targets, part.first))

        state = scan(model, part.tokens.numpy(), state, size=part.tokens.shape[1], memory=memory, each=score)
    return sum(found, Answers())


def _parts(
    task: RecallTask, queries: Place, rows: int, generator: torch.Generator, piece: int
) -> Iterator[RecallBatch]:
    """The rows in pieces of at most `piece` tokens."""
    if queries == "end":
        room = task.length // 10 // 2
        yield from task.stream(rows, generator, piece, n_queries=max(1, min(END_QUERIES, room)))
        return
    batch = task.batch(rows, generator)
    for parts in zip(
        *(t.split(piece, dim=1) for t in (batch.tokens, batch.targets, batch.first)), strict=True
    ):
        yield RecallBatch(*parts)
