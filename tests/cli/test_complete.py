"""`rmat complete` and `rmat eval completion` on a model that knows nothing: places, contexts, states,
refusals."""

import io
import json
import runpy
import sys
from pathlib import Path

import pytest

from rmat.api import load
from rmat.cli.complete import around_cursor, find_cursor
from rmat.generation.completion import complete
from tests.cli.conftest import Rmat, in_new_process
from tests.makers.texts import write_files

SHORT = ("--max-new-tokens", "6", "--lines", "0", "--temperature", "1", "--seed", "6")
TEXT = "import near\n\ndef f(x):\n    é = 1\n    return é\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    files: dict[str, str | bytes] = {
        "far.py": "far = 1\n" * 40,
        "pkg/near.py": "near = 2\n" * 40,
        "pkg/target.py": TEXT,
        "pkg/ignored.log": "left out\n",
        ".gitignore": "*.log\n",
    }
    return write_files(tmp_path / "repo", files)


class TestPlace:
    @pytest.mark.parametrize(
        ("place", "prefix"),
        [
            ("", TEXT),
            (":1", "import near"),
            (":2", "import near\n"),
            (":4", "import near\n\ndef f(x):\n    é = 1"),
            (":4:5", "import near\n\ndef f(x):\n    "),
            (":4:6", "import near\n\ndef f(x):\n    é"),
            (":4:10", "import near\n\ndef f(x):\n    é = 1"),
            (":6", TEXT),
            (":6:1", TEXT),
        ],
    )
    def test_line_and_column(self, repository: Path, place: str, prefix: str) -> None:
        file = repository / "pkg" / "target.py"
        assert find_cursor(f"{file}{place}", None) == (file, prefix, TEXT[len(prefix) :])

    def test_the_end_of_a_line_is_before_its_carriage_return(self, tmp_path: Path) -> None:
        (tmp_path / "dos.py").write_bytes(b"one\r\ntwo\r\n")
        assert find_cursor(f"{tmp_path}/dos.py:1", None)[1:] == ("one", "\r\ntwo\r\n")

    @pytest.mark.parametrize(
        ("place", "message"),
        [
            ("target.py:99", "has 5 lines: there is no line 99; give 1 to 6"),
            ("target.py:0", "has 5 lines: there is no line 0"),
            ("target.py:1:0", "has 11 characters: there is no column 0; give 1 to 12"),
            ("target.py:1:13", "has 11 characters: there is no column 13; give 1 to 12"),
        ],
    )
    def test_a_place_that_is_not_there(self, repository: Path, place: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            find_cursor(str(repository / "pkg" / place), None)

    def test_names_with_colons_and_numbers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("a:2", "C:\\b.py", "x"):
            (tmp_path / name).write_text(f"{name}\nsecond\n")
        assert find_cursor("a:2", None)[1] == "a:2\nsecond\n"
        assert find_cursor("a:2:1", None)[1] == "a:2"
        assert find_cursor("a:2:1:2", None)[1] == "a"
        assert find_cursor("C:\\b.py:2:3", None)[1] == "C:\\b.py\nse"
        with pytest.raises(FileNotFoundError, match=r"gone\.py"):
            find_cursor("gone.py:3:1", None)

    def test_a_mark(self, repository: Path) -> None:
        file = str(repository / "pkg" / "target.py")
        assert find_cursor(file, "(x)")[1:] == ("import near\n\ndef f", ":\n    é = 1\n    return é\n")
        with pytest.raises(ValueError, match="not both"):
            find_cursor(f"{file}:1", "(x)")
        with pytest.raises(ValueError, match="no such text"):
            find_cursor(file, "<CURSOR>")


def test_only_the_new_text_is_printed(rmat: Rmat, run_folder: Path, repository: Path) -> None:
    place = f"{repository}/pkg/target.py:4"
    told = rmat("complete", run_folder, place, *SHORT, "--json").json
    assert 0 < told["new_tokens"] <= 6 and told["text"] and told["state_bytes"] > 0
    assert (told["context_files"], told["context_tokens"]) == (0, 0)
    assert rmat("complete", run_folder, place, *SHORT).out == told["text"]
    before = "import near\n\ndef f(x):\n    é = 1"
    shown = rmat("complete", run_folder, place, *SHORT, "--show-file").out
    assert shown == before + told["text"] + TEXT[len(before) :]


def test_standard_input(run_folder: Path, repository: Path, rmat: Rmat) -> None:
    options = [*SHORT, "--json"]
    marked = TEXT.replace("é = 1", "é <CURSOR>= 1").encode()
    arguments = ["complete", run_folder, "-", "--cursor", "<CURSOR>", "--name", "target.py", *options]
    piped = in_new_process(arguments, cwd=repository, stdin=marked)
    expected = rmat("complete", run_folder, f"{repository}/pkg/target.py:4:7", *options).json
    assert piped.json["text"] == expected["text"]
    assert piped.json["prompt_tokens"] == expected["prompt_tokens"]


def test_the_mode_decides_what_is_read(rmat: Rmat, run_folder: Path, repository: Path) -> None:
    def tokens(place: str, *options: str) -> int:
        path = f"{repository}/pkg/target.py{place}"
        return int(rmat("complete", run_folder, path, *SHORT, "--json", *options).json["prompt_tokens"])

    header, whole = 1 + len("target.py\n"), len(TEXT.encode())
    assert tokens(":4", "--mode", "fim") == header + whole + 3
    assert tokens(":4") == header + len(TEXT.encode().partition(b"\n    return")[0])
    assert tokens("") == header + whole
    assert tokens("", "--mode", "fim") == header + whole + 3


def test_the_line_ends_of_the_file_are_kept(rmat: Rmat, endless: Path, tmp_path: Path) -> None:
    """Byte for byte, also around the completion."""
    (tmp_path / "dos.py").write_bytes(b"one\r\ntwo\r\n")
    shown = rmat("complete", endless, f"{tmp_path}/dos.py:1", *SHORT, "--show-file").out
    text = rmat("complete", endless, f"{tmp_path}/dos.py:1", *SHORT, "--json").json["text"]
    assert text and shown == f"one{text}\r\ntwo\r\n"


LINES = [f"line number {number}\n" for number in range(1000)]


class TestLargeFiles:
    @pytest.mark.parametrize("most", [16, 100, 1000, 10**6])
    def test_whole_lines_around_the_cursor(self, most: int) -> None:
        prefix, suffix = "".join(LINES[:500]) + "here", "\n" + "".join(LINES[500:])
        before, behind = around_cursor(prefix, suffix, most)
        assert prefix.endswith(before) and len(before) <= most and before.startswith(("line", "here"))
        assert suffix.startswith(behind) and len(behind) <= max(1, most // 4) and behind.endswith("\n")
        assert most < 10**6 or (before, behind) == (prefix, suffix)
        assert around_cursor(prefix, suffix, 0) == (prefix, suffix)

    def test_a_line_without_end_and_broken_characters(self) -> None:
        assert around_cursor("€" * 100, "€" * 100, 16) == ("€" * 5, "€")

    def test_what_is_left_out_is_told(self, rmat: Rmat, run_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "big.txt").write_text("".join(LINES * 10))
        command = ["complete", run_folder, f"{tmp_path}/big.txt:9000", *SHORT, "--json"]
        bounded = rmat(*command)
        assert " KiB of 155.2 KiB around the cursor are read; --max-file-bytes 0: all" in bounded.err
        assert 32_000 < bounded.json["prompt_tokens"] <= 32_768
        small = rmat(*command, "--max-file-bytes", "100")
        assert small.json["prompt_tokens"] <= 100
        whole = rmat(*command, "--max-file-bytes", "0")
        assert whole.json["prompt_tokens"] > 140_000 and "around the cursor" not in whole.err

    def test_progress_is_told_where_it_takes_long(
        self, rmat: Rmat, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rmat.cli.output.TELL_AFTER", 0.0)
        (tmp_path / "big.txt").write_text("".join(LINES))
        for command in (
            ["complete", run_folder, tmp_path / "big.txt"],
            ["generate", run_folder, "--file", tmp_path / "big.txt"],
        ):
            told = rmat(*command, "--max-new-tokens", "1").err
            assert "rmat: reading the prompt: about 0 seconds to go" in told.splitlines()[0]


class TestContext:
    def test_the_repository_is_read_first(self, rmat: Rmat, run_folder: Path, repository: Path) -> None:
        place = f"{repository}/pkg/target.py:4"
        outcome = rmat("complete", run_folder, place, "--context", repository, *SHORT, "--json")
        files = {"far.py": "far = 1\n" * 40, "pkg/near.py": "near = 2\n" * 40}
        assert outcome.json["context_files"] == 2
        assert outcome.json["context_tokens"] == 1 + sum(
            len(f" {name}\n{text}") for name, text in files.items()
        )
        alone = rmat("complete", run_folder, place, *SHORT, "--json").json
        assert outcome.json["prompt_tokens"] == alone["prompt_tokens"] + len("pkg/"), (
            "named by its path there"
        )
        assert "2 files" in outcome.err and "ignored by .gitignore" in outcome.err
        assert outcome.json["state_bytes"] == alone["state_bytes"]

    def test_the_text_goes_on_from_what_was_read(
        self, rmat: Rmat, run_folder: Path, repository: Path
    ) -> None:
        model, tokenizer = load(run_folder)
        assert tokenizer is not None
        files = [("far.py", "far = 1\n" * 40), ("pkg/near.py", "near = 2\n" * 40)]
        options = {
            "file_name": "pkg/target.py",
            "lines": 0,
            "max_new_tokens": 60,
            "temperature": 1,
            "seed": 6,
        }
        texts = [
            "".join(complete(model, tokenizer, TEXT, context=context, **options))  # type: ignore[arg-type]
            for context in ([], files)
        ]
        assert texts[0] != texts[1]
        place = f"{repository}/pkg/target.py"
        arguments = ["--context", repository, *SHORT, "--max-new-tokens", "60", "--json"]
        assert rmat("complete", run_folder, place, *arguments).json["text"] == texts[1]

    def test_a_limit(self, rmat: Rmat, run_folder: Path, repository: Path) -> None:
        options = ["--context", repository, "--max-context-bytes", "400", *SHORT, "--json"]
        told = rmat("complete", run_folder, f"{repository}/pkg/target.py", *options).json
        assert told["context_files"] == 1
        assert told["context_tokens"] == 2 + len("pkg/near.py\n" + "near = 2\n" * 40)

    def test_a_default_limit(
        self, rmat: Rmat, run_folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rmat.cli.complete.MAX_CONTEXT_BYTES", 400)
        command = [
            "complete",
            run_folder,
            f"{repository}/pkg/target.py",
            "--context",
            repository,
            *SHORT,
            "--json",
        ]
        bounded, whole = rmat(*command), rmat(*command, "--max-context-bytes", "0")
        assert bounded.json["context_files"] == 1 and whole.json["context_files"] == 2
        assert "1 over the limit of context" in bounded.err and "--max-context-bytes 0: all" in bounded.err
        assert "over the limit" not in whole.err

    def test_a_state_spares_the_second_reading(
        self, rmat: Rmat, run_folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RMAT_CACHE", str(repository.parent / "cache"))
        place, kept = f"{repository}/pkg/target.py:4", repository.parent / "kept.safetensors"
        arguments = ["complete", run_folder, place, "--context", repository, *SHORT, "--json"]
        first = rmat(*arguments, "--state-out", kept)
        cached = rmat(*arguments, "--state-out", kept.with_name("again.safetensors"))
        assert "(read before)" in cached.err and "(read before)" not in first.err
        given = rmat(*arguments, "--state-in", kept).json
        again = rmat(*arguments, "--state-in", kept.with_name("again.safetensors")).json
        assert (
            given["context_files"] == 0 and first.json["context_files"] == cached.json["context_files"] == 2
        )
        for name in ("text", "context_tokens", "prompt_tokens", "new_tokens", "state_bytes"):
            assert first.json[name] == cached.json[name] == given[name] == again[name], name

    def test_the_cache_knows_content_name_and_model(
        self, rmat: Rmat, run_folder: Path, endless: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = repository.parent / "cache"
        monkeypatch.setenv("RMAT_CACHE", str(cache))
        monkeypatch.setattr("rmat.cli.complete.CACHED_CONTEXTS", 3)

        def is_known(model: Path = run_folder) -> bool:
            place = f"{repository}/pkg/target.py:4"
            return "(read before)" in rmat("complete", model, place, "--context", repository, *SHORT).err

        assert not is_known() and is_known()
        (repository / "far.py").write_text("far = 2\n" * 40)
        assert not is_known() and is_known()
        (repository / "far.py").rename(repository / "for.py")
        assert not is_known() and not is_known(endless) and is_known()
        assert len(list(cache.rglob("*.safetensors"))) == 3, "the longest unused have left"
        for file in cache.rglob("*.safetensors"):
            file.write_bytes(b"damaged")
        assert not is_known() and is_known()
        monkeypatch.setenv("RMAT_CACHE", str(repository / "for.py" / "no folder"))
        assert not is_known() and not is_known()

    def test_text_on_standard_input_leaves_its_file_out(
        self, rmat: Rmat, run_folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An editor's unsaved text takes the place of what is on disk."""

        def files(*options: str) -> int:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x = ")))
            told = rmat("complete", run_folder, "-", "--context", repository, *options, *SHORT, "--json").json
            return int(told["context_files"])

        assert files("--name", "pkg/target.py") == 2
        assert files() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.py:3"], "nowhere.py: No such file"),
        (["target.py:77"], "has 5 lines"),
        (["target.py", "--context", "nowhere"], "nowhere is no folder"),
        (["target.py", "--context", "target.py"], "is no folder"),
        (["target.py", "--state-out", "s"], "give --context"),
        (["target.py", "--context", ".", "--state-out", "no/s"], "there is no folder"),
        (["target.py", "--max-context-bytes", "3"], "is a limit of --context"),
        (["target.py", "--max-file-bytes", "-1"], "--max-file-bytes is -1: give bytes, or 0 for all"),
        (["target.py", "--name", "x.py"], "is for standard input"),
        (["target.py", "--lines", "-1"], "lines=-1 is not possible"),
        (["target.py", "--mode", "middle"], "there is no 'middle'"),
        (["target.py", "--state-in", "near.py"], "near.py"),
        (["."], "directory"),
    ],
)
def test_refusals_are_one_sentence(
    rmat: Rmat,
    run_folder: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(repository / "pkg")
    assert message in rmat("complete", run_folder, *options).refused()


def test_the_example(
    run_folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "examples" / "completion.py"
    target = repository / "pkg" / "target.py"
    monkeypatch.setattr(sys, "argv", [script.name, str(run_folder), str(repository), str(target)])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("read 2 files") and "--- plain" in said and "--- fim" in said


def test_evaluation(rmat: Rmat, run_folder: Path, tmp_path: Path) -> None:
    write_files(
        tmp_path / "code", {f"m{k}.py": "".join(f"v_{k}_{n} = {n}\n" for n in range(40)) for k in range(80)}
    )
    data = ["--data", tmp_path / "code", "--max-context-bytes", "900"]
    options = [*data, "--samples", "3", "--max-new-tokens", "3"]
    outcome = rmat("eval", "completion", run_folder, *options, "--out", tmp_path / "out", "--json")
    told = outcome.json
    assert told["samples"] == 3 and len(told["cells"]) == 8 and len(told["differences"]) == 12
    assert told["cells"][0].keys() >= {
        "accuracy",
        "low",
        "high",
        "similarity",
        "samples",
        "memory",
        "context",
    }
    assert told["state_bytes"] > 0 and told["seed"] == 0 and 0 < told["context_bytes"] <= 900
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written["cells"] == told["cells"] and (tmp_path / "out" / "accuracy.png").exists()
    table = rmat("eval", "completion", run_folder, *options).out
    assert "fim, context, memory zeroed" in table and "3 lines of" in table
