"""Rows of numbered tokens, with the right answers given as they go (teacher forcing): validation, and
`recall` and `mqar`.

Rows are read part by part through the carried state, so that memory does not grow with their length; the head
sees the places alone where something is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmat.data.corpus import Rows
from rmat.data.lanes import IGNORED
from rmat.evaluation.intervals import bootstrap_ratio, wilson
from rmat.evaluation.perplexity import token_nats
from rmat.evaluation.shuffling import behind, front_rows
from rmat.generation.reader import Advance, NotFiniteError, Piece, scan
from rmat.machine import shared, team
from rmat.model import LanguageModel, StreamState
from rmat.model.language_model import MemoryMode
from rmat.tasks.task import RowCell, RowPart, RowQuestions

VALIDATION_BATCHES = 4
"""Batches that a validation reads."""


@dataclass(kw_only=True)
class Answers:
    """Running counts over B rows, each (B,) int64."""

    first_right: Tensor
    """Right answers at first places."""
    first_asked: Tensor
    """First places, see `RowPart.first`."""
    right: Tensor
    """Right answers."""
    asked: Tensor
    """Places where something is asked."""
    nats: list[float] = field(default_factory=list)
    """Of each part the nats of the right answers."""

    @classmethod
    def none(cls, rows: int) -> Answers:
        """Nothing asked yet."""
        counts = torch.zeros(4, rows, dtype=torch.int64, device="cpu")
        return cls(first_right=counts[0], first_asked=counts[1], right=counts[2], asked=counts[3])

    def count(self, predicted: Tensor, part: RowPart) -> None:
        """Compare `predicted` (B, T) int64, the token the model would say at each place, with the part's
        targets."""
        asked = part.targets != IGNORED
        right = asked & (predicted == part.targets)
        self.first_right += (right & part.first).sum(1)
        self.first_asked += (asked & part.first).sum(1)
        self.right += right.sum(1)
        self.asked += asked.sum(1)


def read_rows(
    model: LanguageModel,
    parts: Iterable[RowPart],
    donor: Iterable[RowPart] = (),
    *,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> Answers:
    """What the model answers in one batch of rows, which comes part by part from their start.

    Args:
        parts: the rows.
        donor: with "shuffled": a row in parts of the same lengths, whose bank the first row reads.
        model, memory, advance: see `rmat.generation.reader.scan`.
    """
    state: StreamState | None = None
    found: Answers | None = None
    front = front_rows(memory)
    donors = iter(donor)
    for part in parts:
        found = Answers.none(len(part.tokens)) if found is None else found
        counts = found

        def score(piece: Piece, part: RowPart = part, counts: Answers = counts) -> None:
            hidden_BTE = piece.hidden_BTE[front:]
            targets = part.targets.to(hidden_BTE.device)
            asked = targets != IGNORED
            predicted = torch.full_like(targets, IGNORED)
            if bool(asked.any()):
                logits = piece.model.logits(hidden_BTE[asked])
                counts.nats.append(float(token_nats(logits, targets[asked]).double().sum()))
                predicted[asked] = logits.argmax(-1)
            counts.count(predicted.cpu(), part)

        given = next(donors).tokens[0].tolist() if front else None
        state = scan(
            model,
            behind(given, list(part.tokens.numpy())),
            state,
            size=part.tokens.shape[1],
            memory=memory,
            each=score,
            advance=advance,
        )
    assert found is not None, "rows have at least one part"
    return found


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """Result of `ask_rows`."""

    cells: tuple[dict[str, Any], ...]
    """JSON-able: the labels of each cell with samples, accuracy, and its 95 % bounds low and high; over
    questions also the same of `all` of them."""
    mean: float | None
    """Mean accuracy over cells, if samples are rows."""
    state_bytes: int
    """Size of the streaming state of one row."""
    memory: MemoryMode
    """How the memory was used while scoring."""
    seed: int
    """Seed of the rows."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: cells, mean (if there is one), state_bytes, memory, seed."""
        mean = {} if self.mean is None else {"mean": self.mean}
        rest = {"state_bytes": self.state_bytes, "memory": self.memory, "seed": self.seed}
        return {"cells": list(self.cells), **mean, **rest}


