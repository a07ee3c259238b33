"""Named sessions in a folder: what was read once is there in the next process, and goes on bit for bit.

FOLDER/NAME.safetensors     one session, always a whole file
FOLDER/.NAME.*.partial      a save that is under way, or was when its process was killed
FOLDER/locks/name.lock      there while a process uses the session
FOLDER/quarantine/          damaged files whose names were begun anew, numbered
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor

from rmat.data.documents import Turn
from rmat.machine import expand, sessions_folder
from rmat.model import LanguageModel
from rmat.sessions import file as session_file
from rmat.sessions.file import KEPT_TURNS, Damage, Header, ReadDocument, Session
from rmat.sessions.lock import SessionBusy as SessionBusy
from rmat.sessions.lock import hold, take
from rmat.storage import digest, flush, model_name, remove, weights_fingerprint

T = TypeVar("T")

NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What a session may be called, as a regular expression."""

_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""What Windows takes for a device, whatever follows the first dot."""

_SUFFIX = ".safetensors"
_PARTIAL = re.compile(r"\.(.+?)(\.safetensors\.[0-9a-f]+)?\.partial")


class UnknownSession(ValueError):
    """There is no session of that name."""


class SessionExists(ValueError):
    """The name is taken."""


class DamagedSession(ValueError):
    """The file is no intact session; it stays until it is deleted or its name begun anew."""


class OtherModel(ValueError):
    """The session was read by another model."""


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
    model_name: str | None
    """What that model was called when the session was saved."""
    documents: tuple[ReadDocument, ...]
    reading: int
    """See `Session`."""


class SessionStore:
    """Sessions in one folder, for any number of processes and threads at once.

    Names are 1 to 64 letters, digits, '.', '_' and '-'. Every method raises ValueError for others,
    `UnknownSession` for a name that is not there, and `OSError` where the folder cannot be read or written.
    What changes a session waits for whoever holds its lock, and raises `SessionBusy` in the end.

    Args:
        folder: made when first needed, for its owner only; None takes `rmat.machine.sessions_folder()`.
        max_age_days, max_count, max_bytes: after each save, sessions unused for so long, and the longest
            unused of more or larger ones, are deleted; never the one just saved or one whose lock is held.
            None: no limit.
        wait: how many seconds to wait for a lock.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        max_age_days: float | None = None,
        max_count: int | None = None,
        max_bytes: int | None = None,
        wait: float = 60,
    ) -> None:
        limits = {"max_age_days": max_age_days, "max_count": max_count, "max_bytes": max_bytes}
        for name, limit in limits.items():
            if limit is not None and not 0 <= limit < math.inf:
                raise ValueError(
                    f"{name} is {limit!r}: give a number, 0 or more, or leave it out for no limit"
                )
        self.folder = expand(folder or sessions_folder()).resolve()
        """Where the sessions are."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: give a folder to keep sessions in")
        self._locks, self._quarantine = self.folder / "locks", self.folder / "quarantine"
        self._wait = wait
        self._max_age_days, self._max_count, self._max_bytes = max_age_days, max_count, max_bytes
        self._fingerprints: WeakKeyDictionary[LanguageModel, tuple[object, str]] = WeakKeyDictionary()

    def save(self, name: str, session: Session, model: LanguageModel) -> SessionInfo:
        """Keep `session`, which `model` read, under `name`, in place of what was there; then delete what is
        too much.

        When this returns the session is on the disk. Interrupted at any moment, the earlier one is there,
        whole. A damaged file whose name is begun anew is moved to quarantine. Raises ValueError for a session
        of another configuration or of several rows, and `SessionExists` if there is a session whose name
        differs by case only.
        """
        config = model.config
        if session.state.fingerprint != config.fingerprint():
            raise ValueError("the session's state belongs to a model with another configuration")
        if session.state.batch_size != 1 or session.next_logits.shape != (config.vocab_size,):
            raise ValueError(
                f"the session has {session.state.batch_size} rows and logits of shape "
                f"{tuple(session.next_logits.shape)}: give one row and ({config.vocab_size},) logits"
            )
        tensors = session_file.pack(session)
        with self.lock(name):
            self._refuse_taken(name, besides=name)
            earlier = None
            try:
                # What a session goes on from was checked when it was loaded.
                whole = session.created is None
                earlier = self._read(name, _checked_header if whole else session_file.read_header).created
            except UnknownSession:
                pass
            except DamagedSession:
                self._put_aside(name)
            created = session.created if earlier is None or session.created is not None else earlier
            header = Header(
                model=self._fingerprint(model),
                tokens_read=session.tokens_read,
                turns=min(len(session.turns), KEPT_TURNS),
                created=time.time() if created is None else created,
                sha256=digest(tensors),
                model_name=model_name(model),
                documents=session.documents,
                reading=session.reading,
            )
            info = self._put(name, header, tensors)
        self._expire(keep=name)
        return info

    def load(self, name: str, model: LanguageModel) -> Session:
        """The session, on the CPU, for the model that read it.

        Raises `OtherModel` for another model's session, and `DamagedSession` for a file that is none.
        """
        expected = self._fingerprint(model)

        def read(path: Path) -> Session:
            header = session_file.read_header(path)
            if header.model != expected:
                raise OtherModel(
                    f"session {name!r} was read by the model {header.model_name or 'of another name'} "
                    f"(fingerprint {header.model}), this model has {expected}: go on with the model that "
                    "read "
                    "it, or begin another session"
                )
            used = path.stat().st_mtime
            return session_file.unpack(*session_file.read(path), model.config, used)

        session = self._read(name, read)
        self._touch(name)
        return session

    def find(self, name: str, model: LanguageModel) -> Session | None:
        """The session as `load` gives it, or None where there is none and one can be begun under this name.

        Raises `SessionExists` if there is a session whose name differs by case only, and errors as in `load`.
        """
        if self.exists(name):
            return self.load(name, model)
        self._refuse_taken(name)
        return None

    def require_free(self, name: str) -> None:
        """Raise `SessionExists` unless a session can be begun under `name`: there is none, or a damaged
        one."""
        self._refuse_taken(name, besides=name)
        with contextlib.suppress(UnknownSession, DamagedSession):
            self._read(name, _checked_header)
            self._refuse_taken(name)

    def fork(self, name: str, new_name: str) -> SessionInfo:
        """Keep what is in `name` under `new_name` too; of a session in use, its last save.

        Raises `SessionExists`, and errors as in `load`.
        """
        with self.lock(new_name):
            self._refuse_taken(new_name)
            header, tensors = self._read(name, session_file.read)
            self._touch(name)
            info = self._put(new_name, dataclasses.replace(header, created=time.time()), tensors)
        self._expire(keep=new_name)
        return info

    def rename(self, old: str, new: str) -> SessionInfo:
        """Call the session `old` `new`. Raises `SessionExists`, and errors as in `info`."""
        # Always in the same order, so that of two processes none holds what the other waits for.
        first, second = sorted((old, new), key=self._lock_file)
        with self.lock(first), self.lock(second):
            self.info(old)
            self._refuse_taken(new, besides=old)
            self._file(old).rename(self._file(new))
            flush(self.folder)
            return self.info(new)

    def delete(self, name: str) -> None:
        """Delete the session, damaged or not; what is in quarantine stays."""
        with self.lock(name):
            self._remove(name)

    def list(self) -> Sequence[SessionInfo]:
        """All sessions, the last used first, without those that are damaged or of another version."""
        found = []
        for name in self._names():
            with contextlib.suppress(Damage, ValueError, FileNotFoundError):
                found.append(self._info(name, session_file.read_header(self._file(name))))
        return sorted(found, key=lambda info: (-info.used, info.name))

    @property
    def damaged(self) -> Sequence[str]:
        """Names of the sessions whose files do not begin as they should; of others it shows when they are
        loaded."""
        found = []
        for name in sorted(self._names()):
            try:
                with contextlib.suppress(ValueError, FileNotFoundError):
                    session_file.read_header(self._file(name))
            except Damage:
                found.append(name)
        return found

    @property
    def quarantined(self) -> Sequence[Path]:
        """Damaged files that were moved away; they stay until somebody deletes them."""
        return sorted(self._quarantine.glob("*"))

    def info(self, name: str) -> SessionInfo:
        """What is known of the session; its tensors are not looked at. Errors as in `load`, for any model."""
        return self._read(name, lambda path: self._info(name, session_file.read_header(path)))

    def turns(self, name: str) -> tuple[Turn, ...]:
        """(role, text) of the turns kept in the session, which needs no model. Errors as in `load`, for any
        model."""
        return self._read(name, lambda path: session_file.unpack_turns(session_file.read(path)[1]["turns"]))

    def exists(self, name: str) -> bool:
        """Whether there is a session, damaged or not, of exactly this name."""
        return check_name(name) in self._names()

    def expire(self, *, dry_run: bool = False) -> Sequence[str]:
        """Apply the limits now, and remove what killed saves left; the names of the deleted sessions. A dry
        run says which these would be, and deletes nothing."""
        return self._expire(keep=None, dry_run=dry_run)

    def lock(self, name: str, timeout: float | None = None) -> AbstractContextManager[None]:
        """Keep other processes and threads from changing the session: hold it from load to save.

        Within it, methods of this class called by the same flow (or by its `asyncio.to_thread`) do not wait.
        The session need not exist. The operating system frees the lock of a killed process. Entering raises
        `SessionBusy` after `timeout` seconds, or the store's `wait`.
        """
        path = self._lock_file(name)
        _make(self._locks)
        return hold(path, name, self._wait if timeout is None else timeout)

    def _expire(self, keep: str | None, dry_run: bool = False) -> Sequence[str]:
        if not dry_run:
            self._sweep()
        files, deleted = self._files(), []
        n_files, nbytes, now = len(files), sum(file.nbytes for file in files), time.time()
        for file in files:
            old = self._max_age_days is not None and now - file.used > self._max_age_days * 86400
            many = self._max_count is not None and n_files > self._max_count
            large = self._max_bytes is not None and nbytes > self._max_bytes
            if (old or many or large) and file.name != keep and self._remove_unused(file, dry_run):
                deleted.append(file.name)
                n_files, nbytes = n_files - 1, nbytes - file.nbytes
        return deleted

    def _names(self) -> Sequence[str]:
        """Names of the session files, damaged or not; [] where there is no folder."""
        if not self.folder.is_dir():
            return []
        with os.scandir(self.folder) as entries:
            names = [
                entry.name.removesuffix(_SUFFIX)
                for entry in entries
                if entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False)
            ]
        return [name for name in names if is_name(name)]

    def _files(self) -> Sequence[SessionFile]:
        """All session files, damaged or not, the longest unused first. None is opened."""
        found = []
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):
                stat = self._file(name).stat()
                found.append(SessionFile(name=name, used=stat.st_mtime, nbytes=stat.st_size))
        return sorted(found, key=lambda file: (file.used, file.name))

    def _info(self, name: str, header: Header) -> SessionInfo:
        """What the file's header and the file system say. Raises FileNotFoundError."""
        stat = self._file(name).stat()
        said = {field: value for field, value in vars(header).items() if field != "sha256"}
        return SessionInfo(name=name, used=stat.st_mtime, nbytes=stat.st_size, **said)

    def _read(self, name: str, read: Callable[[Path], T]) -> T:
        """What `read` makes of the session's file. Raises `DamagedSession` where it raises `Damage`,
        `UnknownSession` where there is no file."""
        path = self._file(name)
        # By its exact name, also where the file system does not care for case.
        if name not in self._names():
            raise self._unknown(name)
        try:
            return read(path)
        except Damage as damage:
            raise DamagedSession(
                f"session {name!r} is damaged, {damage}: delete it, or begin it anew, which puts its file "
                "aside"
            ) from None
        except FileNotFoundError:
            raise self._unknown(name) from None

    def _unknown(self, name: str) -> UnknownSession:
        near = difflib.get_close_matches(name, self._names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`rmat sessions list` shows which there are"
        # Without the folder: a server's clients read this too.
        return UnknownSession(f"there is no session {name!r}: {hint}")

    def _put(self, name: str, header: Header, tensors: dict[str, Tensor]) -> SessionInfo:
        session_file.write(self._file(name), header, tensors)
        return self._info(name, header)

    def _remove(self, name: str) -> None:
        """Delete the file and what a killed save of it left. The caller holds the lock. Raises
        `UnknownSession`."""
        if name not in self._names():
            raise self._unknown(name)
        self._file(name).unlink()
        self._remove_partial(name)
        flush(self.folder)

    def _remove_unused(self, seen: SessionFile, dry_run: bool) -> bool:
        """Delete a session unless it is in use now, or was used after it was `seen`; whether it was
        deleted."""
        with contextlib.suppress(SessionBusy, FileNotFoundError, UnknownSession), self._take(seen.name):
            if self._file(seen.name).stat().st_mtime == seen.used:
                if not dry_run:
                    self._remove(seen.name)
                return True
        return False

    def _sweep(self) -> None:
        """Remove what killed processes left; where a lock is held, a save may be under way."""
        names = {name for name, _ in self._partial()} | {path.stem for path in self._locks.glob("*.lock")}
        for name in filter(is_name, names):
            with contextlib.suppress(SessionBusy), self._take(name):
                self._remove_partial(name)

    def _remove_partial(self, name: str) -> None:
        """Remove what killed saves of the session left. The caller holds the lock."""
        for of, path in self._partial():
            if of == name:
                remove(path)

    def _partial(self) -> Iterator[tuple[str, Path]]:
        """Names and files or folders of saves that are not over."""
        for path in self.folder.glob(".*.partial"):
            if found := _PARTIAL.fullmatch(path.name):
                yield found[1], path

    def _touch(self, name: str) -> None:
        """Note that the session was used. Where the folder cannot be written, nothing expires either."""
        now = time.time()
        with contextlib.suppress(OSError):
            os.utime(self._file(name), (now, now))

    def _refuse_taken(self, name: str, besides: str | None = None) -> None:
        """Raise `SessionExists` if there is a session of this name, or of one that differs by case only,
        which some file systems take for the same; or where something else than a file has its place.
        `besides` is a name that may be there."""
        for other in self._names():
            if other != besides and other.lower() == name.lower():
                raise SessionExists(
                    f"there is a session {other!r} already: take another name, or delete that one first"
                )
        path = self._file(name)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise SessionExists(
                f"{path.name} in the folder of sessions is no file: take another name, or move it away"
            )

    def _take(self, name: str) -> AbstractContextManager[None]:
        """The lock, if nobody at all holds it now."""
        _make(self._locks)
        return take(self._lock_file(name), name, 0)

    def _put_aside(self, name: str) -> None:
        """Move the file to quarantine. The caller holds the lock."""
        _make(self._quarantine)
        free = (self._quarantine / f"{name}.{number}{_SUFFIX}" for number in count(1))
        self._file(name).rename(next(target for target in free if not target.exists()))
        flush(self.folder)

    def _file(self, name: str) -> Path:
        return self.folder / f"{check_name(name)}{_SUFFIX}"

    def _lock_file(self, name: str) -> Path:
        # Names that differ by case have one lock, so that only one of them can come to be.
        return self._locks / f"{check_name(name).lower()}.lock"

    def _fingerprint(self, model: LanguageModel) -> str:
        """The model's fingerprint, computed anew only when a weight has been replaced or changed in place."""
        tensors = model.state_dict(keep_vars=True).values()
        stamp = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        known = self._fingerprints.get(model)
        if known is None or known[0] != stamp:
            known = self._fingerprints[model] = (stamp, weights_fingerprint(model))
        return known[1]


def is_name(name: str) -> bool:
    """Whether a session can be called so."""
    return re.fullmatch(NAME_PATTERN, name) is not None and _DEVICES.fullmatch(name) is None


def check_name(name: str) -> str:
    """`name` if a session can be called so, else ValueError."""
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(
            f"no session can be called {name!r}: give 1 to 64 letters (a to z), digits, '.', '_' or '-', the "
            "first a letter or digit"
        )
    if not is_name(name):
        raise ValueError(
            f"no session can be called {name!r}, which is a device on Windows: take another name"
        )
    return name


def _checked_header(path: Path) -> Header:
    """The header of a file whose tensors are those that were saved."""
    return session_file.read(path)[0]


def _make(folder: Path) -> None:
    """Make a folder and the one above it, for their owner only; those that exist stay as they are."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
