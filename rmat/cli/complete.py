"""`rmat complete`: code at a cursor, shown as it is written."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmat.cli.loading import add_model, add_sampling, load_with_tokenizer, sampling
from rmat.cli.output import human_bytes, print_json, read_prompt, reading
from rmat.cli.parsing import add_command, add_json

if TYPE_CHECKING:
    from torch import Tensor

    from rmat.data.tokenizer import Tokenizer
    from rmat.model import LanguageModel, StreamState

DESCRIPTION = """\
Complete at a cursor. FILE:LINE is the end of a line, FILE:LINE:COL the place before a character (both
counted from 1), FILE alone the end of the file, - the end of standard input; with --cursor TEXT, the place
of TEXT in it. Only the new text is printed: the rest of the statement, or of the block where the cursor is
on a blank line. Of a large file the part around the cursor is read (--max-file-bytes).

With --context DIR the files of text and code in DIR are read first, the nearest last, without what
.gitignore names and without FILE itself, up to --max-context-bytes. What was read is cached by content:
the next completion does not read the same files again. --state-out keeps it in a file of yours, for
--state-in."""

UNNAMED = "untitled"
"""What the text on standard input is called among the files of a context, unless --name says."""

MAX_FILE_BYTES, MAX_CONTEXT_BYTES = 2**15, 2**18
"""What is read by default; `starter` reads about 25 kB a second on an idle core."""

LARGE, LARGE_SHARE = 50_000_000, 8
"""A model of more parameters, which reads about half a kB a second, reads such a part of it by default."""

CACHED_CONTEXTS = 16
"""States of contexts that are kept in the cache; the longest unused are deleted."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "complete",
        run=run,
        help="complete code at a cursor",
        description=DESCRIPTION,
        usage="rmat complete MODEL FILE[:LINE[:COL]] [options]",
    )
    add_model(parser)
    parser.add_argument("place", metavar="FILE[:LINE[:COL]]", help="where to complete; - for standard input")
    parser.add_argument("--cursor", metavar="TEXT", help="complete at the first TEXT, which is taken out")
    parser.add_argument("--name", metavar="PATH", help="path in --context of the file on standard input")
    parser.add_argument("--context", metavar="DIR", help="read the files of this repository first")
    parser.add_argument(
        "--max-context-bytes",
        type=int,
        metavar="N",
        help=f"read at most N bytes of it, the nearest files; 0: all (default: {MAX_CONTEXT_BYTES}, or "
        f"{MAX_CONTEXT_BYTES // LARGE_SHARE} with a model of more than {LARGE:,} parameters)",
    )
    parser.add_argument(
        "--max-file-bytes",
        type=int,
        metavar="N",
        help="read at most N bytes of FILE in front of the cursor and a quarter as many behind; 0: all "
        f"(default: {MAX_FILE_BYTES}, or {MAX_FILE_BYTES // LARGE_SHARE})",
    )
    parser.add_argument(
        "--mode",
        choices=("auto", "fim", "plain"),
        default="auto",
        help="fim shows the model the text behind the cursor (trained with data.fim_rate), plain does not; "
        "auto takes plain, which measures better with the models so far: rmat eval completion (default: "
        "auto)",
    )
    parser.add_argument(
        "--lines",
        type=int,
        metavar="N",
        help="end after N lines; 0: no end (default: the statement or block)",
    )
    add_sampling(parser, max_new_tokens=128, temperature=0.0)
    parser.add_argument(
        "--state-in", metavar="FILE", help="do not read --context: it is in the state in FILE"
    )
    parser.add_argument("--state-out", metavar="FILE", help="keep what was read of --context in FILE")
    parser.add_argument(
        "--show-file", action="store_true", help="print the whole file with the completion in its place"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write the completion."""
    path, prefix, suffix = find_cursor(args.place, args.cursor)
    _check(args, path)

    from rmat.data.files import is_code
    from rmat.data.repository import target_name
    from rmat.generation.completion import complete

    root = None if args.context is None else Path(args.context)
    target = path if args.name is None else (root or Path()) / args.name
    file_name: str | None
    if root is not None:
        file_name = UNNAMED if target is None else target_name(root, target)
    else:
        # Text without a name has no header in training either.
        file_name = target.name if target is not None and is_code(target) else None
    model, tokenizer = load_with_tokenizer(args.model, args.device)
    started = time.perf_counter()
    n_files, state = _read_before(args, model, tokenizer, root, target, prefix)
    before, behind = around_cursor(prefix, suffix, _most(args.max_file_bytes, MAX_FILE_BYTES, model))
    if len(before) + len(behind) < len(prefix) + len(suffix):
        read, whole = (human_bytes(len(text.encode())) for text in (before + behind, prefix + suffix))
        print(f"rmat: {read} of {whole} around the cursor are read; --max-file-bytes 0: all", file=sys.stderr)
    writing = complete(
        model,
        tokenizer,
        before,
        behind,
        file_name=file_name,
        state=state,
        mode=args.mode,
        lines=args.lines,
        **sampling(args),
    )
    read_prompt(writing, len((before + behind).encode()))
    shown = not args.json
    if shown and args.show_file:
        print(prefix, end="")
    for piece in writing:
        if shown:
            print(piece, end="", flush=True)
    if shown and args.show_file:
        print(suffix, end="")
    elif shown and sys.stdout.isatty() and not writing.text.endswith("\n"):
        print()
    assert writing.state is not None
    if args.json:
        print_json(
            {
                "text": writing.text,
                "finish": writing.finish,
                "mode": writing.mode,
                "prompt_tokens": writing.prompt_tokens,
                "context_files": n_files,
                "context_tokens": 0 if state is None else int(state.position[0]),
                "new_tokens": len(writing.tokens),
                "seconds": time.perf_counter() - started,
                "state_bytes": writing.state.nbytes,
            }
        )
    return 0


def _most(asked: int | None, default: int, model: LanguageModel) -> int:
    """Bytes to read at most."""
    if asked is not None:
        return asked
    return default // (LARGE_SHARE if sum(x.numel() for x in model.parameters()) > LARGE else 1)


def around_cursor(prefix: str, suffix: str, most: int) -> tuple[str, str]:
    """At most `most` bytes of what stands before the cursor and a quarter as many of what stands behind it,
    in whole lines where one ends there; all of both if `most` is 0."""
    if most == 0:
        return prefix, suffix
    before, behind = prefix.encode()[-most:], suffix.encode()[: max(1, most // 4)]
    near, after = before.decode(errors="ignore"), behind.decode(errors="ignore")
    if len(near) < len(prefix):
        near = near.partition("\n")[2] or near
    if len(after) < len(suffix):
        head, newline, _ = after.rpartition("\n")
        after = head + newline or after
    return near, after


def find_cursor(place: str, mark: str | None) -> tuple[Path | None, str, str]:
    """The file of a FILE[:LINE[:COL]] (None: standard input), and its text before and behind the cursor.

    A name may have colons and numbers in it: of the readings that name a file, that with the longest name
        counts.

    Raises ValueError if there is no such place, FileNotFoundError if there is no file.
    """
    from rmat.data.files import decode

    path: Path | None = None
    numbers: list[int] = []
    if place == "-":
        text = decode(sys.stdin.buffer.read(), "standard input")
    else:
        name, numbers = _split(place)
        path = Path(name)
        text = decode(path.read_bytes(), name)
    if mark is not None:
        if numbers or mark == "" or mark not in text:
            where = "give a place or --cursor, not both" if numbers else "there is no such text in it"
            raise ValueError(f"--cursor {mark!r}, {place}: {where}")
        prefix, _, suffix = text.partition(mark)
        return path, prefix, suffix
    end = len(text) if not numbers else _offset(text, str(path), *numbers)
    return path, text[:end], text[end:]


def _split(place: str) -> tuple[str, list[int]]:
    """Name of the file and the numbers behind it."""
    name = place
    numbers: list[int] = []
    while not Path(name).is_file() and len(numbers) < 2 and (found := re.fullmatch(r"(.+):(\d+)", name)):
        name, numbers = found[1], [int(found[2]), *numbers]
    return name, numbers


def _offset(text: str, name: str, line: int, column: int | None = None) -> int:
    """Where in `text` a line ends, or a column of it begins. Raises ValueError if it has no such line or
    column."""
    lines = text.split("\n")
    # Behind a last newline a line begins that can be completed, though it is not counted.
    count = len(lines) - (lines[-1] == "")
    if not 1 <= line <= len(lines):
        raise ValueError(
            f"{name} has {count} line{'s' * (count != 1)}: there is no line {line}; give 1 to {len(lines)}"
        )
    start = sum(len(before) + 1 for before in lines[: line - 1])
    length = len(lines[line - 1].removesuffix("\r"))
    if column is None:
        return start + length
    if not 1 <= column <= length + 1:
        raise ValueError(
            f"line {line} of {name} has {length} characters: there is no column {column}; "
            f"give 1 to {length + 1}"
        )
    return start + column - 1


def _check(args: argparse.Namespace, path: Path | None) -> None:
    """Refuse options that do not go together, before anything long is begun."""
    from rmat.storage import writable

    if args.name is not None and path is not None:
        raise ValueError(f"--name {args.name} is for standard input; {path} has a name")
    if args.state_out is not None and (args.context is None or args.state_in is not None):
        raise ValueError("--state-out keeps what is read of a context: give --context, and no --state-in")
    if args.state_out is not None:
        writable(args.state_out)
    if args.max_context_bytes is not None and args.context is None:
        raise ValueError("--max-context-bytes is a limit of --context: give that too")
    for name in ("max_context_bytes", "max_file_bytes"):
        if (getattr(args, name) or 0) < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}: give bytes, or 0 for all")


def _read_before(
    args: argparse.Namespace,
    model: LanguageModel,
    tokenizer: Tokenizer,
    root: Path | None,
    target: Path | None,
    prefix: str,
) -> tuple[int, StreamState | None]:
    """How many files are in the context, and the state behind them; None without any."""
    from rmat.data.files import Skipped
    from rmat.data.repository import OVER_LIMIT, context_files, context_texts
    from rmat.generation.completion import read_context
    from rmat.storage import load_state, save_state

    if args.state_in is not None:
        state, _ = load_state(args.state_in, model.config)
        return 0, state.to(next(model.parameters()).device)
    if root is None:
        return 0, None
    skipped = Skipped()
    limit = _most(args.max_context_bytes, MAX_CONTEXT_BYTES, model)
    files = context_files(root, skipped, target=target, text=prefix, max_bytes=limit or None)
    cache = ContextCache(model, tokenizer)
    for file in context_texts(files, skipped):
        cache.add(*file)
    total = sum(file.n_bytes for file in files)
    found = cache.load()
    known = " (read before)" if found is not None else ""
    print(
        f"rmat: {root}: {len(files)} files, {human_bytes(total)}{known}; left out {skipped}"
        + ("; --max-context-bytes 0: all" if OVER_LIMIT in skipped.to_dict() else ""),
        file=sys.stderr,
    )
    if found is None:
        with reading("reading the context", total) as advance:
            logits, state = read_context(model, tokenizer, context_texts(files, Skipped()), advance=advance)
        assert logits is not None
        cache.save(state, logits)
    else:
        state, logits = found
    if args.state_out is not None:
        save_state(args.state_out, state, logits)
    return len(files), state


class ContextCache:
    """The state behind a context in the user's cache folder, under a name made of the model and all that was
    read.

    Without such a folder nothing is found and nothing kept.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        from rmat.storage import weights_fingerprint

        self._model = model
        self._digest = hashlib.sha256(f"{weights_fingerprint(model)} {tokenizer.fingerprint}".encode())

    def add(self, name: str, text: str) -> None:
        """Count in the next file of the context."""
        self._digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(text.encode()).digest())

    def load(self) -> tuple[StreamState, Tensor] | None:
        """What was kept behind these files, on the model's device."""
        from rmat.storage import load_state

        with contextlib.suppress(OSError, ValueError, RuntimeError):
            path = self._path()
            state, logits = load_state(path, self._model.config)
            os.utime(path)
            if logits is not None:
                return state.to(next(self._model.parameters()).device), logits
        return None

    def save(self, state: StreamState, logits: Tensor) -> None:
        """Keep it, and delete what was not used for long."""
        from rmat.storage import save_state

        with contextlib.suppress(OSError, ValueError, RuntimeError):
            path = self._path()
            path.parent.mkdir(parents=True, exist_ok=True)
            save_state(path, state, logits)
            kept = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
            for old in kept[:-CACHED_CONTEXTS]:
                old.unlink(missing_ok=True)

    def _path(self) -> Path:
        from rmat.machine import cache_folder

        return cache_folder() / "contexts" / f"{self._digest.hexdigest()[:32]}.safetensors"
