"""Stopping a run politely: finish the step, save, leave."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Whether someone asked the run to stop."""

    requested: bool = False


@contextmanager
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
