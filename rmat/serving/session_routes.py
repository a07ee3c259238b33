"""/v1/sessions: what a model has read, kept under names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Path
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field

from rmat.serving.bodies import StrictRoute
from rmat.serving.errors import ApiError
from rmat.serving.held_session import with_store
from rmat.serving.memory_view import Memory, memory_view
from rmat.serving.openai_types import ERRORS, NAME_PATTERN, Body, SessionName, field_names
from rmat.serving.service import service_of
from rmat.serving.streaming import Encode, begin
from rmat.sessions.store import SessionInfo

T = TypeVar("T")

Name = Annotated[str, Path(pattern=NAME_PATTERN)]


class NameBody(Body):
    """A session's name."""

    name: SessionName


class ReadBody(Body):
    """Text for a session to read."""

    text: Annotated[str, Field(min_length=1)]


class SessionEntry(BaseModel):
    """A session; times are unix seconds."""

    name: str
    tokens_read: int
    turns: int
    created: float
    used: float
    bytes: int


class SessionList(BaseModel):
    """The sessions of the API key."""

    object: Literal["list"] = "list"
    data: list[SessionEntry]


class HistoryTurn(BaseModel):
    """A turn that was read or written."""

    role: str
    content: str


class SessionDetail(SessionEntry):
    """A session with its last turns."""

    history: list[HistoryTurn]


class Deleted(BaseModel):
    """A session that is gone."""

    name: str
    deleted: Literal[True] = True


FIELD_NAMES = field_names(NameBody, ReadBody)
"""Names that a path to a mistake may hold."""

router = APIRouter(prefix="/v1/sessions", route_class=StrictRoute, responses=ERRORS)


@router.get("")
async def list_sessions(request: HttpRequest) -> SessionList:
    """The sessions, last used first."""
    store = service_of(request).store(request)
    return SessionList(data=[_entry(info) for info in await with_store(store.list)])


@router.post("", status_code=201)
async def create(body: NameBody, request: HttpRequest) -> SessionEntry:
    """Begin a session in which nothing has been read."""
    document = service_of(request).tokenizer.special_id("document")

    def encode(begins: bool) -> list[list[int]]:
        if begins:
            return [[document]]
        raise ApiError(409, f"there is a session {body.name!r} already", param="name", code="session_exists")

    return await _read(request, body.name, encode)


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
    tokenizer = service_of(request).tokenizer

    def encode(begins: bool) -> list[list[int]]:
        if begins:
            raise ApiError(404, f"there is no session {name!r}", param="session", code="unknown_session")
        return [tokenizer.encode(body.text)]

    return await _read(request, name, encode)


@router.get("/{name}/memory")
async def memory(name: Name, request: HttpRequest) -> Memory:
    """The filled memory slots of each layer and the words that they come from."""
    service = service_of(request)
    store = service.store(request)

    def look() -> Memory:
        return memory_view(store.load(name, service.model), service.model.config, service.tokenizer)

    return await with_store(look)


async def _read(request: HttpRequest, name: str, encode: Encode) -> SessionEntry:
    """Have the engine read what `encode` gives into the session `name`, and save it."""
    service = service_of(request)
    answers = await begin(request, await service.hold(request, name), encode)
    await answers.collect(request)
    store = service.store(request)
    return _entry(await with_store(lambda: store.info(name)))


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
