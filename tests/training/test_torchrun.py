"""The command under torchrun: evaluation and gates shared by processes, two hosts, ranks that die."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rmat import api
from rmat.cli.main import main
from rmat.storage import load_model
from rmat.training.checkpoint import DamagedCheckpointError, list_checkpoints, read_checkpoint
from rmat.training.config import RunConfig
from rmat.training.loop import train
from rmat.training.progress import Silent
from rmat.training.records import JsonLines
from tests.makers.pretrained import source_folder
from tests.makers.runs import assert_same_run, metrics
from tests.training.test_distributed import assert_close, assert_same_end, plain

pytestmark = pytest.mark.slow
MakeConfig = Callable[..., RunConfig]
KILLS = int(os.environ.get("RMAT_KILLS", "5"))
"""How many processes are killed, one after the other."""


@contextlib.contextmanager
def torchrun(options: list[str], arguments: list[str | Path]) -> Iterator[subprocess.Popen[str]]:
    """`torchrun OPTIONS -m rmat ARGUMENTS`, ended with all its processes when the block is left."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "-m", "rmat", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        for pid in [*workers(process), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def finish(process: subprocess.Popen[str], timeout: float) -> str:
    """What it prints; fails if it fails."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-5000:]
    return out


def workers(agent: subprocess.Popen[str]) -> list[int]:
    """The processes that a torchrun has started, by rank."""
    found = subprocess.run(["pgrep", "-P", str(agent.pid)], capture_output=True, text=True).stdout.split()
    return sorted(map(int, found))


def written(config: RunConfig, folder: Path) -> Path:
    """A file for `rmat train --config`."""
    path = folder / f"{Path(str(config.out)).name}.yaml"
    path.write_text(json.dumps(config.to_dict()))
    return path


@pytest.fixture
def run_folder(config: MakeConfig) -> Path:
    wanted = plain(config, "run", steps=4, eval_every=0)
    return train(wanted, evaluate=api.evaluate, reporter=Silent())


@pytest.mark.parametrize(
    "measurement",
    [
        ["perplexity", "--split", "all", "--batch-size", "3"],
        ["perplexity", "--split", "all", "--batch-size", "1", "--memory", "frozen"],
        ["ablation", "--split", "all", "--batch-size", "4"],
        ["passkey", "--length", "300", "--samples", "5", "--batch-size", "2"],
        ["needle", "--length", "600", "--samples", "3", "--batch-size", "2", "--memory", "shuffled"],
    ],
    ids=" ".join,
)
def test_two_processes_measure_as_one(
    run_folder: Path, tmp_path: Path, measurement: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kind, *options = measurement
    arguments = ["eval", kind, str(run_folder), *options, "--json"]
    assert main(arguments) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    with torchrun(
        ["--standalone", "--nproc-per-node", "2"], [*arguments, "--out", tmp_path / "out"]
    ) as agent:
        lines = finish(agent, 200).splitlines()
    assert len(lines) == 1 and json.loads(lines[0]) == alone
    assert (tmp_path / "out" / "result.json").is_file()


def test_two_processes_fit_gates_as_one(tmp_path: Path) -> None:
    source = source_folder(tmp_path / "source")
    for name in ("one", "two"):
        assert main(["import", str(source), str(tmp_path / name), "--window", "32", "--slots", "48"]) == 0
    options = ["--prose", "3", "--asking", "0", "--share", "0.3"]
    assert main(["gates", str(tmp_path / "one"), *options]) == 0
    with torchrun(["--standalone", "--nproc-per-node", "2"], ["gates", tmp_path / "two", *options]) as agent:
        assert finish(agent, 200).count("gates of") == 1
    one, two = (load_model(tmp_path / name).state_dict() for name in ("one", "two"))
    assert any("memory.writer.score" in name for name in one)
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, rtol=1e-4, atol=1e-4, msg=name)


def test_two_hosts_train_as_one_process(config: MakeConfig, tmp_path: Path) -> None:
    """Two torchrun agents that find each other, each with two processes: weights shared out over all four, two
    to a row."""
    one, many = (
        plain(config, name, steps=12, dtype="float64", window=40, **more)
        for name, more in (("one", {}), ("many", {"parallel": "fsdp", "context_parallel": 2}))
    )
    train(one, evaluate=api.evaluate, reporter=Silent())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-id", "hosts"]
    options += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    command: list[str | Path] = ["train", "--config", written(many, tmp_path)]
    with torchrun(options, command) as first, torchrun(options, command) as second:
        for agent in (first, second):
            finish(agent, 280)
    assert_close(Path(str(one.out)), Path(str(many.out)), 1e-12)
    assert_same_end(Path(str(one.out)), Path(str(many.out)), 1e-11)


def assert_newest_is_whole(folder: Path) -> None:
    """The newest checkpoint, if there is one, is what was written; a process that still lives may replace it
    meanwhile."""
    for attempt in range(3):
        if not (found := list_checkpoints(folder / "checkpoints")):
            return
        try:
            read_checkpoint(found[-1])
            return
        except DamagedCheckpointError:
            assert attempt < 2 or found[-1] != list_checkpoints(folder / "checkpoints")[-1]


def rows_of(folder: Path) -> int:
    """Steps that the metrics tell of."""
    return max((row["step"] for row in JsonLines(folder / "metrics.jsonl").rows()), default=0)


@pytest.mark.timeout(600 + 120 * KILLS)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_that_die_leave_no_trace(config: MakeConfig, tmp_path: Path, parallel: str) -> None:
    """Killed at random moments, started anew by torchrun, going on by themselves: the same run as one that was
    left alone, bit for bit, with dropout and what rows carry."""
    steps = 40 * KILLS
    fields: dict[str, Any] = {"steps": steps, "checkpoint_every": 10, "log_every": 5, "eval_every": 90}
    fields |= {"eval_bytes": 600, "sample_every": 0, "parallel": parallel, "max_nonfinite": 0}
    whole, killed = (config(name, **fields) for name in ("whole", "killed"))
    options = ["--standalone", "--nproc-per-node", "2", "--monitor-interval", "0.1"]
    with torchrun(options, ["train", "--config", written(whole, tmp_path)]) as agent:
        finish(agent, 600)
    chance, landed, folder = random.Random(KILLS), 0, Path(str(killed.out))
    options += ["--max-restarts", str(KILLS)]
    with torchrun(options, ["train", "--config", written(killed, tmp_path)]) as agent:
        before: set[int] = set()
        while landed < KILLS:
            while len(now := workers(agent)) < 2 or before & set(now):
                assert agent.poll() is None, agent.communicate()[1][-5000:]
                time.sleep(0.05)
            if landed % 2:  # while it starts, or while it trains
                time.sleep(chance.uniform(0, 6))
            else:
                read = rows_of(folder)
                while rows_of(folder) <= read:
                    assert agent.poll() is None, agent.communicate()[1][-5000:]
                    time.sleep(0.05)
                time.sleep(chance.uniform(0, 1))
            before = set(now)
            os.kill(chance.choice(now), signal.SIGKILL)
            landed += 1
            assert_newest_is_whole(folder)
        finish(agent, 600)
    assert landed == KILLS
    assert_same_run(Path(str(whole.out)), folder)
    told = [row["step"] for row in metrics(folder) if row["kind"] == "train"]
    assert told == list(range(5, steps + 1, 5))
