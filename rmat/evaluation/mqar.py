"""Multi-query associative recall by number of pairs: the published test sets, and any other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmat.evaluation.intervals import Interval, bootstrap_ratio
from rmat.evaluation.rows import row_scores
from rmat.model import LanguageModel
from rmat.model.language_model import MemoryMode
from rmat.tasks.lanes import pad_rows
from rmat.tasks.mqar import TEST_MIX, MqarTask


@dataclass(frozen=True, kw_only=True)
class MqarCell:
    """Recall on one test set."""

    length: int
    """Tokens of a row."""
    pairs: int
    """Key-value pairs of a row."""
    rows: int
    """Rows read."""
    recall: Interval
    """Mean over rows of the share of questions answered right, with its bootstrap interval over rows."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "task": "mqar",
            "length": self.length,
            "pairs": self.pairs,
            "depth": None,
            "samples": self.rows,
            "accuracy": self.recall.value,
            "low": self.recall.low,
            "high": self.recall.high,
        }


@dataclass(frozen=True, kw_only=True)
class MqarResult:
    """Result of `mqar`."""

    cells: tuple[MqarCell, ...]
    """One per test set."""
    state_bytes: int
    """Size of the streaming state of one row, everything counted."""
    memory: MemoryMode
    """How the memory was used while scoring."""
    seed: int
    """Seed of the rows."""

    @property
    def mean(self) -> float:
        """Mean recall over the test sets, the published score."""
        return sum(cell.recall.value for cell in self.cells) / len(self.cells)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: cells, mean, state_bytes, memory, seed."""
        cells = [cell.to_dict() for cell in self.cells]
        return {
            "cells": cells,
            "mean": self.mean,
            "state_bytes": self.state_bytes,
            "memory": self.memory,
            "seed": self.seed,
        }


def mqar(
    model: LanguageModel,
    *,
    sets: Sequence[tuple[int, int]] = TEST_MIX,
    vocabulary: int = 8192,
    changes: int = 0,
    rows: int = 1000,
    batch_size: int = 16,
    seed: int = 0,
    memory: MemoryMode = "on",
) -> MqarResult:
    """Ask a model that was trained on `mqar` for its pairs.

    Args:
        sets: (length, pairs) of every test set.
        vocabulary: as in training.
        changes: pairs of a row that are stated again with another value; the newest is right.
        rows: rows of each set.
        batch_size: rows read side by side; "shuffled" takes more of them than the model has layers, because rows read
            in a ring and with fewer a row could hear of itself.
        seed: seed of the rows. Training rows are made from other numbers.

    Raises ValueError for a set whose row is too short, a vocabulary that the model has not, counts below one, or
    memory="shuffled" with a single row.
    """
    if vocabulary > model.config.vocab_size:
        raise ValueError(
            f"the task needs {vocabulary} tokens, the model has {model.config.vocab_size}: ask a model trained on mqar, "
            "with the vocabulary of its training"
        )
    if min(rows, batch_size) < 1 or not sets:
        raise ValueError(f"rows={rows}, batch_size={batch_size}, sets={sets}: give at least one each")
    if memory == "shuffled" and min(rows, batch_size) < 2:
        raise ValueError(
            f"memory='shuffled' needs a neighbour to read from: give 2 or more rows (rows={rows}) and batch_size "
            f"(batch_size={batch_size})"
        )
    least = model.config.n_layers + 1 if memory == "shuffled" else 1
    parts = max(1, min(math.ceil(rows / batch_size), rows // least))
    cells = []
    for length, pairs in sets:
        task = MqarTask(pairs=pairs, vocabulary=vocabulary, changes=min(changes, pairs))
        shares: list[float] = []
        for numbers in np.array_split(np.arange(rows), parts):
            made = [task.row(np.random.default_rng([seed, 1, length, pairs, n]), length) for n in numbers]
            shares += row_scores(model, pad_rows(made, 0), memory=memory).shares.tolist()
        recall = bootstrap_ratio(shares, np.ones(rows), seed=seed)
        cells.append(MqarCell(length=length, pairs=pairs, rows=rows, recall=recall))
    state_bytes = model.initial_state(batch_size=1).nbytes
    return MqarResult(cells=tuple(cells), state_bytes=state_bytes, memory=memory, seed=seed)
