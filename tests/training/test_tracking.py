"""Metrics in the libraries that people look at: what they are told, and that they are not needed."""

import builtins
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from rmat.training.config import RunConfig
from rmat.training.loop import train
from rmat.training.progress import Silent
from rmat.training.records import JsonLines
from rmat.training.tracking import numbers


class Library(types.SimpleNamespace):
    """A module of a tracker, which remembers what it is told."""

    def __init__(self) -> None:
        super().__init__(begun=[], told=[], finished=0)

    def init(self, **options: Any) -> None:
        self.begun.append(options)

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_every_row_is_told(config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {name: Library() for name in ("trackio", "wandb")}
    for name, library in libraries.items():
        monkeypatch.setitem(sys.modules, name, library)
    wanted = config(steps=4, log_every=2, track=("trackio", "wandb"))
    folder = train(wanted, reporter=Silent())
    rows = JsonLines(folder / "metrics.jsonl").rows()
    for library in libraries.values():
        assert library.told == [(row["step"], numbers(row)) for row in rows]
        assert library.finished == 1
        assert library.begun[0]["name"] == folder.name
        assert library.begun[0]["config"]["train"]["steps"] == 4
    assert "train/loss" in libraries["wandb"].told[0][1]
    assert "id" in libraries["wandb"].begun[0]
    assert "id" not in libraries["trackio"].begun[0]


def test_lists_are_numbered_and_nothing_else_than_numbers_goes() -> None:
    row = {
        "kind": "train",
        "step": 3,
        "loss": 0.5,
        "openness": [0.1, 0.2],
        "x": None,
        "y": float("nan"),
        "z": "a",
    }
    assert numbers(row) == {"train/loss": 0.5, "train/openness/0": 0.1, "train/openness/1": 0.2}


def test_a_library_that_is_not_there_is_named(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ModuleNotFoundError(name)
        return found(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"names tensorboard.*pip install tensorboard"):
        train(config(steps=1, track=("tensorboard",)), reporter=Silent())
    monkeypatch.undo()
    train(config(steps=1), reporter=Silent())  # the refused one has left nothing that this one would meet
    with pytest.raises(
        ValueError, match=r"'nonsense' is not possible: choose one of tensorboard, trackio, wandb"
    ):
        config(track=("nonsense",))


def test_tensorboard_has_the_numbers(config: Callable[..., RunConfig]) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(config(steps=4, log_every=2, track=("tensorboard",)), reporter=Silent())
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    rows = [row for row in JsonLines(folder / "metrics.jsonl").rows() if row["kind"] == "train"]
    told = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert dict(told) == pytest.approx({row["step"]: row["loss"] for row in rows})
