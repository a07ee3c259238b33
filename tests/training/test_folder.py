"""The folder of a run belongs to one process at a time, and holds all that the run needs."""

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmat.data.config import DataConfig
from rmat.data.tokenizer import load_tokenizer
from rmat.storage import load_model
from rmat.training import run as module
from rmat.training.checkpoint import read_checkpoint
from rmat.training.config import RunConfig
from rmat.training.loop import train
from rmat.training.progress import Silent
from tests.makers.runs import assert_same_run, last_checkpoint

MakeConfig = Callable[..., RunConfig]


class Meeting(Silent):
    """A reporter that waits, before the first update, until the other run has been refused."""

    def __init__(self) -> None:
        self.begun, self.leave = threading.Event(), threading.Event()

    def started(self, step: int, steps: int) -> None:
        self.begun.set()
        assert self.leave.wait(60)


def refused_beside(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Train `first`; `second` is refused as long as it goes on, and `first` does not notice."""
    reporter = Meeting()
    thread = threading.Thread(target=lambda: train(**first, reporter=reporter))
    thread.start()
    try:
        assert reporter.begun.wait(60)
        with pytest.raises(ValueError, match=r"another process trains in .*: wait until it is done, or give"):
            train(**second, reporter=Silent())
    finally:
        reporter.leave.set()
        thread.join(60)


def test_a_second_run_is_refused_while_one_goes_on(config: MakeConfig) -> None:
    one, other = config(), config(seed=4)
    refused_beside({"config": one}, {"config": other})
    folder = Path(str(one.out))
    assert (folder / "result.json").exists() and RunConfig.load(folder).train.seed == 3
    with pytest.raises(ValueError, match="already holds a run: resume it"):
        train(other, reporter=Silent())
    assert not (folder / ".lock").exists()


def test_a_second_resume_is_refused_while_one_goes_on(config: MakeConfig) -> None:
    alone = train(config("alone", steps=12), reporter=Silent())
    folder = train(config(steps=12), reporter=Stopping(8))
    refused_beside({"resume": folder}, {"resume": folder})
    assert_same_run(folder, alone)


class Stopping(Silent):
    """A reporter that asks the run to stop after an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), 2)


def test_another_process_is_noticed_and_a_dead_one_is_not(config: MakeConfig, tmp_path: Path) -> None:
    folder = train(config(), reporter=Silent())
    code = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder / module.LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process trains in"):
            train(resume=folder, reporter=Silent())
        assert (folder / "result.json").exists(), "a refused resume leaves a complete run complete"
        holder.kill()
    (folder / module.LOCK_FILE).touch()
    assert train(resume=folder, reporter=Silent()) == folder


def test_runs_without_a_name_never_share_a_folder(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even within one second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rmat.training.run.time.strftime", lambda form: "20260101-000000")
    unnamed = [dataclasses.replace(config(seed=seed, steps=1), out=None) for seed in (1, 2, 3)]
    folders = [train(one, reporter=Silent()) for one in unnamed]
    assert [folder.name for folder in folders] == [
        f"tiny-recommended-20260101-000000{end}" for end in ("", "-2", "-3")
    ]
    assert [RunConfig.load(folder).train.seed for folder in folders] == [1, 2, 3]


def test_a_refused_run_leaves_no_folder(config: MakeConfig, tmp_path: Path) -> None:
    wanted = config()
    data = dataclasses.replace(wanted.data, specs=(str(tmp_path / "nowhere"),))
    with pytest.raises(ValueError, match="nowhere"):
        train(dataclasses.replace(wanted, data=data), reporter=Silent())
    assert not Path(str(wanted.out)).exists()
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="nowhere"):
        train(dataclasses.replace(wanted, data=data), reporter=Silent())
    assert os.listdir(tmp_path / "run") == [], "a folder that was there stays, as it was"


def test_a_linked_model_is_found_out_before_training(config: MakeConfig, tmp_path: Path) -> None:
    folder = train(config(), reporter=Silent())
    (folder / "model").rename(tmp_path / "kept")
    (folder / "model").symlink_to(tmp_path / "kept")
    before = last_checkpoint(folder)
    with pytest.raises(ValueError, match=r"run/model is a link, .*: remove the link, that folder stays"):
        train(resume=folder, reporter=Silent())
    assert last_checkpoint(folder) == before and (folder / "result.json").exists()
    (folder / "model").unlink()
    train(resume=folder, reporter=Silent())
    assert load_model(folder).config == load_model(tmp_path / "kept").config


@pytest.mark.parametrize("name", ["model", "metrics.jsonl", "result.json"])
def test_what_no_file_may_replace_is_found_out_before_training(
    config: MakeConfig, tmp_path: Path, name: str
) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / name)
    with pytest.raises((ValueError, FileExistsError), match=f"run/{name} is no "):
        train(config(), reporter=Silent())
    assert os.listdir(tmp_path / "run") == [name]


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_a_folder_that_cannot_be_one_is_refused(config: MakeConfig, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    out.symlink_to("nowhere") if kind == "dangling" else out.touch()
    with pytest.raises(ValueError, match="give a folder for the run"):
        train(config(), reporter=Silent())


def test_what_a_killed_writer_left_is_removed(config: MakeConfig) -> None:
    folder = train(config(), reporter=Silent())
    for left in (folder / ".config.json.0123.partial", folder / "checkpoints" / ".step-00000009.45.partial"):
        left.mkdir()
        (left / "x").touch()
    train(resume=folder, reporter=Silent())
    assert not list(folder.rglob("*.partial"))


def with_tokenizer(config: RunConfig, path: Path | str) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=str(path)))


def test_a_run_resumes_without_the_file_of_its_tokenizer(config: MakeConfig, tmp_path: Path) -> None:
    tokenizer = tmp_path / "own.json"
    load_tokenizer("bytes").save(tokenizer)
    whole = train(with_tokenizer(config("whole"), tokenizer), reporter=Silent())
    folder = train(with_tokenizer(config(steps=4), tokenizer), reporter=Silent())
    tokenizer.unlink()
    train(with_tokenizer(config(steps=8), tokenizer), resume=folder, reporter=Silent())
    assert_same_run_but_schedule(folder, whole)
    assert RunConfig.load(folder).data.tokenizer == str(tokenizer), "what was asked for stays on record"


def assert_same_run_but_schedule(left: Path, right: Path) -> None:
    one, two = (read_checkpoint(last_checkpoint(folder)) for folder in (left, right))
    assert one.step == two.step and one.values["counters"]["lanes"] == two.values["counters"]["lanes"]


def test_a_run_that_began_with_a_model_needs_it_no_more(config: MakeConfig, tmp_path: Path) -> None:
    """Not even where it was killed before its first update."""
    start = train(config("start"), reporter=Silent())
    wanted = with_tokenizer(config("tuned"), DataConfig.tokenizer)
    wanted = dataclasses.replace(wanted, start=str(start), model={})

    class Killed(BaseException):
        pass

    class Dying(Silent):
        def started(self, step: int, steps: int) -> None:
            raise Killed

    with pytest.raises(Killed):
        train(wanted, reporter=Dying())
    start.rename(tmp_path / "moved")
    train(resume=tmp_path / "tuned", reporter=Silent())
    (tmp_path / "moved").rename(start)
    whole = train(dataclasses.replace(wanted, out=str(tmp_path / "whole")), reporter=Silent())
    assert_same_run(tmp_path / "tuned", whole)
