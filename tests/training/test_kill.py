"""A process killed at any moment loses no more than the steps since its last checkpoint."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rmat.training.config import RunConfig
from rmat.training.loop import train
from rmat.training.progress import Silent
from tests.makers import runs
from tests.makers.runs import assert_same_run, evaluate, pausing_sample

MakeConfig = Callable[..., RunConfig]
FIELDS = {"steps": 30, "checkpoint_every": 2, "eval_every": 7, "log_every": 3, "sample_every": 1}
"""With the pauses of sampling no run is shorter than 0.6 seconds."""


def train_in_a_process(config: RunConfig, file: Path, kill_after: float | None) -> bool:
    """Start or resume the run; kill it `kill_after` seconds after it was ready. Whether the kill came in
    time."""
    file.write_text(json.dumps(config.to_dict()))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, runs.__file__, str(file)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        if kill_after is not None:
            time.sleep(kill_after)
            process.kill()
        status = process.wait(timeout=120)
    assert status in (0, -9), status
    return status == -9


def train_with_kills(config: RunConfig, file: Path, kills: int, chance: random.Random) -> int:
    """Train to the end in spite of at most `kills` kills at random moments; how many came in time."""
    landed = 0
    while landed < kills:
        if not train_in_a_process(config, file, chance.uniform(0.0, 0.55)):
            return landed
        landed += 1
    train_in_a_process(config, file, None)
    return landed


def test_two_kills_leave_no_trace(config: MakeConfig, tmp_path: Path) -> None:
    whole = train(config("whole", **FIELDS), evaluate=evaluate, sample=pausing_sample, reporter=Silent())
    killed = config("killed", **FIELDS)
    assert train_with_kills(killed, tmp_path / "settings.json", 2, random.Random(0)) == 2
    assert_same_run(whole, Path(str(killed.out)))


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(config: MakeConfig, tmp_path: Path) -> None:
    whole = train(config("whole", **FIELDS), evaluate=evaluate, sample=pausing_sample, reporter=Silent())
    chance, landed, attempt = random.Random(1), 0, 0
    while landed < 20:
        killed = config(f"killed{attempt}", **FIELDS)
        landed += train_with_kills(killed, tmp_path / "settings.json", 20 - landed, chance)
        assert_same_run(whole, Path(str(killed.out)))
        attempt += 1
