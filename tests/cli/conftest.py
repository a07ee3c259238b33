"""A model trained for a moment by the command itself, shared by all tests of the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rmat.cli.main import main
from rmat.data.tokenizer import load_tokenizer
from tests.makers.engines import small_model

TOY = [
    "data.tokenizer=bytes",
    "train.steps=6",
    "train.window=32",
    "train.batch_size=2",
    "train.eval_every=3",
    "train.sample_every=0",
    "train.eval_bytes=400",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.segment_len=16",
    "model.n_slots=8",
]
"""Settings of a run of about a second."""


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on the last line."""
        return dict(json.loads(self.out.splitlines()[-1]))

    def refused(self) -> str:
        """The one sentence of a command that ended with status 2."""
        assert self.status == 2, self
        lines = [line for line in self.err.splitlines() if line.startswith("rmat")]
        assert len(lines) == 1 and "Traceback" not in self.err and not self.out, self
        return lines[0]


class Rmat:
    """Runs the command in this process, which is quick, or in a new one, which is real."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._capfd.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            assert isinstance(end.code, int | None)
            status = end.code or 0
        captured = self._capfd.readouterr()
        return Outcome(status, captured.out, captured.err)


def in_new_process(arguments: Sequence[str | Path], *, cwd: Path, stdin: bytes = b"") -> Outcome:
    """The command as a user runs it, with `stdin` on standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "rmat", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def rmat(capfd: pytest.CaptureFixture[str]) -> Rmat:
    return Rmat(capfd)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with texts to learn from; tokenised data is cached in it."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "texts").mkdir()
    for number in range(120):
        line = f"the {number}th text says that {number} and {number} make {2 * number}.\n"
        (folder / "texts" / f"{number}.txt").write_text(line * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMAT_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="session")
def trained(workplace: Path) -> Outcome:
    """The outcome of the training command; its run is in `workplace/run`."""
    arguments = [
        "train",
        "--preset",
        "tiny",
        "--data",
        workplace / "texts",
        "--out",
        workplace / "run",
        "--json",
        *TOY,
    ]
    outcome = in_new_process(arguments, cwd=workplace)
    assert outcome.status == 0, outcome.err
    return outcome


@pytest.fixture(scope="session")
def run_folder(trained: Outcome, workplace: Path) -> Path:
    return workplace / "run"


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a byte model whose answers are as long as asked for."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer("bytes")
    small_model("recommended", tokenizer).save(folder, tokenizer=tokenizer)
    return folder
