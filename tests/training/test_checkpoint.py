"""Checkpoints: whole or not there, checked, and only as many as wanted."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rmat import storage
from rmat.training import checkpoint
from rmat.training.checkpoint import (
    Saver,
    list_checkpoints,
    model_tensors,
    newest_sound_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from rmat.training.config import TrainConfig
from rmat.training.distributed import Processes, joined
from tests.makers.runs import SHARD
from tests.makers.together import together


def tensors(step: int) -> dict[str, torch.Tensor]:
    base = torch.arange(6, dtype=torch.float64) + step
    return {
        "a": base.view(2, 3).T,
        "b": base[:2].clone(),
        "c": torch.tensor(2.0),
        "torch": torch.arange(4).byte(),
    }


def write(folder: Path, step: int) -> Path:
    values = {"counters": {"loss": 0.1 + step}, "text": "ä"}
    write_checkpoint(folder, step, tensors(step), values, Processes())
    return folder / f"step-{step:08d}"


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    assert path.name == "step-00000007"
    back = read_checkpoint(path)
    assert (back.step, back.values) == (7, {"counters": {"loss": 7.1}, "text": "ä"})
    held = back.read()
    assert held.keys() == tensors(7).keys()
    for name, value in tensors(7).items():
        assert torch.equal(held[name], value) and held[name].dtype == value.dtype


def save_views(folder: Path) -> None:
    with joined(TrainConfig(parallel="ddp")) as processes:
        rows = torch.arange(12.0).view(3, 4)
        saver = Saver(folder, 2, processes)
        saver.save(
            1, {"rows": processes.by_row(rows[:, 1:], 3), "one": processes.by_row(rows[2:], 1)}, {}, None
        )
        saver.wait()


def test_rows_of_a_process_may_be_views(tmp_path: Path) -> None:
    together(1, save_views, tmp_path)
    held, rows = read_checkpoint(tmp_path / "step-00000001").read(), torch.arange(12.0).view(3, 4)
    assert torch.equal(held["rows"], rows[:, 1:]) and torch.equal(held["one"], rows[2:])


def test_what_is_saved_is_what_was_held_at_that_moment(tmp_path: Path) -> None:
    saver, held = Saver(tmp_path, 2, Processes()), tensors(1)
    for step in (1, 2, 3):
        saver.save(step, held, {}, None)
        for x in held.values():
            x += 1
    saver.wait()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    assert read_checkpoint(tmp_path / "step-00000002").read()["b"].tolist() == [2, 3]


def test_what_goes_wrong_behind_the_back_is_told(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").write_text("a file")
    saver = Saver(tmp_path, 2, Processes())
    saver.save(1, tensors(1), {}, None)
    with pytest.raises(FileExistsError, match="is no folder of its own"):
        saver.wait()
    saver.wait()  # told once


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


FILES = (SHARD, "trainer.json", "manifest.json")
HARMS = [
    (name, harm)
    for name in FILES
    for harm in (truncate, flip_a_bit, Path.unlink)
    # A bit of white space more or less in the manifest changes nothing.
    if (name, harm) != ("manifest.json", flip_a_bit)
]


@pytest.mark.parametrize(("name", "harm"), HARMS)
def test_a_damaged_one_is_noticed_and_the_one_before_used(
    tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    write(tmp_path, 1)
    harm(write(tmp_path, 2) / name)
    said: list[str] = []
    found = newest_sound_checkpoint(tmp_path, said.append)
    assert found is not None and found.step == 1
    assert len(said) == 1 and "step-00000002 is damaged" in said[0] and name in said[0]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert (tmp_path / "damaged-step-00000002").is_dir()


def test_without_a_whole_one_there_is_none(tmp_path: Path) -> None:
    said: list[str] = []
    assert newest_sound_checkpoint(tmp_path, said.append) is None
    truncate(write(tmp_path, 1) / "trainer.json")
    assert newest_sound_checkpoint(tmp_path, said.append) is None
    assert len(said) == 1


def test_a_newer_format_is_no_damage(tmp_path: Path) -> None:
    path = write(tmp_path, 1) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ValueError, match=r"format 99.*update rmat"):
        newest_sound_checkpoint(tmp_path, print)
    assert list_checkpoints(tmp_path)


class Death(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def test_death_at_any_point_of_writing_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step that touches the disk is made the last one in turn."""
    calls = {"left": 1000}

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            calls["left"] -= 1
            if calls["left"] < 0:
                raise Death
            return function(*arguments, **more)

        return call

    for owner, name in (
        (checkpoint, "save"),
        (storage, "flush"),
        (Path, "write_text"),
        (Path, "mkdir"),
        (Path, "unlink"),  # what is dead does not tidy up
        (shutil, "rmtree"),
        (os, "rename"),
        (os, "replace"),
    ):
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    points = 0
    while True:
        folder = tmp_path / str(points)
        folder.mkdir()
        calls["left"] = 1000
        write(folder, 1)
        calls["left"] = points
        try:
            write(folder, 2)
            died = False
        except Death:
            died = True
        calls["left"] = 1000
        said: list[str] = []
        found = newest_sound_checkpoint(folder, said.append)
        assert found is not None and found.step in (1, 2)
        assert not said, "an incomplete checkpoint took the name of a finished one"
        write(folder, 2)
        storage.remove_partial(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]
        points += 1
        if not died:
            break
    assert points > 10


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        write(tmp_path, step)
    prune_checkpoints(tmp_path, 2, best_step=3)
    assert [read_checkpoint(path).step for path in list_checkpoints(tmp_path)] == [3, 5, 6]
    prune_checkpoints(tmp_path, 2, best_step=None)
    assert [read_checkpoint(path).step for path in list_checkpoints(tmp_path)] == [5, 6]


def test_shared_weights_are_kept_once_and_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(3, 2)
            self.head = nn.Linear(2, 3, bias=False)
            self.head.weight = self.embedding.weight
            self.register_buffer("table", torch.ones(2))

    assert set(model_tensors(Tied())) == {"embedding.weight", "table"}


def test_a_checkpoint_of_format_1_is_read(tmp_path: Path) -> None:
    """In it the tensors of each kind lay in a file of their own, under the same names."""
    kinds = {"model": {"a.weight": torch.ones(2, 3)}, "stream": {"position": torch.tensor([3, 4])}}
    for name, held in kinds.items():
        save_file(held, tmp_path / f"{name}.safetensors")
    (tmp_path / "trainer.json").write_text('{"counters": 1}')
    files = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in tmp_path.iterdir()
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "step": 9, "files": files}))
    old = read_checkpoint(tmp_path)
    assert (old.step, old.values) == (9, {"counters": 1})
    assert {name: x.tolist() for name, x in old.read().items()} == {
        "a.weight": [[1, 1, 1], [1, 1, 1]],
        "position": [3, 4],
    }
