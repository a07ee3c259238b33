"""`rmat chat`: a dialogue in the terminal, or in a script that gives a turn a line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rmat.cli.loading import add_model, add_sampling, add_session, load_with_tokenizer, sampling
from rmat.cli.output import print_json
from rmat.cli.parsing import add_command, add_json

if TYPE_CHECKING:
    from rmat.cli.chat_commands import Chat

DESCRIPTION = """\
Talk to a model. The state has one size, so that the dialogue may be of any length. With --session it is kept under
that name after every answer and goes on there the next time. /help shows the commands. Ctrl-C ends the answer that
is being written, Ctrl-D the program.

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
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    from rmat.cli.chat_commands import Chat
    from rmat.sessions.store import SessionStore

    store = SessionStore(args.sessions)
    if args.session is not None:
        store.exists(args.session)  # before the model is loaded: the name is a possible one
    model, tokenizer = load_with_tokenizer(args.model, args.device)
    with Chat(model, tokenizer, store, sampling(args), at_terminal=sys.stdin.isatty()) as chat:
        chat.begin(args.session, args.system)
        for line in _typed(chat) if chat.at_terminal else _piped():
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


def _typed(chat: Chat) -> Iterator[str]:
    """Lines that someone types, with editing and history where the system has readline."""
    try:
        import readline
    except ImportError:
        prompt = "you> "
    else:
        colour = Console().color_system is not None
        # \\001 and \\002 tell readline which characters take no room.
        prompt = "\001\033[1;32m\002you>\001\033[0m\002 " if colour else "you> "
        for line in chat.said():
            readline.add_history(line)
    while True:
        try:
            yield input(prompt)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            chat.tell("\n[dim]Ctrl-D or /quit leaves[/]")


def _piped() -> Iterator[str]:
    from rmat.data.files import decode

    for raw in sys.stdin.buffer:
        yield decode(raw, "a line of standard input")


def _escaped(error: Exception) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
