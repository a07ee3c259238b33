"""`rmat sessions`: what is kept of what was read, and how to get rid of it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rmat.cli.output import human_bytes, print_json, print_table
from rmat.cli.parsing import Parser, add_command, add_json

if TYPE_CHECKING:
    from rmat.sessions.file import ReadDocument
    from rmat.sessions.store import SessionInfo, SessionStore

WAIT_SECONDS = 1
"""How long an action waits for a session that is in use."""

DAY = 86400


def add(commands: Any) -> None:
    """Add the command and what can be done."""
    parser = commands.add_parser(
        "sessions",
        help="list, show, fork, rename and delete what chats and readings have kept",
        description="Sessions are what rmat chat, read and serve keep: a place in a text, for one model.",
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)

    def action(name: str, run: Any, help: str, *names: str) -> Parser:
        added = add_command(actions, name, run=run, help=help, description=f"{help[0].upper()}{help[1:]}.")
        for metavar in names:
            added.add_argument(metavar.lower().replace("-", "_"), metavar=metavar, help="name of a session")
        added.add_argument(
            "--sessions",
            metavar="DIR",
            help="folder of the sessions (default: $RMAT_SESSIONS, else rmat/sessions in the user's data "
            "folder)",
        )
        add_json(added)
        return added

    action("list", run_list, "list the sessions, the last used first")
    action("show", run_show, "show what is known of a session, and the turns whose text is kept", "NAME")
    action("fork", run_fork, "keep what is in a session under another name too", "NAME", "NEW-NAME")
    action("rename", run_rename, "give a session another name", "NAME", "NEW-NAME")
    action("delete", run_delete, "delete a session at once and for good", "NAME")
    expire = action("expire", run_expire, "delete the sessions that have not been used for longest")
    expire.add_argument("--max-age-days", type=float, metavar="X", help="delete what was not used for X days")
    expire.add_argument("--max-count", type=int, metavar="N", help="leave at most N sessions")
    expire.add_argument("--max-bytes", type=int, metavar="N", help="leave at most N bytes")
    expire.add_argument(
        "--dry-run", action="store_true", help="say what would be deleted, and delete nothing"
    )


def add_wait(parser: Parser) -> None:
    """How long a command waits for a session that is in use."""
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait so long for a session in use (default: 0)",
    )


@contextlib.contextmanager
def hold_session(store: SessionStore, name: str, seconds: float) -> Iterator[None]:
    """The session's lock. Where somebody holds it, says who, and waits for at most `seconds`."""
    from rmat.sessions.store import SessionBusy

    if not 0 <= seconds <= 10**6:
        raise ValueError(f"--wait {seconds:g}: give seconds from 0 to 1000000")
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(store.lock(name, timeout=0))
        except SessionBusy as busy:
            if not seconds:
                raise
            print(f"rmat: {busy}; waiting for {seconds:g} seconds", file=sys.stderr, flush=True)
            lock.enter_context(store.lock(name, timeout=seconds))
        yield


