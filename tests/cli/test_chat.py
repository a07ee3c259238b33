"""`rmat chat`: in a script, where each line is a turn, and at a terminal, with keys as a person presses
them."""

import io
import json
import os
import pty
import re
import runpy
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rmat.api import load
from rmat.cli.chat_commands import Chat, loops
from rmat.sessions.store import SessionBusy, SessionStore
from tests.cli.conftest import Outcome, Rmat

SHORT = ("--max-new-tokens", "8", "--seed", "5")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SessionStore:
    monkeypatch.setenv("RMAT_SESSIONS", str(tmp_path / "sessions"))
    return SessionStore()


class Script:
    """Runs the command with lines on its standard input."""

    def __init__(self, rmat: Rmat, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._rmat, self._model, self._monkeypatch = rmat, model, monkeypatch

    def __call__(self, *lines: str | bytes, options: tuple[str, ...] = ()) -> Outcome:
        raw = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return self._rmat("chat", self._model, *SHORT, *options)


@pytest.fixture
def chat(rmat: Rmat, endless: Path, monkeypatch: pytest.MonkeyPatch, store: SessionStore) -> Script:
    return Script(rmat, endless, monkeypatch)


def turns(store: SessionStore, name: str) -> list[str]:
    return [text for _, text in store.turns(name)]


def test_each_line_is_a_turn(chat: Script, store: SessionStore) -> None:
    outcome = chat("hello", "", "and you?", options=("--json",))
    assert outcome.status == 0 and not outcome.err
    result = outcome.json
    asked = len("hello") + len("and you?") + 2 * 3  # user, turn_end, assistant
    assert result == {
        "session": None,
        "exchanges": 2,
        "tokens_read": 1 + asked + 2 * (8 + 1),
        "state_bytes": result["state_bytes"],
    }
    assert chat("hello", "and you?").out == outcome.out[: outcome.out.rindex("{")]
    assert not store.list()


def test_the_same_seed_gives_the_same_dialogue_of_different_answers(chat: Script) -> None:
    outcome = chat("hello", "hello")
    assert outcome.out == chat("hello", "hello").out
    assert len(set(outcome.out.splitlines())) == 2


def test_a_dialogue_goes_on_in_the_next_run(chat: Script, store: SessionStore) -> None:
    named = ("--session", "talk", "--json")
    together = chat("one", "two", "three", options=("--session", "other", "--json"))
    parts = [chat("one", options=named), chat("two", "three", options=named)]
    texts = [outcome.out[: outcome.out.rindex("{")] for outcome in (together, *parts)]
    assert texts[0] == texts[1] + texts[2]
    assert parts[1].json == {**together.json, "session": "talk", "exchanges": 2}
    assert turns(store, "talk") == turns(store, "other")
    assert "user> one" in parts[1].err  # what was said is shown, and not among the answers
    assert "one" not in parts[1].out


def test_every_exchange_is_kept_at_once(chat: Script, store: SessionStore) -> None:
    """Whatever happens afterwards."""
    outcome = chat("one", b"\xff", "two", options=("--session", "talk"))
    assert outcome.status == 2 and "a line of standard input is not valid UTF-8" in outcome.err
    assert turns(store, "talk")[::2] == ["one"]


def test_a_system_turn_comes_first(chat: Script, store: SessionStore) -> None:
    options = ("--session", "talk", "--system", "Be kind.")
    assert chat("one", options=options).status == 0
    assert store.turns("talk")[0] == ("system", "Be kind.")
    assert "session 'talk' has begun already" in chat("two", options=options).err
    assert len(store.turns("talk")) == 3


def test_copies_and_branches(chat: Script, store: SessionStore) -> None:
    """A copy stays behind, a branch is gone on in."""
    lines = ("one", "/save copy", "two", "/fork branch", "three", "/load copy", "four")
    result = chat(*lines, options=("--session", "talk", "--json")).json
    assert (result["session"], result["exchanges"]) == ("copy", 4)
    said = {info.name: turns(store, info.name)[::2] for info in store.list()}
    assert said == {"talk": ["one", "two"], "branch": ["one", "two", "three"], "copy": ["one", "four"]}


def test_a_dialogue_can_be_named_later(chat: Script, store: SessionStore) -> None:
    assert chat("one", "/save talk", "two", options=("--json",)).json["session"] == "talk"
    assert turns(store, "talk")[::2] == ["one", "two"]


def test_exchanges_can_be_taken_back(chat: Script, store: SessionStore) -> None:
    options = ("--session", "talk")
    outcome = chat("one", "two", "three", "/forget 2", "/quit", "never", options=options)
    assert outcome.status == 0 and "forgot 2 exchanges" in outcome.err
    assert turns(store, "talk")[::2] == ["one"]
    assert "there is nothing to forget" in chat("/forget", options=options).err


def test_an_answer_can_be_had_again(chat: Script, store: SessionStore) -> None:
    """The message is answered anew, with other draws, in place of the answer before."""
    other_draws = ("--max-new-tokens", "40", "--temperature", "2", "--json")
    outcome = chat("one", "two", "/retry", "/retry", "three", options=("--session", "talk", *other_draws))
    answers = outcome.out.splitlines()
    assert turns(store, "talk")[::2] == ["one", "two", "three"] and outcome.json["exchanges"] == 3
    assert len({*answers[1:4]}) == 3 and turns(store, "talk")[3] == answers[3]
    once = chat("one", "two", options=("--session", "other", *other_draws))
    assert once.out.splitlines()[:2] == answers[:2]
    for lines in (["/retry"], ["one", "/system Be kind.", "/retry"], ["one", "/forget", "/retry"]):
        assert "there is no answer to retry" in chat(*lines).err
    assert "at temperature 0 the answer would be the same" in chat("one", "/temperature 0", "/retry").err


def test_documents_and_system_turns_come_in_between(
    chat: Script, store: SessionStore, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("The shop opens at nine.\n")
    outcome = chat(
        "one",
        f"/read {tmp_path}/notes.txt",
        "/system Be kind.",
        "two",
        options=("--session", "talk", "--json"),
    )
    assert "read notes.txt: 26 tokens" in outcome.err  # a blank line in front
    plain = chat("one", "two", options=("--session", "other", "--json")).json
    read = len("\n\nThe shop opens at nine.\n") + len("Be kind.") + 2
    assert outcome.json["tokens_read"] == plain["tokens_read"] + read
    assert ("system", "Be kind.") in store.turns("talk")


def test_the_temperature_can_be_changed(chat: Script) -> None:
    outcome = chat("/temperature", "/temperature 0", "one", "/forget", "one")
    assert outcome.out.splitlines()[0] == outcome.out.splitlines()[1]
    assert "temperature 0.8" in outcome.err and "temperature 0\n" in outcome.err


class TestLoops:
    @pytest.mark.parametrize(
        "piece", ["-", "ha ", "I am a sentence of some length.\n", str(list(range(200)))[:400]]
    )
    def test_what_is_one(self, piece: str) -> None:
        times = next(n for n in range(1, 200) if loops("before " + piece * n))
        assert times * len(piece) >= 100 and times >= 4
        assert loops("before " + piece * (times + 3)) and not loops(piece * (times + 3) + "!")

    def test_what_is_none(self) -> None:
        assert not loops("") and not loops("-" * 80)
        assert not loops("".join(f"{number}. line\n" for number in range(100)))

    def test_an_answer_ends_where_it_repeats_itself(
        self, chat: Script, store: SessionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rmat.generation.sampling.Sampler.draw", lambda sampler, logits: ord("a"))
        long = ("--max-new-tokens", "300", "--session", "talk", "--json")
        ended = chat("one", "two", options=long)
        assert ended.out.splitlines()[:2] == ["a" * 100] * 2 and ended.json["exchanges"] == 2
        assert "the answer repeats itself and ends here (--allow-loops lets it go on)" in ended.err
        assert turns(store, "talk") == ["one", "a" * 100, "two", "a" * 100]
        allowed = chat("one", options=("--max-new-tokens", "300", "--allow-loops"))
        assert allowed.out == "a" * 300 + "\n" and not allowed.err


def test_a_dialogue_that_is_not_kept_is_asked_about(endless: Path, store: SessionStore, chat: Script) -> None:
    chat("one", options=("--session", "kept"))
    asked: list[str] = []

    def answer(question: str) -> bool:
        asked.append(question)
        return len(asked) > 1

    model, tokenizer = load(endless)
    assert tokenizer is not None
    settings: dict[str, Any] = {"max_new_tokens": 3, "temperature": 0.8, "seed": 1}
    with Chat(model, tokenizer, store, settings, at_terminal=True, confirm=answer) as talk:
        talk.take("/load kept")  # nothing is lost
        assert talk.summary()["session"] == "kept" and not asked
    with Chat(model, tokenizer, store, settings, at_terminal=True, confirm=answer) as talk:
        talk.take("two")
        talk.take("/load kept")
        assert talk.summary()["session"] is None and talk.said() == ["two"]
        talk.take("/load kept")
        assert talk.summary()["session"] == "kept" and len(asked) == 2
    assert "the dialogue so far is not kept" in chat("one", "/load kept").err


def test_what_the_commands_show(chat: Script) -> None:
    outcome = chat("one " * 20, "/stats", "/help", options=("--session", "talk"))
    rows = [line.split() for line in outcome.out.splitlines()]
    assert ["tokens", "read", "92"] in rows and ["session", "talk"] in rows  # 79 + 3 and an answer of 9
    assert any(row[0] == "file" for row in rows if row)
    slots = [row for row in rows if row[2:4] == ["of", "8"]]
    assert [row[0] for row in slots] == ["0", "1"] and all(row[4].endswith("%") for row in slots)
    assert "/fork NAME" in outcome.out


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/sav x", "there is no command /sav: did you mean /save?"),
        ("/save", "this dialogue has no name yet: give one, /save NAME"),
        ("/save ../x", "no session can be called '../x'"),
        ("/save taken", "there is a session 'taken' already"),
        ("/fork taken", "there is a session 'taken' already"),
        ("/fork", "the name is missing"),
        ("/load", "the name is missing"),
        ("/load nothing", "nothing"),
        ("/forget x", "'x' is no number of exchanges"),
        ("/forget 0", "forget 1 or more"),
        ("/read", "the file is missing: /read FILE"),
        ("/read no/such.txt", "no/such.txt"),
        ("/system", "the text is missing: /system TEXT"),
        ("/temperature warm", "'warm' is no temperature"),
        ("/temperature -1", "temperature"),
    ],
)
def test_wrong_commands(chat: Script, store: SessionStore, line: str, sentence: str) -> None:
    chat("one", options=("--session", "taken"))
    before = (store.folder / "taken.safetensors").read_bytes()
    outcome = chat("two", line, "never")
    assert outcome.status == 2 and sentence in outcome.err.splitlines()[-1]
    assert (store.folder / "taken.safetensors").read_bytes() == before


def test_a_session_is_talked_in_by_one(
    chat: Script, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr("rmat.cli.chat_commands.LOCK_SECONDS", 0.2)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock("talk"):
            held.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    outcome = chat("one", options=("--session", "talk"))
    done.set()
    other.join()
    assert outcome.status == 2 and "session 'talk' is in use" in outcome.err


_CONTROL = re.compile(r"\x1b\[[0-9;?]*[@-~]|\r")
"""What moves the cursor and colours the text."""


class Terminal:
    """The command in a process of its own, at a terminal."""

    def __init__(self, *arguments: str | Path, cwd: Path) -> None:
        self.screen = ""
        self._process, self._keys = pty.fork()
        if self._process == 0:
            os.chdir(cwd)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # where tests run in the background it is ignored
            os.environ.update(PYTHONPATH=str(Path(__file__).parents[2]), TERM="xterm", COLUMNS="200")
            os.environ.update(PROMPT_TOOLKIT_NO_CPR="1", NO_COLOR="1")
            words = [sys.executable, "-m", "rmat", *map(str, arguments)]
            os.execv(words[0], words)

    def press(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    def wait_for(self, pattern: str) -> str:
        """What appears up to and with `pattern`."""
        give_up = time.monotonic() + 120
        while not (found := re.search(pattern, self.screen)):
            assert time.monotonic() < give_up, self.screen
            self._look()
        seen, self.screen = self.screen[: found.end()], self.screen[found.end() :]
        return seen

    def leave(self) -> int:
        """Everything to the end; the exit status."""
        give_up = time.monotonic() + 120
        while self._look():
            assert time.monotonic() < give_up, self.screen
        os.close(self._keys)
        return os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])

    def _look(self) -> bool:
        if not select.select([self._keys], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self._keys, 4096)
        except OSError:  # the other end is closed
            return False
        self.screen = _CONTROL.sub("", self.screen + data.decode(errors="replace"))
        return bool(data)


def test_at_a_terminal(endless: Path, store: SessionStore, tmp_path: Path) -> None:
    options: tuple[Any, ...] = ("--session", "talk", "--seed", "1", "--json")
    terminal = Terminal("chat", endless, *options, "--max-new-tokens", "1000000", cwd=tmp_path)
    terminal.wait_for(r"Ctrl-D leaves\n.*you>")
    terminal.press("hello\r")
    terminal.wait_for(r"assistant> .")  # the answer has begun
    terminal.press("\x03")
    terminal.wait_for(r"the answer ends here\n.*you>")
    assert turns(store, "talk")[0] == "hello" and turns(store, "talk")[1]
    with pytest.raises(SessionBusy), store.lock("talk", timeout=0.1):
        pass
    terminal.press("/hlp\r")
    terminal.wait_for(r"there is no command /hlp: did you mean /help\?.*\n.*you>")
    terminal.press("half a li\x03")
    terminal.wait_for(r"Ctrl-D or /quit leaves\n.*you>")
    terminal.press("\x04")
    assert terminal.leave() == 0
    result = json.loads(terminal.screen.strip().splitlines()[-1])
    assert (result["session"], result["exchanges"]) == ("talk", 1)
    assert result["tokens_read"] == store.info("talk").tokens_read
    assert len(store.turns("talk")) == 2

    again = Terminal("chat", endless, *options, "--max-new-tokens", "3", cwd=tmp_path)
    shown = again.wait_for(r"Ctrl-D leaves\n.*you>")
    assert "session talk" in shown and "user> hello" in shown and "assistant> " in shown

    def say(keys: str) -> None:
        again.press(keys)
        again.wait_for(r"assistant> ")
        again.wait_for(r"you>")

    say("\x1b[A\r")  # the key "up": what was said before is there to be said again
    say("\x1b[200~one\rtwo\n/three\x1b[201~\r")  # as terminals bracket what is pasted
    say("four\x1b\rfive\\\rsix\r")  # Alt-Enter, and a backslash before Enter
    again.press("/quit\r")
    assert again.leave() == 0
    assert turns(store, "talk")[::2] == ["hello", "hello", "one\ntwo\n/three", "four\nfive\nsix"]


def test_the_example(
    endless: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a fork and a restored session answer is the same."""
    example = Path(__file__).parents[2] / "examples" / "dialogue.py"
    monkeypatch.setattr(sys, "argv", [example.name, str(endless)])
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    answers = [part.partition("user>")[0].strip() for part in said.split("user> What is my name?\n")[1:]]
    assert len(answers) == 2
    assert answers[1].startswith(answers[0]) and answers[0].startswith("assistant> ")
