"""How results are printed: tables for people, one line of JSON for programs, both on standard output."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rmat.generation.stream import Generation
    from rmat.model import LanguageModel

TELL_AFTER = 3.0
"""Seconds of reading after which the time left is told where no bar shows it; then after twice as many."""


def print_json(result: dict[str, Any]) -> None:
    """One object on one line; numbers that JSON lacks (infinite, not a number) become null."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "")
    print(json.dumps(_finite(result), ensure_ascii=not unicode), flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    """A table whose first column is text and whose others are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:  # where no line is too long: one line a row
        console.width = 10**6
    console.print(table)
    if caption:
        console.print(caption, markup=False)


def prepare_files(args: argparse.Namespace) -> None:
    """Find out before a long measurement whether its files can be written: ValueError or OSError if not."""
    if args.out is not None:
        from rmat.report.figures import require_matplotlib
        from rmat.storage import writable

        require_matplotlib()
        Path(args.out).mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "table.csv"):
            writable(Path(args.out) / name)


def write_files(args: argparse.Namespace, result: dict[str, Any], model: LanguageModel) -> None:
    """The files of a measurement, where `--out` asks for them; tells which on standard error. Of
    processes that share it the first writes them."""
    from rmat.machine import is_first_process

    if args.out is None or not is_first_process():
        return
    from rmat.report.results import write_result

    for path in write_result(Path(args.out), args.measurement, result, model, vars(args)):
        print(f"wrote {path}", file=sys.stderr)


@contextmanager
def reading(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far `total` bytes are read, on standard error: a bar on a terminal, elsewhere the time left,
    from some seconds on. Gives the function that is told of bytes."""
    from rmat.data.progress import Progress

    with Progress(True) as shown, shown.task(what, total) as bar:
        started, done, tell = time.perf_counter(), 0, TELL_AFTER

        def advance(n_bytes: int) -> None:
            nonlocal done, tell
            bar(n_bytes)
            done += n_bytes
            spent = time.perf_counter() - started
            if 0 < done < total and spent > tell and not sys.stderr.isatty():
                tell = 2 * spent
                shown.say(f"rmat: {what}: about {human_time(spent / done * (total - done))} to go")

        yield advance


def read_prompt(writing: Generation, n_bytes: int) -> None:
    """Read the prompt of `n_bytes`, showing how far it is."""
    with reading("reading the prompt", n_bytes) as bar:
        writing.read(lambda n_tokens: bar(n_tokens * n_bytes // writing.prompt_tokens))


def human_time(seconds: float) -> str:
    """A time in the unit that a person would name."""
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def with_interval(value: float, low: float | None, high: float | None, digits: int = 4) -> tuple[str, str]:
    """A number, and its 95 % interval where there is one."""
    interval = "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
    return f"{value:.{digits}f}", interval


def human_bytes(count: int) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.4g} {units[0]}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
