"""The dialogue behind `rmat chat`: lines in, answers and commands out, a session kept after every
exchange."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

from rmat.cli.output import human_bytes, print_table
from rmat.data.documents import Turn
from rmat.data.tokenizer import Tokenizer
from rmat.generation.sampling import SamplingConfig
from rmat.model import LanguageModel
from rmat.sessions.conversation import FORGETTABLE, Conversation
from rmat.sessions.file import Session
from rmat.sessions.store import SessionStore
from rmat.settings import nearest

LOCK_SECONDS = 3
"""How long a chat waits for a session that another process uses."""

SHOWN_TURNS, SHOWN_CHARACTERS = 6, 400
"""Of a dialogue that is taken up again, so many of the last turns are shown, and so much of each."""

HELP = """\
/save [NAME]   keep the dialogue now; under NAME, a copy of it
/load NAME     go on with another session
/fork NAME     go on in a copy called NAME; this session stays as it is
/forget [N]    take back the last N exchanges (default: 1)
/retry         answer the last message anew, with other draws
/read FILE     read a document; then ask about it
/system TEXT   a system turn at this place
/temperature X draw the next answers at another temperature; 0 takes the likeliest tokens
/stats         what was read, how large the state is, what the memory holds
/help          this
/quit          leave, as Ctrl-D does
Alt-Enter, or a backslash before Enter, begins another line; a pasted block is one message.
Ctrl-C ends an answer. A message that begins with / needs a blank in front."""

LOOP_PIECE, LOOP_TIMES, LOOP_CHARACTERS = 400, 4, 100
"""An answer loops if its end is one piece of at most so many characters so many times, and so long
altogether."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters, with which a text could steer the terminal."""


T = TypeVar("T")