def ask_rows(
    model: LanguageModel,
    questions: RowQuestions,
    *,
    rows: int,
    batch_size: int = 8,
    piece: int = 4096,
    seed: int = 0,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> RowResult:
    """Ask a model that was trained on a task of numbered tokens.

    Args:
        model: stays on its device; its training mode is restored.
        questions: what to ask, such as `rmat.tasks.recall.RecallQuestions()`.
        rows: rows of each cell.
        batch_size: rows read side by side.
        piece: tokens of a row read in one call, where rows come in parts.
        seed: seed of the rows. Training rows are made from other numbers.
        memory: "on", or an ablation of the model's memory.
        advance: called with the number of tokens read since the last call.

    Raises ValueError for a vocabulary that the model has not, counts below one, what `questions` cannot be
    asked with, or numbers of the model that are not finite.
    """
    rows, seed = index(rows), index(seed)
    if questions.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the task needs {questions.vocab_size} tokens, the model has {model.config.vocab_size}: "
            "ask a model trained on the task, with the vocabulary of its training"
        )
    if min(rows, batch_size, piece) < 1:
        raise ValueError(f"rows={rows}, batch_size={batch_size}, piece={piece}: give at least one each")
    cells = []
    for cell in questions.cells(rows, seed, piece):

        def answered(start: int, cell: RowCell = cell) -> Answers:
            return read_rows(
                model,
                cell.batch(start, min(batch_size, rows - start)),
                cell.donor() if front_rows(memory) else (),
                memory=memory,
                advance=advance,
            )

        found = list(shared(range(0, rows, batch_size), answered))
        if not all(map(math.isfinite, chain.from_iterable(one.nats for one in found))):
            raise NotFiniteError
        cells.append(_cell(cell, found, seed))
    means = [cell["accuracy"] for cell in cells] if cell.by_row else []
    return RowResult(
        cells=tuple(cells),
        mean=sum(means) / len(means) if means else None,
        state_bytes=model.initial_state(batch_size=1).nbytes,
        memory=memory,
        seed=seed,
    )


def _cell(cell: RowCell, found: list[Answers], seed: int) -> dict[str, Any]:
    """Accuracy of a cell: over rows by bootstrap, or over questions by Wilson's interval."""
    first_right, first_asked, right, asked = (
        torch.cat([getattr(one, name) for one in found])
        for name in ("first_right", "first_asked", "right", "asked")
    )
    if cell.by_row:
        shares = (first_right / first_asked).tolist()
        return {
            **cell.labels,
            "samples": cell.rows,
            **bootstrap_ratio(shares, np.ones(cell.rows), seed=seed).to_dict("accuracy"),
        }

    def share(right: Tensor, asked: Tensor) -> dict[str, Any]:
        count = int(asked.sum())
        return {"samples": count, **wilson(int(right.sum()), count).to_dict("accuracy")}

    return {**cell.labels, **share(first_right, first_asked), "all": share(right, asked)}


def score_rows(model: LanguageModel, rows: Rows, batches: int = VALIDATION_BATCHES) -> dict[str, float]:
    """`nats`: mean over scored tokens; `accuracy`: share of them right; `rows_right`: share of rows without a
    fault, among those with a scored token. Not a number where nothing is scored. The model's training mode is
    restored."""
    count = team()
    parts = (
        RowPart(batch.tokens[k::count], batch.targets[k::count], batch.targets[k::count] != IGNORED)
        for batch in rows.batches(batches)
        for k in range(min(count, len(batch.tokens)))
    )
    found = list(shared(parts, lambda part: read_rows(model, [part])))
    right, asked = (torch.cat([getattr(one, name) for one in found]) for name in ("right", "asked"))
    if not asked.any():
        return {"nats": math.nan, "accuracy": math.nan, "rows_right": math.nan}
    some = asked > 0
    return {
        "nats": sum(sum(one.nats) for one in found) / int(asked.sum()),
        "accuracy": int(right.sum()) / int(asked.sum()),
        "rows_right": int((right == asked)[some].sum()) / int(some.sum()),
    }
