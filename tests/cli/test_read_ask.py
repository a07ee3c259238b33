"""`rmat read` and `rmat ask`: documents are read once into a session, questions are answered from forks of it."""

import io
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Rmat, in_new_process

SHORT = ("--max-new-tokens", "12", "--seed", "5")
SESSION = ("--session", "card")


@pytest.fixture
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of sessions, which holds none yet."""
    folder = tmp_path / "sessions"
    monkeypatch.setenv("RMAT_SESSIONS", str(folder))
    return folder


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.md"
    path.write_text("the first note says that ä is a letter.\n" * 9)
    return path


@pytest.fixture
def card(rmat: Rmat, endless: Path, sessions: Path, notes: Path) -> Path:
    """The file of a session in which the notes have been read."""
    assert rmat("read", endless, notes, *SESSION).status == 0
    return sessions / "card.safetensors"


def test_what_was_read(rmat: Rmat, endless: Path, sessions: Path, notes: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<h1>Snow</h1><p>and ice")
    (tmp_path / "a.py").write_text("x = 1\n")
    documents = [notes, tmp_path / "page.html", tmp_path / "a.py"]
    result = rmat("read", endless, *documents, *SESSION, "--json").json
    sizes = [notes.stat().st_size, len("Snow\n\nand ice"), len("a.py\nx = 1\n")]
    tokens = [
        sizes[0],
        2 + sizes[1],
        1 + sizes[2],
    ]  # a blank line before text, the file-name token before code
    assert result["documents"] == [
        {"name": path.name, "bytes": size, "tokens": count}
        for path, size, count in zip(documents, sizes, tokens, strict=True)
    ]
    assert (result["bytes"], result["tokens"]) == (sum(sizes), sum(tokens))
    assert result["tokens_read"] == 1 + sum(tokens)
    assert result["card_bytes"] == (sessions / "card.safetensors").stat().st_size > result["state_bytes"]


def test_what_people_see(rmat: Rmat, endless: Path, sessions: Path, notes: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("more")
    outcome = rmat("read", endless, notes, tmp_path / "b.txt", *SESSION)
    lines = [line.split() for line in outcome.out.splitlines()]
    assert lines[1:4] == [["notes.md", "369", "369"], ["b.txt", "4", "6"], ["together", "373", "375"]]
    assert "into session 'card'" in outcome.out and "for 376 tokens" in outcome.out


def test_a_long_document_makes_no_larger_card(
    rmat: Rmat, endless: Path, sessions: Path, tmp_path: Path
) -> None:
    """Beyond the text of the last tokens, which is kept as long as it is short."""
    cards = []
    for repeats in (1000, 3000):
        (tmp_path / "long.txt").write_text("the text goes on. " * repeats)
        cards.append(rmat("read", endless, tmp_path / "long.txt", *SESSION, "--replace", "--json").json)
    assert cards[1]["tokens"] == 3 * cards[0]["tokens"]
    assert abs(cards[0]["card_bytes"] - cards[1]["card_bytes"]) < 64
    assert cards[0]["state_bytes"] == cards[1]["state_bytes"]


def test_reading_on_and_anew(rmat: Rmat, endless: Path, card: Path, notes: Path) -> None:
    first = card.read_bytes()
    assert (
        "--append reads on in it, --replace begins it anew"
        in rmat("read", endless, notes, *SESSION).refused()
    )
    assert card.read_bytes() == first
    size = notes.stat().st_size
    more = rmat("read", endless, notes, *SESSION, "--append", "--json").json
    assert more["tokens_read"] == 1 + size + 2 + size
    anew = rmat("read", endless, notes, *SESSION, "--replace", "--json").json
    assert anew["tokens_read"] == 1 + size
    nothing = rmat("read", endless, notes, "--session", "other", "--append").refused()
    assert "no session 'other' to read on in: leave out --append" in nothing


def test_another_program_may_begin_the_session_first(
    rmat: Rmat, endless: Path, card: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the model is loaded, or the lock is waited for."""
    before, seen = card.read_bytes(), iter([False, True])
    monkeypatch.setattr("rmat.sessions.store.SessionStore.exists", lambda store, name: next(seen))
    assert "there is a session 'card' already" in rmat("read", endless, notes, *SESSION).refused()
    assert card.read_bytes() == before