class Chat:
    """A dialogue. Use it in a `with` block: a session's lock is held as long as the dialogue goes on in it.

    Args:
        model, tokenizer: who answers.
        store: where sessions are kept.
        sampling: keywords of `rmat.generate`, `seed` among them; each answer takes another seed made from it.
        at_terminal: someone types. Otherwise only answers, and what commands are asked to show, go to
            standard output.
        allow_loops: False ends an answer that repeats itself (`loops`).
        confirm: asks whoever types a question before something is lost; None where nobody can be asked.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        store: SessionStore,
        sampling: dict[str, Any],
        *,
        at_terminal: bool,
        allow_loops: bool = False,
        confirm: Callable[[str], bool] | None = None,
    ) -> None:
        self.at_terminal = at_terminal
        self._model = model
        self._store = store
        self._sampling = sampling
        self._allow_loops, self._confirm = allow_loops, confirm
        self._last: tuple[str, int] | None = None  # the last message and the tokens read behind its answer
        self._attempt = 0
        self._console = Console(stderr=not at_terminal, highlight=False, soft_wrap=True, emoji=False)
        self._conversation = Conversation(model, tokenizer)
        self._name: str | None = None
        self._held = ExitStack()
        self._exchanges = 0
        self._tokens_per_second: float | None = None
        self._commands: dict[str, Callable[[str], object]] = {
            "/help": lambda _: print(HELP),
            "/save": self._save,
            "/load": self._load,
            "/fork": self._fork,
            "/forget": self._forget,
            "/retry": self._retry,
            "/read": self._read,
            "/system": self._system,
            "/temperature": self._temperature,
            "/stats": lambda _: self._stats(),
        }

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def begin(self, name: str | None, system: str | None) -> None:
        """Take up the session `name` if there is one, or begin it; `system` is its first turn."""
        if name is not None:
            self._take_up(name, self._go_on_in(name, lambda: self._stored(name)))
        if system is not None:
            if self._conversation.session.tokens_read > 1:
                raise ValueError(f"session {name!r} has begun already: a system turn can only be its first")
            self._conversation.add([("system", system)])
        if self.at_terminal:
            kept = "" if name is not None else "not kept unless you /save NAME; "
            self.tell(f"[dim]{kept}/help shows the commands, Ctrl-C ends an answer, Ctrl-D leaves[/]")

    def take(self, line: str) -> bool:
        """Answer a line or carry out the command in it; False if it asks to leave. ValueError for a wrong
        command."""
        if not line.strip():
            return True
        if not line.startswith("/"):
            self._answer(line.strip())
            return True
        name, *rest = line.strip().split(maxsplit=1)
        if name == "/quit":
            return False
        if name not in self._commands:
            near = nearest(name, [*self._commands, "/quit"])
            raise ValueError(f"there is no command {name}: did you mean {near}? /help shows all")
        self._commands[name](rest[0] if rest else "")
        return True

    def tell(self, line: str) -> None:
        """A remark, with the markup of rich: no part of an answer."""
        self._console.print(line)

    def said(self) -> list[str]:
        """What the user said, as far as it is kept."""
        return [text for role, text in self._conversation.session.turns if role == "user"]

    def summary(self) -> dict[str, Any]:
        """What the dialogue came to, JSON-able."""
        session = self._conversation.session
        return {
            "session": self._name,
            "exchanges": self._exchanges,
            "tokens_read": session.tokens_read,
            "state_bytes": session.state.nbytes,
        }

    def _answer(self, text: str) -> None:
        sampling = dict(self._sampling)
        if sampling["seed"] is not None:
            # Answers with the same draws would begin alike; this goes on across runs as if there had been
            # one.
            read = self._conversation.session.tokens_read + self._attempt
            sampling["seed"] = (sampling["seed"] + read) % 2**63
        reply = self._conversation.say(text, **sampling)
        started = time.perf_counter()
        if self.at_terminal:
            self._console.print("[bold cyan]assistant>[/] ", end="")
        cut = None
        try:
            for piece in reply:
                print(_UNPRINTABLE.sub("", piece) if self.at_terminal else piece, end="", flush=True)
                if not self._allow_loops and loops(reply.text):
                    cut = "the answer repeats itself and ends here (--allow-loops lets it go on)"
                    break
        except KeyboardInterrupt:
            if not self.at_terminal:
                raise
            cut = "the answer ends here"
        with _undisturbed() if cut else nullcontext():
            reply.cut()
            seconds = time.perf_counter() - started
            if not reply.text.endswith("\n"):
                print(flush=True)
            self._exchanges += 1
            self._tokens_per_second = reply.new_tokens / seconds
            self._last = text, self._conversation.session.tokens_read
            self._keep()
        if cut:
            self.tell(f"[dim]{cut}[/]")

    def _keep(self) -> None:
        if self._name is not None:
            self._store.save(self._name, self._conversation.session, self._model)

    def _go_on_in(self, name: str, prepare: Callable[[], T]) -> T:
        """Hold the lock of `name` instead of the present session's, if `prepare`, called under it,
        succeeds."""
        with ExitStack() as held:
            if name != self._name:
                held.enter_context(self._store.lock(name, timeout=LOCK_SECONDS))
            result = prepare()
            if name != self._name:
                self._held.close()
                self._held, self._name = held.pop_all(), name
        return result

    def _stored(self, name: str) -> Session | None:
        return self._store.find(name, self._model)

    def _take_up(self, name: str, session: Session | None) -> None:
        self._conversation = Conversation(self._model, self._conversation.tokenizer, session)
        if session is None:
            self.tell(f"[dim]session {name} begins[/]")
            return
        self.tell(f"[dim]session {name}: {session.tokens_read:,} tokens read[/]")
        for turn in session.turns[-SHOWN_TURNS:]:
            self._show(turn)

    def _store_as(self, name: str) -> None:
        """Keep the dialogue as a session of its own."""
        self._store.save(name, replace(self._conversation.session, created=None), self._model)

    def _require_free(self, name: str) -> None:
        if not name:
            raise ValueError("the name is missing: /help shows how commands are written")
        self._store.require_free(name)

    def _save(self, name: str) -> None:
        if not name and self._name is None:
            raise ValueError("this dialogue has no name yet: give one, /save NAME")
        if not name or name == self._name:
            self._keep()
        else:
            self._require_free(name)
            if self._name is None:
                self._go_on_in(name, lambda: self._store_as(name))
            else:
                self._store_as(name)
        self.tell(f"[dim]saved as {name or self._name}[/]")

    def _load(self, name: str) -> None:
        if not name:
            raise ValueError("the name is missing: /load NAME")
        self._store.info(name)  # there is such a session
        if self._name is None and self._conversation.session.tokens_read > 1:
            if self._confirm is None:
                self.tell("[dim]the dialogue so far is not kept[/]")
            elif not self._confirm("This dialogue is not kept. Discard it?"):
                self.tell("[dim]nothing is loaded; /save NAME keeps this dialogue[/]")
                return
        self._take_up(name, self._go_on_in(name, lambda: self._stored(name)))

    def _fork(self, name: str) -> None:
        self._require_free(name)
        self._go_on_in(name, lambda: self._store_as(name))
        self.tell(f"[dim]going on in {name}[/]")

    def _forget(self, number: str) -> None:
        if number and not number.isdecimal():
            raise ValueError(f"{number!r} is no number of exchanges: /forget or /forget N")
        forgotten = self._conversation.forget(int(number or 1))
        if not forgotten:
            raise ValueError(
                f"there is nothing to forget: only the last {FORGETTABLE} exchanges since the dialogue was "
                "taken up can be"
            )
        self._keep()
        self.tell(f"[dim]forgot {forgotten} exchange{'s' * (forgotten > 1)}[/]")

    def _retry(self, _: str) -> None:
        if self._last is None or self._last[1] != self._conversation.session.tokens_read:
            raise ValueError("there is no answer to retry: the last thing read was no message of this run")
        if self._sampling["temperature"] == 0:
            raise ValueError("at temperature 0 the answer would be the same: /temperature 0.8 first")
        before = self._conversation.fork()
        self._conversation.forget()
        self._attempt += 1
        try:
            self._answer(self._last[0])
        except BaseException:
            self._conversation = before
            raise
        self._exchanges -= 1

    def _read(self, name: str) -> None:
        from rmat.cli.output import reading
        from rmat.data.extraction import read_file

        if not name:
            raise ValueError("the file is missing: /read FILE")
        document = read_file(Path(name).expanduser())
        with reading(f"reading {document.name}", document.n_bytes) as advance:
            tokens = self._conversation.read_document(document, progress=advance)
        self._keep()
        self.tell(f"[dim]read {escape(document.name)}: {tokens:,} tokens[/]")

    def _system(self, text: str) -> None:
        if not text:
            raise ValueError("the text is missing: /system TEXT")
        self._conversation.add([("system", text)])
        self._keep()

    def _temperature(self, number: str) -> None:
        if number:
            try:
                value = float(number)
            except ValueError:
                raise ValueError(f"{number!r} is no temperature: give 0 or a number above") from None
            SamplingConfig(temperature=value)
            self._sampling["temperature"] = value
        self.tell(f"[dim]temperature {self._sampling['temperature']:g}[/]")

    def _stats(self) -> None:
        session = self._conversation.session
        rate = self._tokens_per_second
        rows = [
            ("tokens read", f"{session.tokens_read:,}"),
            ("state", human_bytes(session.state.nbytes)),
            ("last answer", "none yet" if rate is None else f"{rate:.1f} tokens/s"),
            ("session", self._name or "not kept"),
        ]
        if self._name is not None and self._store.exists(self._name):
            rows.append(("file", human_bytes(self._store.info(self._name).nbytes)))
        print_table(("dialogue", ""), rows)
        memories = [
            (number, layer.memory.pushed)
            for number, layer in enumerate(session.state.layers)
            if layer.memory is not None
        ]
        if memories:
            slots = self._model.config.n_slots
            shares = session.state.openness()[:, 0].tolist()
            print_table(
                ("layer", "slots filled", "openness"),
                [
                    (
                        str(number),
                        f"{int(pushed.clamp(max=slots).sum())} of {slots * pushed.numel()}",
                        f"{share:.1%}",
                    )
                    for (number, pushed), share in zip(memories, shares, strict=True)
                ],
                "openness: share of the tokens that entered the memory",
            )

    def _show(self, turn: Turn) -> None:
        role, text = turn
        cut = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."
        self._console.print(f"{role}> ", style="dim bold", end="", markup=False)
        self._console.print(_UNPRINTABLE.sub("", cut), style="dim", markup=False)


def loops(text: str) -> bool:
    """Whether the end of `text` is the same piece again and again."""
    for size in range(1, LOOP_PIECE + 1):
        length = size * max(LOOP_TIMES, -(-LOOP_CHARACTERS // size))
        if length <= len(text) and text[-length:-size] == text[size - length :]:
            return True
    return False


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside, Ctrl-C does nothing: a second one must not undo what the first one asked for."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
