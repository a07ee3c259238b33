"""`rmat read` and `rmat ask`: documents are read once into a session, questions are answered from forks of it."""

import io
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import rmat as rmat_package
from rmat.sessions.store import SessionStore
from tests.cli.conftest import Rmat, in_new_process
from tests.makers.sessions import same

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


@contextmanager
def locked_by_another(store: SessionStore) -> Iterator[None]:
    """A thread of its own holds the session, which is to this one as another process."""
    taken, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock("card"):
            taken.set()
            enough.wait()

    with ThreadPoolExecutor() as other:
        held = other.submit(hold)
        assert taken.wait(60)
        try:
            yield
        finally:
            enough.set()
    held.result()


def test_a_session_in_use_is_told_at_once(
    rmat: Rmat, endless: Path, card: Path, notes: Path, sessions: Path
) -> None:
    """Who uses it, before the model is loaded; with --wait, it is waited for."""
    store = SessionStore(sessions)
    in_use = f"session 'card' is in use by process {os.getpid()}"
    for arguments in (
        ("read", "none", notes, *SESSION, "--append"),
        ("ask", "none", *SESSION, "Why?", "--keep"),
    ):
        with locked_by_another(store):
            assert in_use in rmat(*arguments).refused()
            waited = rmat(*arguments, "--wait", "0.1")
        assert waited.status == 2
        assert f"{in_use}" in waited.err and "; waiting for 0.1 seconds\n" in waited.err
        assert "give seconds" in rmat(*arguments, "--wait", "-1").refused()
    with store.lock("card"):
        assert in_use in in_new_process(arguments, cwd=sessions).refused()
    with locked_by_another(store):
        asked = rmat("ask", endless, *SESSION, "Why?", *SHORT)
    assert asked.status == 0 and asked.out


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


SAVES_ALL = (
    "import sys, rmat.cli.read as read, rmat.cli.main as main; read.SAVE_SECONDS = 0; sys.exit(main.main())"
)


def started(endless: Path, tmp_path: Path, *more: str, code: str = SAVES_ALL) -> subprocess.Popen[str]:
    """A reading of `long.txt` in a process of its own."""
    command = [sys.executable, "-c", code, "read", str(endless), "long.txt", *SESSION, *more]
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background it is ignored
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def wait_for(path: Path) -> None:
    give_up = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_killed_reading_goes_on(rmat: Rmat, endless: Path, sessions: Path, tmp_path: Path) -> None:
    """With the same command, and to the same bits; other documents do not pass for it."""
    (tmp_path / "long.txt").write_text("the text goes on. " * 6_000)
    process = started(endless, tmp_path)
    wait_for(sessions / "card.safetensors")
    process.kill()
    process.communicate()
    store = SessionStore(sessions)
    info = store.info("card")
    assert info.reading == 1 and 4095 <= info.documents[0].bytes_read < 108_000
    shown = rmat("sessions", "show", "card")
    assert "an interrupted reading of long.txt: " in shown.out
    (tmp_path / "other.txt").write_text("other")
    refused = rmat("read", endless, tmp_path / "other.txt", *SESSION).refused()
    assert "session 'card' holds an interrupted reading of long.txt: " in refused
    asked = rmat("ask", endless, *SESSION, "Why?", *SHORT)
    assert asked.status == 0 and "the answer comes out of an interrupted reading" in asked.err
    result = rmat("read", endless, tmp_path / "long.txt", *SESSION, "--json").json
    assert 4095 <= result["resumed_tokens"] < result["tokens"] == 108_000
    assert rmat("read", endless, tmp_path / "long.txt", "--session", "whole").status == 0
    model, _ = rmat_package.load(endless)
    assert same(store.load("card", model), store.load("whole", model))
    assert store.info("card").documents == store.info("whole").documents and not store.info("card").reading
    assert (
        "there is a session 'card' already"
        in rmat("read", endless, tmp_path / "long.txt", *SESSION).refused()
    )


def test_ctrl_c_keeps_what_was_read(rmat: Rmat, endless: Path, sessions: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("the text goes on. " * 1_000_000)
    process = started(endless, tmp_path)
    assert process.stderr is not None
    told = process.stderr.readline()
    ahead = (
        r"about [\d,]+ tokens to go at [\d,]+ tokens/s: \d+ (seconds|minutes); Ctrl-C keeps what is read\n"
    )
    assert re.fullmatch(ahead, told)
    told = process.stderr.readline()
    saved = r"\d+% of 17.17 MiB read and saved, [\d,]+ tokens/s, about \d+ (seconds|minutes) left\n"
    assert re.fullmatch(saved, told)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert re.fullmatch(
        r"rmat: interrupted: an interrupted reading of long.txt: \d+% of 17.17 MiB are read, "
        "which the same command goes on with",
        err.splitlines()[-1],
    )
    assert SessionStore(sessions).info("card").reading == 1


def test_ctrl_c_before_anything_was_read(endless: Path, card: Path, tmp_path: Path) -> None:
    before = card.read_bytes()
    (tmp_path / "long.txt").write_text("the text goes on. " * 1_000)
    code = (
        "import sys, rmat.cli.main as main, rmat.sessions.conversation as conversation\n"
        "def read(*_): raise KeyboardInterrupt\n"
        "conversation.Conversation._pieces = read; sys.exit(main.main())"
    )
    for more, left in (("--replace",), "card' is as it was"), (("--session", "new"), "new' was not made"):
        process = started(endless, tmp_path, *more, code=code)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert err == f"rmat: interrupted before anything was read: session '{left}\n"
    assert card.read_bytes() == before and not (card.parent / "new.safetensors").exists()


def test_a_damaged_card_is_refused_until_it_is_begun_anew(
    rmat: Rmat, endless: Path, card: Path, notes: Path
) -> None:
    whole = bytearray(card.read_bytes())
    whole[-1] ^= 1
    card.write_bytes(whole)
    for _ in range(2):
        assert "'card' is damaged" in rmat("ask", endless, *SESSION, "Why?", *SHORT).refused()
        assert "'card' is damaged" in rmat("read", endless, notes, *SESSION, "--append").refused()
    assert rmat("read", endless, notes, *SESSION, "--replace").status == 0
    assert rmat("ask", endless, *SESSION, "Why?", *SHORT).status == 0
    assert [path.read_bytes() for path in (card.parent / "quarantine").iterdir()] == [whole]


def test_a_name_that_differs_by_case_is_refused_before_the_work(
    rmat: Rmat, endless: Path, card: Path, notes: Path
) -> None:
    assert "there is a session 'card' already" in rmat("read", "none", notes, "--session", "Card").refused()


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
