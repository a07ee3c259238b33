"""A session in the hands of one request."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from rmat.model import LanguageModel
from rmat.serving.errors import ApiError
from rmat.sessions.file import ReadDocument, Session
from rmat.sessions.store import (
    DamagedSession,
    OtherModel,
    SessionBusy,
    SessionExists,
    SessionStore,
    UnknownSession,
)

T = TypeVar("T")

NO_RETRY = {"x-should-retry": "false"}
"""For errors that stay; else OpenAI's clients repeat a request after any 409 and 507."""


class HeldSession:
    """A session whose lock is held by a thread of its own, so that waiting for it never stops the other
    requests.

    The thread does one thing after the other. `release` can therefore be called at any moment, even while the
    lock is still waited for or the session is being saved, and needs no waiting itself.
    """

    session: Session | None
    """What the store had under the name; None if nothing."""
    documents: Sequence[ReadDocument] | None
    """Those of the session to be saved, where a document is read; None where something else is."""

    def __init__(self, store: SessionStore, name: str, model: LanguageModel) -> None:
        self.name = name
        self.session, self.documents = None, None
        self._store = store
        self._model = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rmat-session")
        self._locks = ExitStack()
        self._released = False

    @staticmethod
    async def take(
        store: SessionStore, name: str, model: LanguageModel, seconds: float, *, anew: bool = False
    ) -> HeldSession:
        """Wait for the lock, at most `seconds`, and load the session if there is one, or have the name free
        for one that is begun `anew`. Raises ApiError."""
        held = HeldSession(store, name, model)
        try:
            await held._do(lambda: held._locks.enter_context(store.lock(name, timeout=seconds)))
            if anew:
                await held._do(lambda: store.require_free(name))
            else:
                held.session = await held._do(lambda: store.find(name, model))
        except BaseException:
            held.release()
            raise
        return held

    async def save(self, session: Session) -> None:
        """Keep `session` in the place of the old one."""
        await self._do(lambda: self._store.save(self.name, session, self._model))

    def release(self) -> None:
        """Let others have the session, once what its thread does is done."""
        if not self._released:
            self._released = True
            self._thread.submit(self._locks.close)
            self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _told, work)


async def with_store(work: Callable[[], T]) -> T:
    """The result of `work`, which asks a store for something, from a thread of its own: it may have to wait,
    and must not take the threads of others. Raises ApiError."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="rmat-session")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, _told, work)
    finally:
        thread.shutdown(wait=False)


def _told(work: Callable[[], T]) -> T:
    """The result of `work`, whose errors become answers."""
    try:
        return work()
    except UnknownSession as error:
        message = str(error).partition(":")[0]  # what follows is for the command line
        raise ApiError(404, message, param="session", code="unknown_session") from None
    except SessionExists as error:
        raise ApiError(409, str(error), param="name", code="session_exists", headers=NO_RETRY) from None
    except SessionBusy:
        message = (
            "another request uses this session: wait for its answer, or fork the session as it was saved last"
        )
        raise ApiError(409, message, param="session", code="session_busy", retry_after=1) from None
    except DamagedSession:
        message = "the session's file is damaged: delete the session, or create one of its name anew"
        raise ApiError(410, message, param="session", code="session_damaged") from None
    except ValueError as error:
        code = "other_model" if isinstance(error, OtherModel) else None
        raise ApiError(400, str(error), param="session", code=code) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = "the server's disk is full: nothing was saved, the session is as it was before"
        raise ApiError(507, message, param="session", code="disk_full", headers=NO_RETRY) from None
