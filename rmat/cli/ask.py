"""`rmat ask`: a question to a session, answered from a fork of it."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

from rmat.cli.loading import (
    add_model,
    add_sampling,
    add_schema,
    add_session,
    grammar,
    load_with_tokenizer,
    sampling,
)
from rmat.cli.output import print_json
from rmat.cli.parsing import add_command, add_json
from rmat.cli.sessions import add_wait, hold_session, unfinished

DESCRIPTION = """\
Answer a question from a session that `rmat read` or `rmat chat` made. Nothing is read again, so that the
time to answer does not depend on how much was read. The likeliest answer is given, and ended where it
repeats itself. The session stays as it is, unless --keep adds the question and the answer. The question is
the argument (after -- it may begin with a dash), or else standard input."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "ask",
        run=run,
        words="prompt",
        help="ask about documents that were read",
        description=DESCRIPTION,
        usage="rmat ask MODEL --session NAME [QUESTION] [options]",
    )
    add_model(parser)
    add_session(parser, required=True, help="name of the session to ask")
    parser.add_argument("--keep", action="store_true", help="add question and answer to the session")
    add_wait(parser)
    add_sampling(parser, temperature=0.0)
    add_schema(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write the answer."""
    from rmat.cli.chat_commands import loops
    from rmat.sessions.conversation import Conversation
    from rmat.sessions.store import SessionStore

    store = SessionStore(args.sessions)
    question = _question(args)
    with hold_session(store, args.session, args.wait) if args.keep else contextlib.nullcontext():
        info = store.info(args.session)  # before the model is loaded: there is such a session
        if told := unfinished(info):
            print(f"rmat: the answer comes out of {told}", file=sys.stderr)
        model, tokenizer = load_with_tokenizer(args.model, args.device)
        conversation = Conversation(model, tokenizer, store.load(args.session, model))
        started = time.perf_counter()
        reply = conversation.say(question, **sampling(args), grammar=grammar(args))
        for piece in reply:
            if not args.json:
                print(piece, end="", flush=True)
            if loops(reply.text):
                reply.cut()
        seconds = time.perf_counter() - started
        if args.keep:
            store.save(args.session, conversation.session, model)
    if args.json:
        print_json(
            {
                "text": reply.text,
                "finish": reply.finish,
                "seconds": seconds,
                "new_tokens": reply.new_tokens,
                "tokens_read": conversation.session.tokens_read,
                "state_bytes": conversation.session.state.nbytes,
            }
        )
    elif sys.stdout.isatty() and not reply.text.endswith("\n"):
        print()
    return 0


def _question(args: argparse.Namespace) -> str:
    from rmat.data.files import decode

    question = args.prompt
    if question is None:
        question = decode(sys.stdin.buffer.read(), "standard input")
    if not question.strip():
        raise ValueError("the question is empty: give one as the argument, or on standard input")
    return question.strip()
