"""/v1/sessions: what a model has read, kept under names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path
from fastapi import Request as HttpRequest

from rmat.engine.request import Request
from rmat.generation.sampling import SamplingConfig
from rmat.serving.answers import Answers, GoingOn, unless_gone
from rmat.serving.bodies import StrictRoute
from rmat.serving.errors import ApiError
from rmat.serving.held_session import HeldSession, with_store
from rmat.serving.memory_view import memory_view
from rmat.serving.replies import (
    ERRORS,
    Deleted,
    HistoryTurn,
    Memory,
    SessionDetail,
    SessionEntry,
    SessionList,
)
from rmat.serving.schemas import NAME_PATTERN, NameBody, ReadBody
from rmat.serving.service import Service, service_of
from rmat.sessions.store import SessionInfo

T = TypeVar("T")

Name = Annotated[str, Path(pattern=NAME_PATTERN)]

router = APIRouter(prefix="/v1/sessions", route_class=StrictRoute, responses=ERRORS)


@router.get("")
async def list_sessions(request: HttpRequest) -> SessionList:
    """The sessions, last used first."""
    store = service_of(request).store(request)
    return SessionList(data=[_entry(info) for info in await with_store(store.list)])


@router.post("", status_code=201)
async def create(body: NameBody, request: HttpRequest) -> SessionEntry:
    """Begin a session in which nothing has been read."""
    service = service_of(request)
    held = await service.hold(request, body.name)
    if held.session is not None:
        held.release()
        raise ApiError(409, f"there is a session {body.name!r} already", param="name", code="session_exists")
    return await _read(service, request, held, [service.tokenizer.special_id("document")])


@router.get("/{name}")
async def show(name: Name, request: HttpRequest) -> SessionDetail:
    """A session and its last turns."""
    store = service_of(request).store(request)
    info, turns = await with_store(lambda: (store.info(name), store.turns(name)))
    history = [HistoryTurn(role=role, content=text) for role, text in turns]
    return SessionDetail(**_entry(info).model_dump(), history=history)


@router.delete("/{name}")
async def delete(name: Name, request: HttpRequest) -> Deleted:
    """Remove a session for good."""
    store = service_of(request).store(request)
    await _with_locks(request, (name,), lambda: store.delete(name))
    return Deleted(name=name)


@router.post("/{name}/fork", status_code=201)
async def fork(name: Name, body: NameBody, request: HttpRequest) -> SessionEntry:
    """Keep what is in a session under another name too; both then go on apart."""
    store = service_of(request).store(request)
    return _entry(await _with_locks(request, (name, body.name), lambda: store.fork(name, body.name)))


@router.post("/{name}/rename")
async def rename(name: Name, body: NameBody, request: HttpRequest) -> SessionEntry:
    """Give a session another name."""
    store = service_of(request).store(request)
    return _entry(await _with_locks(request, (name, body.name), lambda: store.rename(name, body.name)))


@router.post("/{name}/read")
async def read(name: Name, body: ReadBody, request: HttpRequest) -> SessionEntry:
    """Read a text on from where the session is. Its length is bounded by the limits only; the session's size does not
    change."""
    service = service_of(request)
    held = await service.hold(request, name)
    try:
        if held.session is None:
            raise ApiError(404, f"there is no session {name!r}", param="session", code="unknown_session")
        ids = await service.encode(lambda: service.tokenizer.encode(body.text))
    except BaseException:
        held.release()
        raise
    return await _read(service, request, held, ids)


@router.get("/{name}/memory")
async def memory(name: Name, request: HttpRequest) -> Memory:
    """The filled memory slots of each layer and the words that they come from."""
    service = service_of(request)
    store = service.store(request)

    def look() -> Memory:
        return memory_view(store.load(name, service.model), service.model.config, service.tokenizer)

    return await with_store(look)


async def _read(service: Service, request: HttpRequest, held: HeldSession, ids: list[int]) -> SessionEntry:
    """Have the engine read `ids` into the session, and save it."""
    session = held.session
    try:
        streams = service.submit(
            [
                Request(
                    ids=tuple(ids),
                    sampling=SamplingConfig(),
                    max_new_tokens=0,
                    state=None if session is None else session.state,
                    next_logits=None if session is None else session.next_logits,
                    deadline=request.state.deadline,
                    cache_scope=request.state.owner,
                )
            ]
        )
    except BaseException:
        held.release()
        raise
    turn_end = service.tokenizer.special_id("turn_end")
    answers = Answers(streams, 1, GoingOn(held=held, ids=ids, turns=None, turn_end=turn_end))

    async def finish() -> None:
        async for _ in answers.pieces():
            pass

    try:
        await unless_gone(request, finish())
    finally:
        answers.close()
    store = service.store(request)
    return _entry(await with_store(lambda: store.info(held.name)))


async def _with_locks(request: HttpRequest, names: tuple[str, ...], work: Callable[[], T]) -> T:
    """The result of `work`, while nobody else uses the sessions `names`."""
    service = service_of(request)
    store = service.store(request)

    def locked() -> T:
        with ExitStack() as locks:
            for name in sorted(set(names), key=str.lower):
                locks.enter_context(store.lock(name, timeout=service.limits.session_seconds))
            return work()

    return await with_store(locked)


def _entry(info: SessionInfo) -> SessionEntry:
    return SessionEntry(
        name=info.name,
        tokens_read=info.tokens_read,
        turns=info.turns,
        created=info.created,
        used=info.used,
        bytes=info.nbytes,
    )
