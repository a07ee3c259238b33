"""Rows of a run's metrics in TensorBoard, trackio or Weights & Biases, each through its own library, beside
metrics.jsonl."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rmat.training.progress import Reporter

PROJECT = "rmat"
"""Project under which trackio and Weights & Biases list a run."""

Send = Callable[[dict[str, float], int], None]
"""Takes numbers by their names, and the update that they belong to."""


class Tracked:
    """A reporter that also sends every row's numbers on."""

    def __init__(self, reporter: Reporter, senders: list[Send]) -> None:
        self._reporter, self._senders = reporter, senders

    def logged(self, row: dict[str, Any]) -> None:
        """Pass a row on to all."""
        for send in self._senders:
            send(numbers(row), row["step"])
        self._reporter.logged(row)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reporter, name)


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a row of metrics as `kind/name`, and `kind/name/index` of lists."""
    found: dict[str, float] = {}
    for name, value in row.items():
        values = (
            {f"/{index}": each for index, each in enumerate(value)}
            if isinstance(value, list)
            else {"": value}
        )
        for index, each in values.items():
            if isinstance(each, (int, float)) and math.isfinite(each) and name != "step":
                found[f"{row['kind']}/{name}{index}"] = float(each)
    return found


def require(names: tuple[str, ...]) -> None:
    """Raises ModuleNotFoundError for a library of `names` that is not installed."""
    for name in names:
        _library(name)


@contextmanager
def tracked(
    reporter: Reporter, names: tuple[str, ...], folder: Path, settings: dict[str, Any], step: int
) -> Iterator[Reporter]:
    """A reporter whose rows also go to the libraries of `names`, which are told the run's name and settings.

    `step`: updates done before, after which TensorBoard drops what it has. The libraries are there
    (`require`).
    """
    with ExitStack() as opened:
        senders = [opened.enter_context(_open(name, folder, settings, step)) for name in names]
        yield Tracked(reporter, senders) if senders else reporter


@contextmanager
def _open(name: str, folder: Path, settings: dict[str, Any], step: int) -> Iterator[Send]:
    if name == "tensorboard":
        writer = _library(name).SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

        def send(values: dict[str, float], at: int) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, at)

        try:
            yield send
        finally:
            writer.close()
        return
    library = _library(name)
    # A run that is resumed goes on under its name; Weights & Biases knows it by an id.
    own = {"id": hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16], "dir": str(folder)}
    library.init(
        project=PROJECT, name=folder.name, config=settings, resume="allow", **(own if name == "wandb" else {})
    )
    try:
        yield lambda values, at: library.log(values, step=at)
    finally:
        library.finish()


def _library(name: str) -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError:
        raise ModuleNotFoundError(
            f"train.track names {name}, which is not installed: pip install {name}"
        ) from None
