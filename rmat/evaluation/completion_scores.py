"""How completed lines are scored, and what `completion` finds: by way of asking, with differences that are
paired."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmat.evaluation.intervals import Interval, bootstrap_ratio, paired_bootstrap_ratio, wilson
from rmat.evaluation.next_line import CodeFile
from rmat.model.language_model import MemoryMode

SHOWN = 5
"""Lines kept for inspection with every answer."""


class Way(NamedTuple):
    """How lines are asked for."""

    prompt: Literal["prefix", "fim"]
    context: bool
    memory: MemoryMode


ASPECTS: dict[str, tuple[Any, Any]] = {
    "prompt": ("fim", "prefix"),
    "context": (True, False),
    "memory": ("on", "zeroed"),
}
"""What ways differ in, with the two values whose difference is told, first minus second."""


@dataclass(frozen=True, kw_only=True)
class CompletionResult:
    """Result of `completion`. Arrays hold one entry a line, so that ways can be paired."""

    files: tuple[CodeFile, ...]
    """What was asked."""
    answers: dict[Way, tuple[str, ...]] = field(repr=False)
    """By way: the line that was written for each that was asked for, in the order of the files."""
    tokens: dict[Way, int]
    """By way: tokens read before the lines, over all lines."""
    state_bytes: int
    """Size of the streaming state of one row."""
    seed: int
    """Seed of the bootstrap."""

    @property
    def targets(self) -> list[str]:
        """The lines that were asked for."""
        return [line.target for file in self.files for line in file.lines]

    @cached_property
    def scores(self) -> dict[Way, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """By way: (lines,) 1 where the line is exactly right, else 0; (lines,) edit similarity, 0 to 1."""
        found = {}
        for way, answers in self.answers.items():
            pairs = list(zip(answers, self.targets, strict=True))
            right = np.array([is_right(*pair) for pair in pairs], dtype=np.float64)
            found[way] = right, np.array([similarity(*pair) for pair in pairs])
        return found

    def accuracy(self, way: Way) -> Interval:
        """Share of lines that are exactly right. The wider of two intervals: over files, whose lines are not
        independent of each other, and Wilson's, because no share is certain to be 0 or 1."""
        right = self.scores[way][0]
        files, lines = self._interval(right), wilson(int(right.sum()), len(right))
        assert lines.low is not None and lines.high is not None
        low = lines.low if files.low is None else min(files.low, lines.low)
        high = lines.high if files.high is None else max(files.high, lines.high)
        return Interval(value=files.value, low=low, high=high)

    def minus(self, way: Way, other: Way) -> tuple[Interval, Interval]:
        """Accuracy and edit similarity of one way minus those of another, paired over files."""
        lines = self._per_file(np.ones(len(self.targets)))
        right, alike = (
            paired_bootstrap_ratio(self._per_file(ours), self._per_file(theirs), lines, seed=self.seed)
            for ours, theirs in zip(self.scores[way], self.scores[other], strict=True)
        )
        return right, alike

    def _interval(self, values: NDArray[np.float64]) -> Interval:
        return bootstrap_ratio(self._per_file(values), self._per_file(np.ones(len(values))), seed=self.seed)

    def _per_file(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the lines of each file."""
        return np.add.reduceat(values, np.cumsum([0, *(len(file.lines) for file in self.files)])[:-1])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: `cells` (a way each), `differences` (two ways that differ in one aspect), `samples`,
        `files`, `context_bytes` (mean over files), `state_bytes`, `seed`, `examples`."""
        lines = [(file, line) for file in self.files for line in file.lines]
        context = [sum(len(text.encode()) for _, text in file.context) for file in self.files]
        return {
            "task": "completion",
            "cells": [self._cell(way) for way in self.answers],
            "differences": list(self._differences()),
            "samples": len(lines),
            "files": len(self.files),
            "context_bytes": float(np.mean(context)),
            "state_bytes": self.state_bytes,
            "seed": self.seed,
            "examples": [
                {
                    "file": file.name,
                    "line": line.number,
                    "target": line.target,
                    "answers": {name_of(way): answers[place] for way, answers in self.answers.items()},
                }
                for place, (file, line) in enumerate(lines[:SHOWN])
            ],
        }

    def _cell(self, way: Way) -> dict[str, Any]:
        right, alike = self.accuracy(way), self._interval(self.scores[way][1])
        return {
            "task": f"{way.prompt}, memory {way.memory}",
            **way._asdict(),
            "length": round(self.tokens[way] / len(self.targets)),
            "depth": None,
            "samples": len(self.targets),
            "accuracy": right.value,
            "low": right.low,
            "high": right.high,
            "similarity": alike.value,
            "similarity_low": alike.low,
            "similarity_high": alike.high,
        }

    def _differences(self) -> Iterator[dict[str, Any]]:
        for way in self.answers:
            for aspect, (value, other) in ASPECTS.items():
                against = way._replace(**{aspect: other})
                if getattr(way, aspect) == value and against in self.answers:
                    right, alike = self.minus(way, against)
                    yield {
                        "aspect": aspect,
                        "of": name_of(way),
                        "minus": name_of(against),
                        "accuracy": right.value,
                        "low": right.low,
                        "high": right.high,
                        "similarity": alike.value,
                        "similarity_low": alike.low,
                        "similarity_high": alike.high,
                    }


def name_of(way: Way) -> str:
    """A way in words."""
    return f"{way.prompt}{', context' if way.context else ''}, memory {way.memory}"


def is_right(answer: str, target: str) -> bool:
    """Whether two lines are the same but for blanks at their ends; indentation counts."""
    return answer.rstrip() == target.rstrip()


def similarity(answer: str, target: str) -> float:
    """How alike two lines are, 0 to 1, blanks at their ends aside: twice the length of their longest common
    subsequence over their lengths together, which is the edit similarity of CodeXGLUE (arXiv 2102.04664)."""
    one, two = answer.rstrip(), target.rstrip()
    if not one and not two:
        return 1.0
    row = [0] * (len(two) + 1)
    for mine in one:
        before = row
        row = [0]
        for place, other in enumerate(two):
            row.append(before[place] + 1 if mine == other else max(before[place + 1], row[-1]))
    return 2 * row[-1] / (len(one) + len(two))
