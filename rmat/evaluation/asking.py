"""Questions about long texts and the accuracy of a model's answers, cell by cell of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmat.data.documents import Part
from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.answering import answers
from rmat.evaluation.intervals import bootstrap_ratio, wilson
from rmat.generation.reader import Advance
from rmat.model import LanguageModel
from rmat.model.language_model import MemoryMode
from rmat.tasks.task import Example, texts_of

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
    length: int | None
    """Most tokens of document token, prompt, answer and end token; 0 for no filler; None: as long as they are."""
    depth: float | None
    """Share of the filler before what is asked for; None: random."""
    examples: Sequence[Example]
    """What is asked; their prompts are made while they are read."""
    turns: int | None = None
    """Turns of a dialogue between what is asked for and the question; None where there are none."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Accuracy in one cell of a table."""

    task: str
    """As in `Questions`."""
    length: int
    """As in `Questions`; where that is None the tokens of a prompt, on average."""
    depth: float | None
    """As in `Questions`."""
    scores: tuple[float, ...]
    """Of each sample, 0 to 1."""
    turns: int | None = None
    """As in `Questions`."""

    @property
    def place(self) -> dict[str, Any]:
        """JSON-able: task, turns (if it has any), length, depth."""
        turns = {} if self.turns is None else {"turns": self.turns}
        return {"task": self.task, **turns, "length": self.length, "depth": self.depth}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: task, turns (if it has any), length, depth, samples, accuracy, and its 95 % bounds low and high.

        Bounds are Wilson's where every score is 0 or 1, else bootstrapped (None for a single sample).
        """
        whole = all(score in (0.0, 1.0) for score in self.scores)
        found = (
            wilson(int(sum(self.scores)), len(self.scores))
            if whole
            else bootstrap_ratio(self.scores, np.ones(len(self.scores)))
        )
        return {
            **self.place,
            "samples": len(self.scores),
            "accuracy": found.value,
            "low": found.low,
            "high": found.high,
        }


@dataclass(frozen=True, kw_only=True)
class QuestionResult:
    """Result of `passkey`, `needle`, `babilong` and `facts`."""

    cells: tuple[Cell, ...]
    """In the order in which they were asked."""
    state_bytes: int
    """Size of the streaming state of one row."""
    memory: MemoryMode
    """How the memory was used."""
    seed: int
    """Seed of the samples."""
    examples: tuple[dict[str, Any], ...]
    """The first samples of the first cells: place of the cell, end of the prompt, reference, output and score."""

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
        read: list[int] = []
        outputs = answers(
            model,
            tokenizer,
            cell.examples,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            piece=piece,
            memory=memory,
            advance=_counting(read, advance),
        )
        said = list(outputs)
        length = round(sum(read) / len(cell.examples)) if cell.length is None else cell.length
        scores = tuple(score(output, example) for output, example in zip(said, cell.examples, strict=True))
        found.append(Cell(task=cell.task, length=length, depth=cell.depth, scores=scores, turns=cell.turns))
        if len(shown) < SHOWN_EXAMPLES:
            shown.append(
                {
                    **found[-1].place,
                    "prompt_end": _end(cell.examples[0].pieces),
                    "reference": cell.examples[0].answer,
                    "output": said[0],
                    "score": scores[0],
                }
            )
    return QuestionResult(
        cells=tuple(found),
        state_bytes=model.initial_state(batch_size=1).nbytes,
        memory=memory,
        seed=seed,
        examples=tuple(shown),
    )


def _counting(read: list[int], advance: Advance | None) -> Advance:
    """Tells `advance` what it is told, and writes it down."""

    def count(tokens: int) -> None:
        read.append(tokens)
        if advance:
            advance(tokens)

    return count


def _end(parts: Iterable[Part]) -> str:
    """The last characters of a text, holding little of it at once."""
    end = ""
    for piece in texts_of(parts):
        end = (end + piece)[-SHOWN_CHARACTERS:]
    return end
