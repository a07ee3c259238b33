"""A folder of session files by their names: which there are, who uses one, how one comes and goes.

FOLDER/NAME.safetensors     one session, always a whole file
FOLDER/.NAME.partial        a save that is under way, or was when its process was killed
FOLDER/locks/name.lock      there while a process uses the session
FOLDER/quarantine/          damaged files, numbered
"""

from __future__ import annotations

import contextlib
import difflib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from rmat.sessions import file as session_file
from rmat.sessions.file import Damage, Header
from rmat.sessions.lock import SessionBusy, hold, take
from rmat.sessions.names import check_name, is_name
from rmat.storage import flush

_SUFFIX, _PARTIAL = ".safetensors", ".partial"

T = TypeVar("T")


class UnknownSession(ValueError):
    """There is no session of that name."""


class SessionExists(ValueError):
    """The name is taken."""


class DamagedSession(ValueError):
    """The file is no intact session; it has been moved away."""


@dataclass(frozen=True, kw_only=True)
class SessionFile:
    """What the file system knows of a session."""

    name: str
    used: float
    """Unix time in seconds of the last save, load or fork."""
    nbytes: int
    """Size of the file."""


@dataclass(frozen=True, kw_only=True)
class SessionInfo(SessionFile):
    """What is known of a session without loading it."""

    tokens_read: int
    turns: int
    """Turns whose text is kept."""
    created: float
    """Unix time in seconds of the first save."""
    model: str
    """`weights_fingerprint` of the model that it belongs to."""


