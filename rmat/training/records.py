"""What a run counts, and the rows that it writes down."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmat.storage import flush, to_json, write_file
from rmat.training.step import StepResult


@dataclass
class Interval:
    """Sums since the last training row of the metrics file."""

    updates: int = 0
    nats: float = 0.0
    scored: int = 0
    gradient_norm: float = 0.0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, result: StepResult, tokens: int, seconds: float) -> None:
        """Count one update; one that was skipped adds its tokens and its time only."""
        self.tokens += tokens
        self.seconds += seconds
        if result.skipped is None:
            self.updates += 1
            self.nats += result.nats
            self.scored += result.scored
            self.gradient_norm += result.gradient_norm


@dataclass
class Counters:
    """All that a run counts. `step`: updates done or skipped; `tokens`: tokens read; `elapsed`: wall-clock
    seconds of the loop, evaluation included; `step_seconds`: seconds of the updates alone; `nonfinite`:
    updates skipped."""

    step: int = 0
    tokens: int = 0
    elapsed: float = 0.0
    step_seconds: float = 0.0
    nonfinite: int = 0
    lanes: dict[str, Any] | None = None
    """Position in the data (`LaneState.to_dict()`), None at the start."""
    best_step: int | None = None
    best_score: float | None = None
    evaluated_step: int | None = None
    """When the newest evaluation was made."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """Its scores."""
    interval: Interval = field(default_factory=Interval)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; floats survive exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Counters":
        """Inverse of `to_dict`."""
        return cls(**{**values, "interval": Interval(**values["interval"])})

    def add(self, result: StepResult, tokens: int, seconds: float) -> None:
        """Count one update that read `tokens` and took `seconds`."""
        self.step += 1
        self.tokens += tokens
        self.step_seconds += seconds
        self.nonfinite += result.skipped is not None
        self.interval.add(result, tokens, seconds)

    def note_evaluation(self, scores: dict[str, float]) -> bool:
        """Remember an evaluation at the present step; whether it is the best so far."""
        self.evaluated_step, self.evaluation = self.step, scores
        score = next(iter(scores.values()))
        best = math.isfinite(score) and (self.best_score is None or score < self.best_score)
        if best:
            self.best_step, self.best_score = self.step, score
        return best


class JsonLines:
    """A file of one JSON object a line, each with the key "step", in order of time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Add `row` and hand it to the operating system, so that the death of this process cannot lose it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")

    def cut_after(self, step: int) -> None:
        """Drop every row later than `step`, and the remains of a row whose writing was interrupted."""
        kept = [row for row in self.rows() if row["step"] <= step]
        write_file(self.path, "".join(to_json(row) + "\n" for row in kept))

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        if self.path.exists():
            flush(self.path)
