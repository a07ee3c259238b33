import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rmat as package
from rmat.cli import describe
from rmat.cli.parsing import merge, nest
from rmat.machine import PATIENCE
from tests.cli.conftest import Rmat


def test_version(rmat: Rmat) -> None:
    assert rmat("--version").out == f"rmat {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "COMMAND"),
        (["trian"], "did you mean 'train'"),
        (["--versoin"], "COMMAND"),
        (["train", "-x"], "no option '-x'"),
        (["generate", "starter", "--max", "5"], "no option '--max': did you mean '--max-new-tokens'?"),
        (
            ["describe", "tiny", "pyproject.toml"],
            "is no setting: settings are written field=value; quote a pattern",
        ),
        (
            ["complete", "starter", "a.py", "pyproject.toml"],
            "one argument too many: 'pyproject.toml'; quote a pattern",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    rmat: Rmat, arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert sentence in rmat(*arguments).refused()


def test_of_processes_that_torchrun_started_one_tells_the_mistake(
    rmat: Rmat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait meanwhile, for torchrun ends all when one has failed; what the first does not tell, they
    do. A RANK in the environment alone is somebody else's."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    mistakes = (["generate", "nowhere/at/all", "x"], ["train", "--bogus"])
    monkeypatch.setenv("RANK", "1")
    assert all(rmat(*mistake).refused() for mistake in mistakes) and not waited
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert all(rmat(*mistake).refused() for mistake in mistakes) and waited == [PATIENCE] * 2
    monkeypatch.setenv("RANK", "0")
    assert all(rmat(*mistake).refused() for mistake in mistakes) and waited == [PATIENCE] * 2


def test_help_of_every_command(rmat: Rmat) -> None:
    for command in (
        [],
        ["train"],
        ["eval"],
        ["eval", "perplexity"],
        ["eval", "ablation"],
        ["eval", "recall"],
        ["generate"],
    ):
        outcome = rmat(*command, "--help")
        assert outcome.status == 0 and outcome.out.startswith("usage: rmat")


def test_a_mistake_can_be_traced(rmat: Rmat) -> None:
    with pytest.raises(ValueError, match="neither a preset"):
        rmat("describe", "tinny", "--traceback")


NO_MEMORY = "rmat: not enough memory"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (FloatingPointError("not finite"), 1, "rmat: not finite\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            1,
            NO_MEMORY + " (2.00 GiB at",
        ),
        (
            MemoryError("Unable to allocate 7.45 GiB for an array"),
            1,
            NO_MEMORY + " (7.45 GiB at once): take a",
        ),
        (MemoryError(), 1, NO_MEMORY + ": take a smaller"),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:7061."),
            1,
            "rmat: another of the processes has gone",
        ),
        (ValueError("two\n  lines"), 2, "rmat: two lines\n"),
        (OSError(28, "No space left on device", "file"), 1, "rmat: file: No space left on device; check"),
        (PermissionError(13, "Permission denied", "file"), 2, "rmat: file: Permission denied; check"),
    ],
)
def test_exit_status(
    rmat: Rmat, error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: object) -> None:
        raise error

    monkeypatch.setattr(describe, "run", fail)
    outcome = rmat("describe", "tiny")
    assert outcome.status == status and outcome.err.startswith(said)


def test_errors_of_ours_keep_their_traceback(rmat: Rmat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> None:
        raise AssertionError("our mistake")

    monkeypatch.setattr(describe, "run", fail)
    with pytest.raises(AssertionError, match="our mistake"):
        rmat("describe", "tiny")


@pytest.mark.parametrize("size", [2**50, 2**62])
def test_more_memory_than_there_is(rmat: Rmat, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of torch for it are known."""
    monkeypatch.setattr(describe, "run", lambda args: torch.empty(size))
    outcome = rmat("describe", "tiny")
    assert outcome.status == 1 and outcome.err.startswith(NO_MEMORY) and len(outcome.err.splitlines()) == 1


class TestStreams:
    """Standard streams as services, redirections and old consoles leave them."""

    def run(
        self, arguments: str, redirect: str = "", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            f"exec '{sys.executable}' -m rmat {arguments} {redirect}",
            shell=True,
            capture_output=True,
            timeout=120,
            cwd=Path(__file__).parents[2],
            env={**os.environ, **environment},
        )

    def test_a_closed_input_is_empty(self) -> None:
        done = self.run("generate starter --max-new-tokens 2 --seed 1 --json", "<&-")
        assert done.returncode == 0 and not done.stderr
        assert json.loads(done.stdout)["prompt_tokens"] == 1

    def test_what_a_closed_output_loses_is_told(self, tmp_path: Path) -> None:
        state = tmp_path / "state"
        done = self.run(f"generate starter x --max-new-tokens 2 --seed 1 --state-out {state}", ">&-")
        assert done.returncode == 1 and state.is_file()
        assert done.stderr == b"rmat: standard output is closed: what was to be printed is lost\n"
        assert self.run("generate nowhere x", "<&- >&- 2>&-").returncode == 2

    def test_a_full_disk_is_told_once(self) -> None:
        done = self.run("generate starter x --max-new-tokens 2 --seed 1", ">/dev/full")
        assert done.returncode == 1 and done.stderr == b"rmat: [Errno 28] No space left on device\n"

    def test_text_that_the_output_cannot_express_is_escaped(self, rmat: Rmat) -> None:
        command, options = "generate starter x", "--max-new-tokens 40 --temperature 5 --seed 1"
        unicode: dict[str, Any] = rmat(*command.split(), *options.split(), "--json").json
        text = unicode["text"]
        assert any(ord(character) > 255 for character in text), "the case is no case otherwise"
        plain = self.run(f"{command} {options}", PYTHONIOENCODING="cp1252")
        assert plain.returncode == 0 and plain.stdout == text.encode("cp1252", "backslashreplace")
        found = self.run(f"{command} {options} --json", PYTHONIOENCODING="cp1252")
        assert found.returncode == 0 and json.loads(found.stdout)["text"] == text


def test_settings_nest_and_merge() -> None:
    assert nest("a.b.c", 1) == {"a": {"b": {"c": 1}}}
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"b": 4}, "e": 5}) == {"a": {"b": 4, "c": 2}, "d": 3, "e": 5}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_relative_paths_work(rmat: Rmat, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder.parent)
    assert rmat("eval", "perplexity", "run", "--max-bytes", "50", "--json").json["bytes"] == 50


def test_an_interrupt_before_the_command_begins() -> None:
    """Such as while its modules are imported."""
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'rmat.cli.ask': raise KeyboardInterrupt\n"
        "import rmat.cli.main as main\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.exit(main.main(['--version']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
