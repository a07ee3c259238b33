"""`rmat read`: documents read once into a small session, the document card."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from rmat.cli.loading import add_model, add_session, load_with_tokenizer
from rmat.cli.output import human_bytes, print_json, print_table
from rmat.cli.parsing import add_command, add_json

DESCRIPTION = """\
Read documents, one after the other, into a session: a document card of one size however long they are. `rmat ask` then
answers from it without reading again. Text, Markdown, code, HTML and PDF (the last two need the extra 'documents').

An interrupted reading saves nothing."""


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
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Read, save, and print what was read."""
    from rmat.data.extraction import read_file
    from rmat.data.progress import Progress
    from rmat.machine import expand
    from rmat.sessions.conversation import Conversation
    from rmat.sessions.store import SessionStore

    store = SessionStore(args.sessions)
    _check_existing(args, store.exists(args.session))
    # All of them before the model reads any: a file that cannot be read is better known at once.
    with Progress(True) as shown:
        documents = []
        for name in args.documents:
            with shown.task(f"opening {name}"):
                documents.append(read_file(expand(name)))
    model, tokenizer = load_with_tokenizer(args.model, args.device)
    with store.lock(args.session):
        try:
            _check_existing(args, store.exists(args.session))  # another process may have been quicker
            before = store.load(args.session, model) if args.append else None
            conversation = Conversation(model, tokenizer, before)
            n_bytes = sum(document.n_bytes for document in documents)
            what = documents[0].name if len(documents) == 1 else f"{len(documents)} documents"
            started = time.perf_counter()
            with Progress(True) as shown, shown.task(f"reading {what}", total=n_bytes) as advance:
                tokens = [conversation.read_document(document, progress=advance) for document in documents]
        except KeyboardInterrupt:
            kept = "is as it was" if args.append or args.replace else "was not made"
            print(f"rmat: interrupted: nothing was saved, session {args.session!r} {kept}", file=sys.stderr)
            return 1
        seconds = time.perf_counter() - started
        info = store.save(args.session, conversation.session, model)
    result = {
        "session": args.session,
        "documents": [
            {"name": document.name, "bytes": document.n_bytes, "tokens": count}
            for document, count in zip(documents, tokens, strict=True)
        ],
        "bytes": n_bytes,
        "tokens": sum(tokens),
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


def _check_existing(args: argparse.Namespace, exists: bool) -> None:
    if exists and not (args.append or args.replace):
        raise ValueError(
            f"there is a session {args.session!r} already: --append reads on in it, --replace begins it anew"
        )
    if args.append and not exists:
        raise ValueError(
            f"there is no session {args.session!r} to read on in: leave out --append to begin it"
        )


def _show(args: argparse.Namespace, result: dict[str, Any]) -> None:
    rows = [(each["name"], f"{each['bytes']:,}", f"{each['tokens']:,}") for each in result["documents"]]
    if len(rows) > 1:
        rows.append(("together", f"{result['bytes']:,}", f"{result['tokens']:,}"))
    rate = result["tokens"] / max(result["seconds"], 1e-9)
    print_table(
        ("document", "bytes", "tokens"),
        rows,
        f"read in {result['seconds']:.1f} s ({rate:,.0f} tokens/s) into session {args.session!r}: "
        f"{human_bytes(result['card_bytes'])} for {result['tokens_read']:,} tokens",
    )
