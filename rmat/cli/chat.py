"""`rmat chat`: a dialogue in the terminal, or in a script that gives a turn a line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rmat.cli.loading import add_model, add_sampling, add_session, load_with_tokenizer, sampling
from rmat.cli.output import print_json
from rmat.cli.parsing import add_command, add_json

if TYPE_CHECKING:
    from rmat.cli.chat_commands import Chat

DESCRIPTION = """\
Talk to a model. The state has one size, so that the dialogue may be of any length. With --session it is
kept under that name after every answer and goes on there the next time. /help shows the commands. Ctrl-C
ends the answer that is being written, Ctrl-D the program. A pasted block is one message; Alt-Enter, or a
backslash before Enter, begins another line of a message.

If standard input is no terminal, each line is a turn (or a command), and the answers are printed."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "chat", run=run, help="talk to a model; kept across runs", description=DESCRIPTION
    )
    add_model(parser)
    add_session(parser, required=False, help="keep the dialogue under this name, or go on with it")
    parser.add_argument("--system", metavar="TEXT", help="system turn at the start of a new dialogue")
    add_sampling(parser)
    parser.add_argument(
        "--allow-loops", action="store_true", help="let an answer go on that repeats itself word for word"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    from rmat.cli.chat_commands import Chat
    from rmat.sessions.store import SessionStore

    store = SessionStore(args.sessions)
    if args.session is not None:
        store.exists(args.session)  # before the model is loaded: the name is a possible one
    model, tokenizer = load_with_tokenizer(args.model, args.device)
    terminal = Terminal() if sys.stdin.isatty() else None
    with Chat(
        model,
        tokenizer,
        store,
        sampling(args),
        at_terminal=terminal is not None,
        allow_loops=args.allow_loops,
        confirm=None if terminal is None else terminal.confirm,
    ) as chat:
        chat.begin(args.session, args.system)
        for line in _piped() if terminal is None else terminal.messages(chat):
            try:
                if not chat.take(line):
                    break
            except KeyboardInterrupt:
                if not chat.at_terminal:
                    raise
                chat.tell("[dim]interrupted[/]")
            except (ValueError, OSError) as error:
                if not chat.at_terminal or isinstance(error, BrokenPipeError):
                    raise
                chat.tell(f"[red]{_escaped(error)}[/]")
        if args.json:
            print_json(chat.summary())
    return 0


class Terminal:
    """Messages that someone types, with editing and history, pasted blocks and several lines."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.output import create_output

        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.document.text_before_cursor.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.newline(copy_margin=False)
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        self._history = InMemoryHistory()
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            key_bindings=keys,
            history=self._history,
            prompt_continuation="...  ",
            output=create_output(always_prefer_tty=True),  # standard output may be a file
        )

    def messages(self, chat: Chat) -> Iterator[str]:
        """What is typed, until Ctrl-D. Known to the keys up and down is what was said before."""
        for text in chat.said():
            self._history.append_string(text)
        while True:
            try:
                yield self._session.prompt([("bold ansigreen", "you>"), ("", " ")])
            except EOFError:
                return
            except KeyboardInterrupt:
                chat.tell("[dim]Ctrl-D or /quit leaves[/]")

    def confirm(self, question: str) -> bool:
        """Whether the answer to a question is yes."""
        from prompt_toolkit import prompt

        try:
            return prompt(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False


def _piped() -> Iterator[str]:
    from rmat.data.files import decode

    for raw in sys.stdin.buffer:
        yield decode(raw, "a line of standard input")


def _escaped(error: Exception) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
