"""One user of a session at a time, among processes and threads."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock, Timeout

# A context variable and not a thread's own: a task that hands its saving to a worker thread goes on holding
# its lock.
_HELD: ContextVar[MappingProxyType[Path, FileLock]] = ContextVar("held", default=MappingProxyType({}))
"""The locks that this flow of control holds, by their files."""


class SessionBusy(ValueError):
    """Another process or thread uses the session; the message says which process, where that is known."""


@contextlib.contextmanager
def hold(path: Path, name: str, timeout: float) -> Iterator[None]:
    """Hold the lock of session `name`, whose file is `path`, at once where this flow of control holds it
    already.

    The operating system frees the lock of a killed process. Raises `SessionBusy` after `timeout` seconds.
    """
    held = _HELD.get().get(path)
    if held is not None and held.is_locked:
        yield
    else:
        with take(path, name, timeout):
            yield


@contextlib.contextmanager
def take(path: Path, name: str, timeout: float) -> Iterator[None]:
    """As `hold`, but a lock that this flow holds already counts as taken."""
    # Its own object each time, not bound to a thread: whoever leaves the block frees what was taken on
    # entering.
    lock = FileLock(path, mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise SessionBusy(
            f"session {name!r} is in use by {_holder(path)}: wait until that is over, or fork its last save "
            f"with `rmat sessions fork {name} NEW-NAME`"
        ) from None
    with contextlib.suppress(OSError):
        path.write_text(_this_process(), encoding="utf-8")
    _HELD.set(MappingProxyType({**_HELD.get(), path: lock}))
    try:
        yield
    finally:
        _HELD.set(MappingProxyType({k: v for k, v in _HELD.get().items() if k != path}))
        # Removed while held: who waits finds that its file has no name any more, and begins anew with the
        # next one.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def _holder(path: Path) -> str:
    """Who wrote the lock file."""
    with contextlib.suppress(OSError, ValueError):
        if told := path.read_text(encoding="utf-8"):
            return told
    return "another process or request"


def _this_process() -> str:
    """Such as `process 4711 (rmat chat)`."""
    program = Path(sys.argv[0] if sys.argv else "")
    words = [program.parent.name if program.name == "__main__.py" else program.name, *sys.argv[1:2]]
    return f"process {os.getpid()} ({' '.join(word for word in words if word.isalpha())})"
