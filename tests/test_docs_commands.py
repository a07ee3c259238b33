"""Every command line that a page shows is one that `rmat` takes; run by `make slow`, each does what it says."""

import argparse
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rmat.cli.main import build_parser
from rmat.cli.parsing import parse
from tests.makers.sources import write_babi

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "rmat/assets/starter/README.md"]
SHOWN = re.compile(r"^(?: {4}|\$ |)(?:[^`#|]*\| )?(?:\.venv/bin/)?rmat (?=\w)")
"""A line of a block that is typed: indented, behind a prompt, or as it is; perhaps behind a pipe."""

STANDS_FOR = {
    "MODEL": "starter",
    "RUN_OR_MODEL": "runs/mine",
    "NEW-NAME": "other",
    "NAME": "name",
    "SESSION": "name",
    "DOC...": "notes.md",
    "DOC": "notes.md",
    "FILE.py:LINE": "pkg/file.py:3",
    "FILE": "notes.md",
    "FOLDER": "babi",
    "DIALOGUES.jsonl": "dialogues.jsonl",
    "DIALOGUES": "dialogues.jsonl",
    "~/my-project": "my/project",
}
SHORT = {
    "train": ["train.steps=2", "train.eval_bytes=2000", "train.sample_every=0", "train.batch_size=2"],
    "--samples": ["--samples", "2"],
    "--max-bytes": ["--max-bytes", "4000"],
    "--max-new-tokens": ["--max-new-tokens", "8"],
    "--max-tokens": ["--max-tokens", "400"],
    "--max-context-bytes": ["--max-context-bytes", "8000"],
}
"""What makes a command short: settings of a training, options where the command has them."""

PRETRAINED = {"smollm2", "smol", "SOURCE"}
"""Words of commands that need a package registry: `make pretrained-check` has what stands for them."""


def commands(page: Path) -> list[str]:
    """The command lines of `rmat` on a page: continued lines joined, what is said about them left out."""
    lines, found = page.read_text(encoding="utf-8").splitlines(), []
    fenced = False
    for number, line in enumerate(lines):
        fenced ^= line.startswith("```")
        start = SHOWN.match(line)
        if start is None or not (fenced or line.startswith("    ")):
            continue
        while line.endswith("\\"):
            number += 1
            line = line[:-1] + lines[number].strip()
        typed = "rmat " + line[start.end() :]
        typed = re.split(r"\s+#\s|\s{3,}(?=\S)|\s\|\s|\s>\s", typed)[0].rstrip()
        if not re.search(r"\[|\.\.\.|<->", typed):  # a synopsis, not a command
            found.append(typed)
    return found


def arguments(command: str) -> list[str]:
    """What the shell makes of a command, with something in the place of what a reader is to put there."""
    words = [STANDS_FOR.get(word, word) for word in shlex.split(command)[1:]]
    return [
        name
        for word in words
        for name in (sorted(map(str, Path().glob(word))) or [word] if is_glob(command, word) else [word])
    ]


def is_glob(command: str, word: str) -> bool:
    """Whether the shell would put file names in the place of `word`."""
    return "*" in word and f"'{word}'" not in command


EVERY = [(page, command) for page in PAGES for command in commands(page)]


def test_pages_show_commands() -> None:
    assert len(EVERY) > 60
    assert {command.split()[1] for _, command in EVERY} >= {
        *("train", "eval", "generate", "complete", "chat", "read", "ask", "sessions", "serve", "describe"),
        "report",
        *("import", "export"),
    }


