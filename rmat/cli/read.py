"""`rmat read`: documents read once into a small session, the document card."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from rmat.cli.loading import add_model, add_session, load_with_tokenizer
from rmat.cli.output import TELL_AFTER, human_bytes, human_time, print_json, print_table
from rmat.cli.parsing import add_command, add_json
from rmat.cli.sessions import add_wait, hold_session, unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rmat.data.documents import Document
    from rmat.model import LanguageModel
    from rmat.sessions.conversation import Conversation
    from rmat.sessions.file import Session
    from rmat.sessions.store import SessionInfo, SessionStore

DESCRIPTION = """\
Read documents, one after the other, into a session: a document card of one size however long they are. `rmat
ask` then answers from it without reading again. Text, Markdown, code, HTML and PDF (the last two need the
extra 'documents').

What is read is saved at least every ten seconds. After an interruption the same command goes on from
there."""

SAVE_SECONDS = 10.0
"""So often a reading is saved while it goes on."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "read",
        run=run,
        help="read documents once, to ask about them later",
        description=DESCRIPTION,
        usage="rmat read MODEL DOC... --session NAME [options]",
    )
    add_model(parser)
    parser.add_argument("documents", metavar="DOC", nargs="+", help="file to read")
    add_session(parser, required=True, help="name of the card")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--append", action="store_true", help="read on in the existing session")
    existing.add_argument("--replace", action="store_true", help="begin the existing session anew")
    add_wait(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Read, save, and print what was read."""
    from rmat.data.extraction import read_file
    from rmat.data.progress import Progress
    from rmat.machine import expand
    from rmat.sessions.conversation import Conversation
    from rmat.sessions.store import SessionStore

    store = SessionStore(args.sessions)
    with hold_session(store, args.session, args.wait):
        known = _known(args, store)
        # All of them before the model reads any: a file that cannot be read is better known at once.
        with Progress(True) as shown:
            documents = []
            for name in args.documents:
                with shown.task(f"opening {name}"):
                    documents.append(read_file(expand(name)))
        goes_on = _goes_on(args, known, documents)
        model, tokenizer = load_with_tokenizer(args.model, args.device)
        before = _before(args, store, model) if goes_on or args.append else None
        conversation = Conversation(model, tokenizer, before)
        before = conversation.session
        resumed = sum(each.tokens for each in before.documents[-before.reading :]) if goes_on else 0
        started = time.perf_counter()
        try:
            tokens = _read(
                conversation,
                documents,
                goes_on,
                lambda: store.save(args.session, conversation.session, model),
            )
        except KeyboardInterrupt:
            if conversation.session is before:
                kept = f"session {args.session!r} {'was not made' if known is None else 'is as it was'}"
                print(f"rmat: interrupted before anything was read: {kept}", file=sys.stderr)
            else:
                told = unfinished(store.save(args.session, conversation.session, model))
                told = f"{told}, which the same command goes on with" if told else "everything was read"
                print(f"rmat: interrupted: {told}", file=sys.stderr)
            return 130
        seconds = time.perf_counter() - started
        info = store.save(args.session, conversation.session, model)
    result = {
        "session": args.session,
        "documents": [
            {"name": document.name, "bytes": document.n_bytes, "tokens": count}
            for document, count in zip(documents, tokens, strict=True)
        ],
        "bytes": sum(document.n_bytes for document in documents),
        "tokens": sum(tokens),
        "resumed_tokens": resumed,
        "seconds": seconds,
        "tokens_read": info.tokens_read,
        "state_bytes": conversation.session.state.nbytes,
        "card_bytes": info.nbytes,
    }
    if args.json:
        print_json(result)
    else:
        _show(args, result)
    return 0


def _known(args: argparse.Namespace, store: SessionStore) -> SessionInfo | None:
    """What is known of the session, None where it is begun. ValueError where the options do not fit what is
    there."""
    from rmat.sessions.store import DamagedSession, UnknownSession

    try:
        known = store.info(args.session)
    except UnknownSession:
        store.require_free(args.session)
        if args.append:
            raise ValueError(
                f"there is no session {args.session!r} to read on in: leave out --append to begin it"
            ) from None
        return None
    except DamagedSession:
        if not args.replace:
            raise
        return None
    if not (args.append or args.replace or known.reading):
        raise ValueError(
            f"there is a session {args.session!r} already: --append reads on in it, --replace begins it anew"
        )
    return known


def _goes_on(args: argparse.Namespace, known: SessionInfo | None, documents: Sequence[Document]) -> bool:
    """Whether the session holds an interrupted reading of these documents."""
    if known is None or not known.reading:
        return False
    begun = [each.sha256 for each in known.documents[-known.reading :]]
    if begun == [document.digest.hex() for document in documents]:
        return True
    if not (args.append or args.replace):
        raise ValueError(
            f"session {args.session!r} holds {unfinished(known)}: the same documents, unchanged, go on "
            "with it; --append reads others behind what was read, --replace begins the session anew"
        )
    return False


def _before(args: argparse.Namespace, store: SessionStore, model: LanguageModel) -> Session | None:
    """The session to go on from; None where it cannot be and is to be replaced."""
    from rmat.sessions.store import DamagedSession, OtherModel

    try:
        return store.load(args.session, model)
    except (DamagedSession, OtherModel):
        if not args.replace:
            raise
        return None


def _read(
    conversation: Conversation, documents: Sequence[Document], goes_on: bool, save: Callable[[], Any]
) -> list[int]:
    """Read the documents, show how far it is, and save now and then: tokens of each document."""
    from rmat.data.progress import Progress

    n_bytes = sum(document.n_bytes for document in documents)
    what = documents[0].name if len(documents) == 1 else f"{len(documents)} documents"
    started = saved = time.perf_counter()
    before = conversation.session.tokens_read
    done = here = 0

    def step(n_new: int) -> None:
        nonlocal done, here, saved
        advance(n_new)
        first = not here
        here += n_new if done or not goes_on else 0  # at first it is told of what was read before
        done += n_new
        now = time.perf_counter()
        if not here:
            return
        rate = (conversation.session.tokens_read - before) / (now - started)
        left = (n_bytes - done) * (now - started) / here
        if first and left > TELL_AFTER:
            tokens = (n_bytes - done) * (conversation.session.tokens_read - before) / here
            shown.say(
                f"about {tokens:,.0f} tokens to go at {rate:,.0f} tokens/s: {human_time(left)}; "
                "Ctrl-C keeps what is read"
            )
        if now - saved >= SAVE_SECONDS and conversation.session.reading:
            save()
            saved = time.perf_counter()
            if not sys.stderr.isatty():
                share = f"{done / n_bytes:.0%} of {human_bytes(n_bytes)}"
                shown.say(f"{share} read and saved, {rate:,.0f} tokens/s, about {human_time(left)} left")

    with Progress(True) as shown, shown.task(f"reading {what}", total=n_bytes) as advance:
        return conversation.read_documents(documents, progress=step)


def _show(args: argparse.Namespace, result: dict[str, Any]) -> None:
    rows = [(each["name"], f"{each['bytes']:,}", f"{each['tokens']:,}") for each in result["documents"]]
    if len(rows) > 1:
        rows.append(("together", f"{result['bytes']:,}", f"{result['tokens']:,}"))
    rate = (result["tokens"] - result["resumed_tokens"]) / max(result["seconds"], 1e-9)
    print_table(
        ("document", "bytes", "tokens"),
        rows,
        f"read in {result['seconds']:.1f} s ({rate:,.0f} tokens/s) into session {args.session!r}: "
        f"{human_bytes(result['card_bytes'])} for {result['tokens_read']:,} tokens",
    )
