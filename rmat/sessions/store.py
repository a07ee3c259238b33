"""Named sessions in a folder: what was read once is there in the next process, and goes on bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from contextlib import AbstractContextManager
from pathlib import Path
from weakref import WeakKeyDictionary

from rmat.machine import expand, sessions_folder
from rmat.model import LanguageModel
from rmat.sessions import file as session_file
from rmat.sessions.file import KEPT_TURNS, TAIL_TOKENS, Header, Session
from rmat.sessions.folder import (
    DamagedSession,
    SessionExists,
    SessionFolder,
    SessionInfo,
    UnknownSession,
)
from rmat.sessions.lock import SessionBusy
from rmat.sessions.names import check_name
from rmat.storage import digest, weights_fingerprint

__all__ = [
    "KEPT_TURNS",
    "TAIL_TOKENS",
    "DamagedSession",
    "Session",
    "SessionBusy",
    "SessionExists",
    "SessionInfo",
    "SessionStore",
    "UnknownSession",
    "check_name",
]

Names = list[str]
Infos = list[SessionInfo]


class SessionStore:
    """Sessions in one folder, for any number of processes and threads at once.

    Names are 1 to 64 letters, digits, '.', '_' and '-'. Every method raises ValueError for others, `UnknownSession` for
    a name that is not there, and `OSError` where the folder cannot be read or written. What changes a session waits
    for whoever holds its lock, and raises `SessionBusy` in the end.

    Args:
        folder: made when first needed, for its owner only; None takes $RMAT_SESSIONS, or else `rmat/sessions` where
            this system keeps a user's data.
        max_age_days, max_count, max_bytes: after each save, sessions unused for so long, and the longest unused of
            more or larger ones, are deleted; never the one just saved or one whose lock is held. None: no limit.
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
        self._folder = SessionFolder(expand(folder or sessions_folder()).resolve(), wait)
        self._max_age_days, self._max_count, self._max_bytes = max_age_days, max_count, max_bytes
        self._fingerprints: WeakKeyDictionary[LanguageModel, tuple[object, str]] = WeakKeyDictionary()

    @property
    def folder(self) -> Path:
        """Where the sessions are."""
        return self._folder.path

    @property
    def quarantined(self) -> list[Path]:
        """Damaged files that were moved away; they stay until somebody deletes them."""
        return sorted(self._folder.quarantine.glob("*"))

    def save(self, name: str, session: Session, model: LanguageModel) -> SessionInfo:
        """Keep `session`, which `model` read, under `name`, in place of what was there; then delete what is too much.

        When this returns the session is on the disk. Interrupted at any moment, the earlier one is there, whole.
        Raises ValueError for a session of another configuration or of several rows, and `SessionExists` if there is a
        session whose name differs by case only.
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
            self._folder.refuse_taken(name, besides=name)
            earlier = None
            with contextlib.suppress(UnknownSession, DamagedSession):
                earlier = self.info(name).created
            created = earlier if session.created is None else session.created
            header = Header(
                model=self._fingerprint(model),
                tokens_read=session.tokens_read,
                turns=min(len(session.turns), KEPT_TURNS),
                created=time.time() if created is None else created,
                sha256=digest(tensors),
            )
            info = self._folder.put(name, header, tensors)
        self._expire(keep=name)
        return info

    def load(self, name: str, model: LanguageModel) -> Session:
        """The session, on the CPU, for the model that read it.

        Raises ValueError for another model's session, and `DamagedSession` after moving a damaged file to quarantine.
        """
        expected = self._fingerprint(model)

        def read(path: Path) -> Session:
            header = session_file.read_header(path)
            if header.model != expected:
                raise ValueError(
                    f"session {name!r} was read by the model with fingerprint {header.model}, this model has {expected}: "
                    "go on with the model that read it, or begin another session"
                )
            used = path.stat().st_mtime
            return session_file.unpack(*session_file.read(path), model.config, used)

        session = self._folder.read(name, read)
        self._folder.touch(name)
        return session

    def fork(self, name: str, new_name: str) -> SessionInfo:
        """Keep what is in `name` under `new_name` too; what is saved is whole, so a session in use can be forked.

        Raises `SessionExists`, and errors as in `load`.
        """
        with self.lock(new_name):
            header, tensors = self._folder.read(name, session_file.read)
            self._folder.refuse_taken(new_name)
            self._folder.touch(name)
            header = dataclasses.replace(header, created=time.time())
            info = self._folder.put(new_name, header, tensors)
        self._expire(keep=new_name)
        return info

    def rename(self, old: str, new: str) -> SessionInfo:
        """Call the session `old` `new`. Raises `SessionExists`, and errors as in `info`."""
        with self._folder.both(old, new):
            self.info(old)
            self._folder.refuse_taken(new, besides=old)
            self._folder.rename(old, new)
            return self.info(new)

    def delete(self, name: str) -> None:
        """Delete the session, damaged or not; what is in quarantine stays."""
        with self.lock(name):
            self._folder.remove(name)

    def list(self) -> Infos:
        """All sessions, the last used first, without those that are damaged or of another version."""
        return sorted(self._folder.infos(), key=lambda info: (-info.used, info.name))

    def info(self, name: str) -> SessionInfo:
        """What is known of the session; its tensors are not looked at. Errors as in `load`, for any model."""
        return self._folder.read(name, lambda path: self._folder.info(name, session_file.read_header(path)))

    def turns(self, name: str) -> tuple[tuple[str, str], ...]:
        """(role, text) of the turns kept in the session, which needs no model. Errors as in `load`, for any model."""
        return self._folder.read(
            name, lambda path: session_file.unpack_turns(session_file.read(path)[1]["turns"])
        )

    def exists(self, name: str) -> bool:
        """Whether there is a session, damaged or not, of exactly this name."""
        return check_name(name) in self._folder.names()

    def expire(self) -> Names:
        """Apply the limits now, and remove what killed saves left; the names of the deleted sessions."""
        return self._expire(keep=None)

    def lock(self, name: str, timeout: float | None = None) -> AbstractContextManager[None]:
        """Keep other processes and threads from changing the session: hold it from load to save.

        Within it, methods of this class called by the same flow (or by its `asyncio.to_thread`) do not wait. The session
        need not exist. The operating system frees the lock of a killed process. Entering raises `SessionBusy` after
        `timeout` seconds, or the store's `wait`.
        """
        return self._folder.lock(name, timeout)

    def _expire(self, keep: str | None) -> Names:
        self._folder.sweep()
        files, deleted = self._folder.files(), Names()
        count, nbytes, now = len(files), sum(file.nbytes for file in files), time.time()
        for file in files:
            old = self._max_age_days is not None and now - file.used > self._max_age_days * 86400
            many = self._max_count is not None and count > self._max_count
            large = self._max_bytes is not None and nbytes > self._max_bytes
            if (old or many or large) and file.name != keep and self._folder.remove_unused(file):
                deleted.append(file.name)
                count, nbytes = count - 1, nbytes - file.nbytes
        return deleted

    def _fingerprint(self, model: LanguageModel) -> str:
        """The model's fingerprint, computed anew only when a weight has been replaced or changed in place."""
        tensors = model.state_dict(keep_vars=True).values()
        stamp = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        known = self._fingerprints.get(model)
        if known is None or known[0] != stamp:
            known = self._fingerprints[model] = (stamp, weights_fingerprint(model))
        return known[1]