def test_every_command_line_is_taken() -> None:
    wrong = []
    for page, command in EVERY:
        try:
            parse(build_parser(), arguments(command))
        except SystemExit as end:
            if end.code:
                wrong.append(f"{page.name}: {command}")
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pages' names stand for something: texts, and small runs under the names they use."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("rmat", "docs", "examples", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    project = folder / "my" / "project"
    project.mkdir(parents=True)
    source = "".join(f"def f{k}(x):\n    return x + {k}\n\n\n" for k in range(40))
    for number in range(12):
        (project / f"m{number}.py").write_text(source.replace("x", f"x{number}"))
    (folder / "pkg").mkdir()
    for name in ("pkg/file.py", "my_file.py"):
        (folder / name).write_text(source * 2)
    for name in ("notes.md", "long.txt"):
        (folder / name).write_text("A segment closes, and the gate keeps what is worth keeping.\n" * 40)
    (folder / "schema.json").write_text('{"type": "object", "properties": {"legs": {"type": "integer"}}}')
    (folder / "keys.txt").write_text("a-key\n")
    (folder / "keys.txt").chmod(0o600)
    turn = '{"role": "user", "text": "Where is the key?"}, {"role": "assistant", "text": "On the table."}'
    query = '{"query": "Where is the key?", "answer": "On the table.", "spans": [[0, 1]]}'
    talk = f'{{"turns": [{turn}, {turn}, {turn}, {turn}], "queries": [{query}]}}\n'
    (folder / "dialogues.jsonl").write_text(talk * 30)
    for kind in ("train", "test"):
        write_babi(folder / "babi", kind, 12)
    for out, data in (
        ("demo", "my/project"),
        ("mine", "my/project"),
        ("a", "my/project"),
        ("recall", "recall"),
    ):
        done = rmat(folder, ["train", "--data", data, "--out", f"runs/{out}", *SHORT["train"]])
        assert done.returncode == 0, done.stderr
    return folder


def rmat(folder: Path, words: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rmat", *words]
    return subprocess.run(command, cwd=folder, input=given, capture_output=True, text=True, timeout=600)


def options_of(words: list[str]) -> set[str]:
    """The options of the command that `words` begin with."""
    parser: argparse.ArgumentParser = build_parser()
    for word in words:
        inner = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not inner or word not in inner[0]:
            break
        parser = inner[0][word]
    return set(parser._option_string_actions)


def shortened(words: list[str]) -> list[str]:
    """The command made short, and away from what it would overwrite."""
    more = []
    if words[0] == "train" and "--print-config" not in words:
        words = [
            f"{word}-page" if before == "--out" else word
            for before, word in zip(["", *words], words, strict=False)
        ]
        words = [word for word in words if not word.startswith("train.steps=")]
        more = ["train.steps=4"] if "--resume" in words else SHORT["train"]
    for option in sorted(options_of(words) & set(SHORT)):
        if option not in words:
            more = [*more, *SHORT[option]]
    return [*words, *more]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda page: page.stem)
def test_every_command_runs(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 0, or a sentence that says why this model cannot be asked: one that was never trained on a task."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RMAT_SESSIONS", str(place / f"sessions-{page.stem}"))
    assert rmat(place, ["read", "starter", "notes.md", "--session", "name"]).returncode == 0
    wrong = []
    for command in commands(page):
        words = shortened(arguments(command))
        if PRETRAINED & set(words):
            continue
        if words[0] == "serve":
            wrong += [] if serves(place, words) else [command]
            continue
        done = rmat(place, words, "hello\nwho are you?\n")
        refused = words[0] == "eval" and "trained on" in done.stderr
        if done.returncode and not refused:
            wrong.append(
                f"{command}\n    {shlex.join(words)}\n    {done.returncode}: {done.stderr.strip()[-300:]}"
            )
    shutil.rmtree(place / f"sessions-{page.stem}", ignore_errors=True)
    assert not wrong, "\n".join(wrong)


def serves(place: Path, words: list[str]) -> bool:
    """Whether the server comes up, and ends when it is told to."""
    words = [*words, "--port", "0"] if "--port" not in words else words
    command = [sys.executable, "-m", "rmat", *words]
    running = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True)
    hung = threading.Timer(240, running.kill)
    hung.start()
    try:
        assert running.stdout is not None
        up = any("http://" in line for line in running.stdout)
        running.send_signal(signal.SIGTERM)
        return running.wait() == 0 and up
    finally:
        hung.cancel()
