"""Progress of reading and tokenising on standard error."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars


class StandardError(io.StringIO):
    """Standard error for what may be lost: where it is closed or nobody reads it any more, the work goes
    on."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = sys.stderr

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As that of the stream behind."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Pass `text` on, or lose it."""
        with suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Have what was written seen, where that can be."""
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person looks."""
        with suppress(ValueError, AttributeError):
            return self._stream.isatty()
        return False


class Progress(AbstractContextManager["Progress"]):
    """Bars in bytes with the time left; says nothing at all when `shown` is False."""

    def __init__(self, shown: bool) -> None:
        self._console = Console(file=StandardError(), quiet=not shown, soft_wrap=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not (shown and self._console.is_terminal),
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, markup=False, highlight=False)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A bar of `total` bytes (None: unknown); gives the function that counts bytes done."""
        task = self._bars.add_task(description, total=total)
        try:
            yield lambda n_bytes: self._bars.advance(task, n_bytes)
        finally:
            self._bars.remove_task(task)
