"""Interrupted equals uninterrupted, bit for bit."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmat.training.checkpoint import list_checkpoints
from rmat.training.config import RunConfig
from rmat.training.loop import train
from rmat.training.progress import Silent
from tests.makers.runs import SHARD, Spoken, assert_same_run, evaluate, metrics, sample

MakeConfig = Callable[..., RunConfig]


class StopAt(Spoken):
    """Sends this process a signal when a step is done."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self.step, self.number = step, number

    def stepped(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


def train_whole(config: RunConfig) -> Path:
    return train(config, evaluate=evaluate, sample=sample, reporter=Silent())


def train_in_parts(config: RunConfig, stops: list[int]) -> Path:
    folder = train(config, evaluate=evaluate, sample=sample, reporter=StopAt(stops[0]))
    for stop in [*stops[1:], 0]:
        assert not (folder / "result.json").exists()
        folder = train(resume=folder, evaluate=evaluate, sample=sample, reporter=StopAt(stop))
    return folder


@pytest.mark.parametrize(
    ("fields", "stops"),
    [
        ({}, [3]),
        ({}, [1, 2, 6, 7]),
        ({"optimizer": "muon", "accumulate": 2, "schedule": "wsd", "z_loss": 1e-3}, [5]),
        ({"carry_state": False, "log_every": 1, "steps": 5}, [2, 4]),
        ({"steps": 30, "batch_size": 4, "window": 64, "checkpoint_every": 40, "sample_every": 0}, [23]),
    ],
    ids=["one stop", "many stops", "muon", "no carried state", "over the edge of an epoch"],
)
def test_stopped_and_resumed_equals_uninterrupted(
    config: MakeConfig, fields: dict[str, Any], stops: list[int]
) -> None:
    whole = train_whole(config("whole", **fields))
    parts = train_in_parts(config("parts", **fields), stops)
    assert_same_run(whole, parts)
    if fields.get("window") == 64:
        epoch = json.loads((whole / "data.json").read_text())["train"]["tokens"]
        assert json.loads((whole / "result.json").read_text())["tokens"] > epoch


@pytest.mark.parametrize("variant", ["paper", "xl", "local"])
def test_every_kind_of_memory_is_carried_over_a_stop(config: MakeConfig, variant: str) -> None:
    def of_variant(name: str) -> RunConfig:
        return dataclasses.replace(config(name, steps=5), variant=variant)

    assert_same_run(train_whole(of_variant("whole")), train_in_parts(of_variant("parts"), [3]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(config: MakeConfig, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    reporter = StopAt(3, number)
    folder = train(config(), reporter=reporter)
    assert [path.name for path in list_checkpoints(folder / "checkpoints")][-1] == "step-00000003"
    assert any(number.name in said for said in reporter.said)
    assert f"rmat train --resume {folder}" in reporter.said[-1]
    assert not (folder / "result.json").exists() and not (folder / "model").exists()
    assert signal.getsignal(number) is before


def test_a_damaged_checkpoint_costs_steps_but_not_exactness(config: MakeConfig) -> None:
    whole = train_whole(config("whole", log_every=1, sample_every=1))
    folder = train(
        config("parts", log_every=1, sample_every=1), evaluate=evaluate, sample=sample, reporter=StopAt(7)
    )
    newest = list_checkpoints(folder / "checkpoints")[-1]
    (newest / SHARD).write_bytes(b"nothing")
    reporter = Spoken()
    train(resume=folder, evaluate=evaluate, sample=sample, reporter=reporter)
    assert any(f"step-00000007 is damaged: its {SHARD}" in said for said in reporter.said)
    assert "continuing after step 6" in reporter.said
    assert_same_run(whole, folder)


def test_a_run_that_died_before_its_first_checkpoint_starts_over(config: MakeConfig) -> None:
    whole = train_whole(config("whole", checkpoint_every=5))

    class Dies(Silent):
        def stepped(self, step: int) -> None:
            if step == 4:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        train(config("parts", checkpoint_every=5), reporter=Dies())
    folder = Path(str(config("parts").out))
    assert metrics(folder) and not list_checkpoints(folder / "checkpoints")
    reporter = Spoken()
    train(resume=folder, evaluate=evaluate, sample=sample, reporter=reporter)
    assert any("starting at step 0" in said for said in reporter.said)
    assert_same_run(whole, folder)


def test_a_finished_run_can_be_asked_for_again_and_made_longer(config: MakeConfig) -> None:
    short = config("run", steps=4, min_lr_ratio=1.0, warmup_steps=0)
    folder = train_whole(short)
    before = metrics(folder)
    train(resume=folder, evaluate=evaluate, sample=sample, reporter=Silent())
    assert metrics(folder) == before
    longer = dataclasses.replace(short, train=dataclasses.replace(short.train, steps=8))
    train(longer, resume=folder, evaluate=evaluate, sample=sample, reporter=Silent())
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 8
    assert [row["step"] for row in metrics(folder) if row["kind"] == "train"] == [3, 4, 6, 8]


def test_other_settings_are_refused(config: MakeConfig) -> None:
    folder = train(config(), reporter=StopAt(2))
    changed = config()
    changed = dataclasses.replace(changed, train=dataclasses.replace(changed.train, batch_size=3))
    with pytest.raises(ValueError, match=r"train.batch_size is 3 but the run was started with 2"):
        train(changed, resume=folder, reporter=Silent())


def test_other_data_is_refused(config: MakeConfig) -> None:
    folder = train(config(), reporter=StopAt(2))
    description = json.loads((folder / "data.json").read_text())
    description["train"]["fingerprint"] = "of other texts"
    (folder / "data.json").write_text(json.dumps(description))
    result = folder / "result.json"
    result.write_text("{}")
    with pytest.raises(ValueError, match=r"the data has changed.*train differs"):
        train(resume=folder, reporter=Silent())
    assert result.read_text() == "{}"  # a refusal used to take away the result of a complete run


def test_another_environment_is_told(config: MakeConfig) -> None:
    folder = train(config(), reporter=StopAt(2))
    environment = json.loads((folder / "environment.json").read_text())
    environment["python"] = "3.0.0"
    (folder / "environment.json").write_text(json.dumps(environment))
    reporter = Spoken()
    train(resume=folder, reporter=reporter)
    assert any("environment differs from before (python)" in said for said in reporter.said)


def test_a_resumed_run_stays_in_its_folder(config: MakeConfig, tmp_path: Path) -> None:
    wanted = config()
    folder = train(wanted, reporter=Silent())
    with pytest.raises(ValueError, match=r"elsewhere.*leave `out` out"):
        train(dataclasses.replace(wanted, out=str(tmp_path / "elsewhere")), resume=folder, reporter=Silent())
    assert train(dataclasses.replace(wanted, out=None), resume=folder, reporter=Silent()) == folder
