"""Questions about long texts and the accuracy of a model's answers, cell by cell of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmat.data.synthetic.task import Example
from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.answering import Advance, answers
from rmat.evaluation.intervals import bootstrap_ratio, wilson
from rmat.model import LanguageModel
from rmat.model.language_model import MemoryMode

SHOWN_EXAMPLES = 5
"""Examples kept for inspection."""

SHOWN_CHARACTERS = 300
"""So much of a prompt's end is kept."""

Score = Callable[[str, Example], float]
"""Score of an answer, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked in one cell of a table."""

    task: str
    """Name of the task."""
    length: int
    """Most tokens of document token, prompt, answer and end token; 0 for no filler."""
    depth: float | None
    """Share of the filler before what is asked for; None: random."""
    examples: Sequence[Example]
    """What is asked; their prompts are made while they are read."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Accuracy in one cell of a table."""

    task: str
    """As in `Questions`."""
    length: int
    """As in `Questions`."""
    depth: float | None
    """As in `Questions`."""
    scores: tuple[float, ...]
    """Of each sample, 0 to 1."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: task, length, depth, samples, accuracy, and its 95 % bounds low and high.

        Bounds are Wilson's where every score is 0 or 1, else bootstrapped (None for a single sample).
        """
        whole = all(score in (0.0, 1.0) for score in self.scores)
        found = (
            wilson(int(sum(self.scores)), len(self.scores))
            if whole
            else bootstrap_ratio(self.scores, np.ones(len(self.scores)))
        )
        return {
            "task": self.task,
            "length": self.length,
            "depth": self.depth,
            "samples": len(self.scores),
            "accuracy": found.value,
            "low": found.low,
            "high": found.high,
        }


@dataclass(frozen=True, kw_only=True)
class QuestionResult:
    """Result of `passkey`, `needle` and `babilong`."""

    cells: tuple[Cell, ...]
    """In the order in which they were asked."""
    state_bytes: int
    """Size of the streaming state of one row."""
    memory: MemoryMode
    """How the memory was used."""
    seed: int
    """Seed of the samples."""
    examples: tuple[dict[str, Any], ...]
    """The first samples of the first cells: task, length, depth, end of the prompt, reference, output and score."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: cells, state_bytes, memory, seed, examples."""
        return {
            "cells": [cell.to_dict() for cell in self.cells],
            "state_bytes": self.state_bytes,
            "memory": self.memory,
            "seed": self.seed,
            "examples": list(self.examples),
        }


def ask(
    model: LanguageModel,
    tokenizer: Tokenizer,
    cells: Iterable[Questions],
    *,
    score: Score,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 8,
    piece: int = 4096,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> QuestionResult:
    """Ask a model the questions of every cell and score what it says.

    Args:
        cells: what to ask; each needs at least one example.
        score: judges an output.
        seed: for the record.
        model, tokenizer, max_new_tokens, batch_size, piece, memory, advance: see `rmat.evaluation.answering.answers`.

    Raises ValueError as `answers` does.
    """
    found: list[Cell] = []
    shown: list[dict[str, Any]] = []
    for cell in cells:
        outputs = answers(
            model,
            tokenizer,
            cell.examples,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            piece=piece,
            memory=memory,
            advance=advance,
        )
        scores = []
        for example, output in zip(cell.examples, outputs, strict=True):
            scores.append(score(output, example))
            if len(scores) == 1 and len(shown) < SHOWN_EXAMPLES:
                shown.append(
                    {
                        "task": cell.task,
                        "length": cell.length,
                        "depth": cell.depth,
                        "prompt_end": _end(example.pieces),
                        "reference": example.answer,
                        "output": output,
                        "score": scores[0],
                    }
                )
        found.append(Cell(task=cell.task, length=cell.length, depth=cell.depth, scores=tuple(scores)))
    return QuestionResult(
        cells=tuple(found),
        state_bytes=model.initial_state(batch_size=1).nbytes,
        memory=memory,
        seed=seed,
        examples=tuple(shown),
    )


def _end(pieces: Iterable[str]) -> str:
    """The last characters of a text, holding little of it at once."""
    end = ""
    for piece in pieces:
        end = (end + piece)[-SHOWN_CHARACTERS:]
    return end