class SessionFolder:
    """Files by session names. Every method raises ValueError for a name that no session can have.

    Args:
        path: made when first needed, for its owner only.
        wait: how many seconds to wait for a lock.
    """

    def __init__(self, path: Path, wait: float) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file: give a folder to keep sessions in")
        self.path = path
        self.quarantine = path / "quarantine"
        self._locks = path / "locks"
        self._wait = wait

    def names(self) -> list[str]:
        """Names of the session files, damaged or not; [] where there is no folder."""
        if not self.path.is_dir():
            return []
        with os.scandir(self.path) as entries:
            names = [
                entry.name.removesuffix(_SUFFIX)
                for entry in entries
                if entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False)
            ]
        return [name for name in names if is_name(name)]

    def files(self) -> list[SessionFile]:
        """All session files, damaged or not, the longest unused first. None is opened."""
        found = []
        for name in self.names():
            with contextlib.suppress(FileNotFoundError):
                stat = self._file(name).stat()
                found.append(SessionFile(name=name, used=stat.st_mtime, nbytes=stat.st_size))
        return sorted(found, key=lambda file: (file.used, file.name))

    def info(self, name: str, header: Header) -> SessionInfo:
        """What the file's header and the file system say. Raises FileNotFoundError."""
        stat = self._file(name).stat()
        return SessionInfo(
            name=name,
            tokens_read=header.tokens_read,
            turns=header.turns,
            created=header.created,
            used=stat.st_mtime,
            nbytes=stat.st_size,
            model=header.model,
        )

    def infos(self) -> list[SessionInfo]:
        """All sessions whose header can be read."""
        found = []
        for name in self.names():
            with contextlib.suppress(Damage, ValueError, FileNotFoundError):
                found.append(self.info(name, session_file.read_header(self._file(name))))
        return found

    def read(self, name: str, read: Callable[[Path], T]) -> T:
        """What `read` makes of the session's file. Where it raises `Damage` the file is moved to quarantine and
        `DamagedSession` is raised; `UnknownSession` where there is none."""
        path = self._file(name)
        # By its exact name, also where the file system does not care for case.
        if name not in self.names():
            raise self.unknown(name)
        try:
            with contextlib.suppress(Damage):
                return read(path)
            with self.lock(name):
                # Again, with the lock: meanwhile another process may have put an intact file there.
                try:
                    return read(path)
                except Damage as damage:
                    raise DamagedSession(
                        f"session {name!r} is damaged, {damage}; its file has been moved to {self._move_away(path)}"
                    ) from None
        except FileNotFoundError:
            raise self.unknown(name) from None

    def unknown(self, name: str) -> UnknownSession:
        """The error for a name that is not there."""
        near = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`rmat sessions list` shows which there are"
        # Without the folder: a server's clients read this too.
        return UnknownSession(f"there is no session {name!r}: {hint}")

    def put(self, name: str, header: Header, tensors: dict[str, Tensor]) -> SessionInfo:
        """Put a file in its place at once, and only when it is whole on the disk. The caller holds the lock."""
        partial = self._partial(name)
        try:
            session_file.write(partial, header, tensors)
            os.replace(partial, self._file(name))
        finally:
            partial.unlink(missing_ok=True)
        flush(self.path)
        return self.info(name, header)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name. The caller holds both locks."""
        self._file(old).rename(self._file(new))
        flush(self.path)

    def remove(self, name: str) -> None:
        """Delete the file and what a killed save of it left. The caller holds the lock. Raises `UnknownSession`."""
        if name not in self.names():
            raise self.unknown(name)
        self._file(name).unlink()
        self._partial(name).unlink(missing_ok=True)
        flush(self.path)

    def remove_unused(self, seen: SessionFile) -> bool:
        """Delete a session unless it is in use now, or was used after it was `seen`; whether it was deleted."""
        with contextlib.suppress(SessionBusy, FileNotFoundError, UnknownSession), self._take(seen.name):
            if self._file(seen.name).stat().st_mtime == seen.used:
                self.remove(seen.name)
                return True
        return False

    def sweep(self) -> None:
        """Remove what killed processes left; where a lock is held, a save may be under way."""
        names = {path.name[1 : -len(_PARTIAL)] for path in self.path.glob(f".*{_PARTIAL}")}
        names |= {path.stem for path in self._locks.glob("*.lock")}
        for name in filter(is_name, names):
            with contextlib.suppress(SessionBusy), self._take(name):
                self._partial(name).unlink(missing_ok=True)

    def touch(self, name: str) -> None:
        """Note that the session was used. Where the folder cannot be written, nothing expires either."""
        now = time.time()
        with contextlib.suppress(OSError):
            os.utime(self._file(name), (now, now))

    def refuse_taken(self, name: str, besides: str | None = None) -> None:
        """Raise `SessionExists` if there is a session of this name, or of one that differs by case only, which some file
        systems take for the same. `besides` is a name that may be there."""
        for other in self.names():
            if other != besides and other.lower() == name.lower():
                raise SessionExists(
                    f"there is a session {other!r} already: take another name, or delete that one first"
                )

    def lock(self, name: str, timeout: float | None = None) -> AbstractContextManager[None]:
        """See `SessionStore.lock`."""
        _make(self._locks)
        return hold(self._lock(name), name, self._wait if timeout is None else timeout)

    def _take(self, name: str) -> AbstractContextManager[None]:
        """The lock, if nobody at all holds it now."""
        _make(self._locks)
        return take(self._lock(name), name, 0)

    @contextlib.contextmanager
    def both(self, one: str, other: str) -> Iterator[None]:
        """Two locks, always in the same order, so that two processes never wait for each other."""
        first, second = sorted((one, other), key=self._lock)
        with self.lock(first), self.lock(second):
            yield

    def _move_away(self, path: Path) -> Path:
        _make(self.quarantine)
        free = (self.quarantine / f"{path.stem}.{number}{_SUFFIX}" for number in count(1))
        target = next(target for target in free if not target.exists())
        path.rename(target)
        flush(self.path)
        return target

    def _file(self, name: str) -> Path:
        return self.path / f"{check_name(name)}{_SUFFIX}"

    def _partial(self, name: str) -> Path:
        return self.path / f".{check_name(name)}{_PARTIAL}"

    def _lock(self, name: str) -> Path:
        # Names that differ by case have one lock, so that only one of them can come to be.
        return self._locks / f"{check_name(name).lower()}.lock"


def _make(folder: Path) -> None:
    """Make a folder and the one above it, for their owner only; those that exist stay as they are."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
