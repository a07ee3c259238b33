from pathlib import Path

import pytest

import rmat as package
from rmat.cli import describe
from rmat.cli.parsing import merge, nest
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
    ],
)
def test_mistakes_are_one_sentence(rmat: Rmat, arguments: list[str], sentence: str) -> None:
    assert sentence in rmat(*arguments).refused()


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


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 1, "interrupted\n"),
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


def test_settings_nest_and_merge() -> None:
    assert nest("a.b.c", 1) == {"a": {"b": {"c": 1}}}
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"b": 4}, "e": 5}) == {"a": {"b": 4, "c": 2}, "d": 3, "e": 5}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_relative_paths_work(rmat: Rmat, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder.parent)
    assert rmat("eval", "perplexity", "run", "--max-bytes", "50", "--json").json["bytes"] == 50