def run_list(args: argparse.Namespace) -> int:
    """Print a row for each session."""
    store = _store(args)
    infos, damaged, quarantined = store.list(), store.damaged, [str(path) for path in store.quarantined]
    if args.json:
        print_json(
            {
                "folder": str(store.folder),
                "sessions": [_fields(info) for info in infos],
                "damaged": damaged,
                "quarantined": quarantined,
            }
        )
        return 0
    if infos:
        print_table(
            ("session", "documents", "tokens read", "turns", "used", "created", "size", "model"),
            [
                (
                    info.name,
                    _summary(info.documents),
                    f"{info.tokens_read:,}",
                    str(info.turns),
                    human_age(info.used),
                    human_age(info.created),
                    human_bytes(info.nbytes),
                    _printable(info.model_name or info.model, lines=False),
                )
                for info in infos
            ],
        )
    total = human_bytes(sum(info.nbytes for info in infos))
    print(f"{_many(len(infos), 'session')}, {total}, in {store.folder}")
    if damaged:
        print(f"{_many(len(damaged), 'damaged session')}, to delete or to begin anew: {', '.join(damaged)}")
    if quarantined:
        print(f"{_many(len(quarantined), 'damaged file')} in {store.folder / 'quarantine'}")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print what is known of a session."""
    store = _store(args)
    info, turns = store.info(args.name), store.turns(args.name)
    if args.json:
        history = [{"role": _whole(role), "content": _whole(text)} for role, text in turns]
        print_json({**_fields(info), "history": history})
        return 0
    print_table(
        ("session", info.name),
        [
            ("tokens read", f"{info.tokens_read:,}"),
            ("turns kept", str(info.turns)),
            ("used", human_age(info.used)),
            ("created", human_age(info.created)),
            ("size", human_bytes(info.nbytes)),
            ("model", f"{_printable(info.model_name or 'without a name', lines=False)} ({info.model})"),
        ],
    )
    if info.documents:
        print()
        rows = [
            (
                _printable(each.name, lines=False),
                f"{each.bytes:,}",
                f"{each.bytes_read:,}",
                f"{each.tokens:,}",
            )
            for each in info.documents
        ]
        print_table(("document", "bytes", "read", "tokens"), rows, unfinished(info) or None)
    for role, text in turns:
        print(f"\n{_printable(role)}: {_printable(text)}")
    return 0


def run_fork(args: argparse.Namespace) -> int:
    """Fork a session."""
    info = _store(args).fork(args.name, args.new_name)
    return _tell(args, _fields(info), f"forked {args.name} as {args.new_name}")


def run_rename(args: argparse.Namespace) -> int:
    """Rename a session."""
    info = _store(args).rename(args.name, args.new_name)
    return _tell(args, _fields(info), f"renamed {args.name} to {args.new_name}")


def run_delete(args: argparse.Namespace) -> int:
    """Delete a session."""
    _store(args).delete(args.name)
    return _tell(args, {"deleted": [args.name]}, f"deleted {args.name}")


def run_expire(args: argparse.Namespace) -> int:
    """Delete what the limits do not allow."""
    limits = {name: getattr(args, name) for name in ("max_age_days", "max_count", "max_bytes")}
    if all(limit is None for limit in limits.values()):
        raise ValueError("nothing says what to delete: give --max-age-days, --max-count or --max-bytes")
    names = _store(args, **limits).expire(dry_run=args.dry_run)
    key = "would_delete" if args.dry_run else "deleted"
    return _tell(args, {key: names}, f"{key.replace('_', ' ')} {', '.join(names) or 'nothing'}")


def unfinished(info: SessionInfo) -> str:
    """How much of an interrupted reading was read; "" where there is none."""
    begun = info.documents[len(info.documents) - info.reading :]
    if not begun:
        return ""
    n_bytes = sum(each.bytes for each in begun)
    share = sum(each.bytes_read for each in begun) / max(n_bytes, 1)
    return f"an interrupted reading of {_summary(begun)}: {share:.0%} of {human_bytes(n_bytes)} are read"


def human_age(then: float) -> str:
    """How long ago a Unix time in seconds was."""
    seconds = max(0.0, time.time() - then)
    for unit, length in (("day", DAY), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{_many(int(seconds // length), unit)} ago"
    return "just now"


def _store(args: argparse.Namespace, **limits: Any) -> SessionStore:
    from rmat.sessions.store import SessionStore

    return SessionStore(args.sessions, wait=WAIT_SECONDS, **limits)


def _fields(info: SessionInfo) -> dict[str, Any]:
    """As the server names them."""
    fields = dataclasses.asdict(info)
    fields["bytes"] = fields.pop("nbytes")
    return fields


def _tell(args: argparse.Namespace, result: dict[str, Any], sentence: str) -> int:
    if args.json:
        print_json(result)
    else:
        print(sentence)
    return 0


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _whole(text: str) -> str:
    """The text, with U+FFFD for halves of surrogate pairs, which cannot be written."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _printable(text: str, *, lines: bool = True) -> str:
    """The text without characters that command a terminal, such as escape, since it may come from anywhere,
    and without `lines` without line ends."""
    return "".join(
        character if character.isprintable() or (lines and character in "\n\t") else "\ufffd"
        for character in _whole(text)
    )


def _summary(documents: Sequence[ReadDocument]) -> str:
    """The first document's name, and how many more there are."""
    if not documents:
        return ""
    name = _printable(documents[0].name, lines=False)
    return (name if len(name) <= 40 else f"{name[:37]}...") + (
        f" and {len(documents) - 1} more" * (len(documents) > 1)
    )