def test_one_bad_document_and_nothing_is_read(
    rmat: Rmat, endless: Path, sessions: Path, notes: Path, tmp_path: Path
) -> None:
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-")
    assert (
        "is no PDF, or a damaged one"
        in rmat("read", endless, notes, tmp_path / "scan.pdf", *SESSION).refused()
    )
    assert "no file at" in rmat("read", endless, tmp_path / "none.txt", *SESSION).refused()
    assert "no session can be called '../x'" in rmat("read", endless, notes, "--session", "../x").refused()
    assert not list(sessions.glob("*.safetensors"))


def test_an_interrupted_reading_saves_nothing(endless: Path, sessions: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("the text goes on. " * 1_000_000)
    command = [sys.executable, "-m", "rmat", "read", endless, "long.txt", *SESSION]
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background it is ignored
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    lock = sessions / "locks" / "card.lock"
    give_up = time.monotonic() + 120
    while not lock.exists() and time.monotonic() < give_up:  # held from the first token to the last
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err == "rmat: interrupted: nothing was saved, session 'card' was not made\n"
    assert not list(sessions.glob("*.safetensors"))


def test_questions_leave_the_session_as_it_is(rmat: Rmat, endless: Path, card: Path) -> None:
    before = card.read_bytes()
    first = rmat("ask", endless, *SESSION, "Which letter?", *SHORT)
    assert first.status == 0 and first.out
    assert rmat("ask", endless, *SESSION, "Why?", *SHORT).out != first.out
    again = rmat("ask", endless, "Which letter?", *SESSION, *SHORT, "--json").json
    assert again["text"] == first.out
    assert again["finish"] == "length" and again["new_tokens"] == 12 and again["seconds"] > 0
    assert card.read_bytes() == before


def test_the_document_is_not_needed_to_answer(
    rmat: Rmat, endless: Path, card: Path, notes: Path, tmp_path: Path
) -> None:
    """Another process, without the document, reads the question only."""
    here = rmat("ask", endless, *SESSION, "Which letter?", *SHORT, "--json").json
    notes.unlink()
    there = in_new_process(
        ["ask", endless, *SESSION, *SHORT, "--json"], cwd=tmp_path, stdin=b"Which letter?\n"
    )
    assert there.json["text"] == here["text"]
    asked = len("Which letter?") + 3  # user, turn_end, assistant
    assert there.json["tokens_read"] == 1 + 369 + asked + 12 + 1


def test_a_question_can_be_kept(rmat: Rmat, endless: Path, card: Path) -> None:
    first = rmat("ask", endless, *SESSION, "Why?", *SHORT, "--keep", "--json").json
    second = rmat("ask", endless, *SESSION, "And?", *SHORT, "--json").json
    assert second["tokens_read"] == first["tokens_read"] + len("And?") + 3 + 12 + 1


def test_questions_that_cannot_be_asked(
    rmat: Rmat, endless: Path, card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "'other'" in rmat("ask", endless, "--session", "other", "Why?").refused()
    assert "the question is empty" in rmat("ask", endless, *SESSION, " ").refused()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert "standard input is not valid UTF-8" in rmat("ask", endless, *SESSION).refused()
    assert "--session" in rmat("ask", endless, "Why?").refused()
    assert "top_p=2" in rmat("ask", endless, *SESSION, "Why?", "--top-p", "2").refused()


def test_the_card_of_another_model(rmat: Rmat, endless: Path, card: Path) -> None:
    before = card.read_bytes()
    assert "fingerprint" in rmat("ask", "starter", *SESSION, "Why?").refused()
    assert card.read_bytes() == before


def test_the_example(
    endless: Path, notes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = Path(__file__).parents[2] / "examples" / "documents.py"
    monkeypatch.setattr(sys, "argv", [example.name, str(endless), str(notes)])
    runpy.run_path(str(example), run_name="__main__")
    answers = [part.partition("\n")[2].strip() for part in capsys.readouterr().out.split("--- ")[1:]]
    assert len(answers) == 3 and answers[0] == answers[2] != answers[1]
