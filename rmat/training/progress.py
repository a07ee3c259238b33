"""What a person sees while a model trains, and how the training is told to stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from rmat.data.progress import StandardError


class Reporter(Protocol):
    """Where a run tells how it goes."""

    def say(self, message: str) -> None:
        """A sentence for the person who trains."""

    def started(self, step: int, steps: int) -> None:
        """The loop begins at update `step` of `steps`."""

    def stepped(self, step: int) -> None:
        """Update `step` is done."""

    def logged(self, row: dict[str, Any]) -> None:
        """A row was added to the metrics file."""

    def stopped(self) -> None:
        """The loop is over, for whatever reason."""


class Silent:
    """A reporter that shows nothing."""

    def say(self, message: str) -> None:
        """Not shown."""

    def started(self, step: int, steps: int) -> None:
        """Not shown."""

    def stepped(self, step: int) -> None:
        """Not shown."""

    def logged(self, row: dict[str, Any]) -> None:
        """Not shown."""

    def stopped(self) -> None:
        """Not shown."""


class Terminal:
    """A reporter on standard error: a live bar on a terminal, one line a row elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=StandardError(), highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def say(self, message: str) -> None:
        """Print `message` as it is, above the bar."""
        self._console.print(message, markup=False, highlight=False)

    def started(self, step: int, steps: int) -> None:
        """Show the bar, on a terminal."""
        if self._console.is_terminal:
            columns = (
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("train", total=steps, completed=step, text="")
            self._bar.start()

    def stepped(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)

    def logged(self, row: dict[str, Any]) -> None:
        """Show training rows in the bar or as a line, others as a line."""
        if row["kind"] == "train" and self._bar is not None and self._task is not None:
            self._bar.update(self._task, text=describe_row(row))
        else:
            self.say(describe_row(row))

    def stopped(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe_row(row: dict[str, Any]) -> str:
    """One line of text for a row of the metrics file."""
    parts = [f"step {row['step']:,}"]
    if row["kind"] == "skipped":
        return f"{parts[0]}  skipped: {row['reason']}"
    if row["kind"] == "eval":
        parts += [
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if isinstance(value, float)
        ]
        return "  ".join([parts[0] + "  valid", *parts[1:]])
    parts.append(f"{row['tokens']:,} tokens")
    if row["loss"] is not None:
        bits = row["bits_per_byte"]
        parts.append(f"loss {row['loss']:.4f}" + ("" if bits is None else f"  {bits:.3f} bits/byte"))
    parts.append(f"{row['tokens_per_second']:,.0f} tokens/s  {duration(row['seconds_left'])} left")
    if row["openness"]:
        parts.append("written " + " ".join(f"{share:.0%}" for share in row["openness"]))
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class StopRequest:
    """Whether someone asked the run to stop."""

    requested: bool = False


@contextlib.contextmanager
def stop_on_signal(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Inside, the first SIGINT or SIGTERM sets `requested`; a second one acts as it would have without us.

    Signals can only be caught in the main thread; in another one nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.requested = True
        put_back()
        say(f"{signal.Signals(number).name}: finishing this step and saving; once more stops at once")

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        put_back()
