"""/v1/sessions: what a model has read, kept under names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Path
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field

from rmat.data.documents import encode_lead, text_document
from rmat.data.template import Before
from rmat.serving.bodies import StrictRoute
from rmat.serving.errors import ApiError
from rmat.serving.held_session import HeldSession, with_store
from rmat.serving.memory_view import Memory, memory_view
from rmat.serving.openai_types import ERRORS, Body, SessionName, field_names
from rmat.serving.service import Service, service_of
from rmat.serving.streaming import Encode, begin
from rmat.sessions.file import ReadDocument, Session
from rmat.sessions.store import NAME_PATTERN, SessionInfo

T = TypeVar("T")

Name = Annotated[str, Path(pattern=f"^{NAME_PATTERN}$")]


class NameBody(Body):
    """A session's name."""

    name: SessionName


class ReadBody(Body):
    """Text for a session to read."""

    text: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None,
        description="what the text is called; texts of one name, read one after the other, are one document",
    )


class SessionDocument(BaseModel):
    """A document that a session has read, wholly or in part, in UTF-8 bytes of text."""

    name: str
    bytes: int
    bytes_read: int
    tokens: int


class SessionEntry(BaseModel):
    """A session; times are unix seconds. `usable` is whether this server's model can go on with it."""

    name: str
    tokens_read: int
    turns: int
    documents: list[SessionDocument]
    model: str | None
    usable: bool
    created: float
    used: float
    bytes: int


class SessionList(BaseModel):
    """The sessions of the API key, and the names of those whose files are damaged."""

    object: Literal["list"] = "list"
    data: list[SessionEntry]
    damaged: list[str]


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
    service = service_of(request)
    store = service.store(request)
    infos, damaged = await with_store(lambda: (store.list(), store.damaged))
    return SessionList(data=[_entry(service, info) for info in infos], damaged=list(damaged))


@router.post("", status_code=201)
async def create(body: NameBody, request: HttpRequest) -> SessionEntry:
    """Begin a session in which nothing has been read, also in the place of a damaged one."""
    service = service_of(request)
    held = await service.hold(request, body.name, anew=True)
    return await _read(request, held, lambda before: [[service.tokenizer.special_id("document")]])


@router.get("/{name}")
async def show(name: Name, request: HttpRequest) -> SessionDetail:
    """A session and its last turns."""
    service = service_of(request)
    store = service.store(request)
    info, turns = await with_store(lambda: (store.info(name), store.turns(name)))
    history = [HistoryTurn(role=role, content=text) for role, text in turns]
    return SessionDetail(**_entry(service, info).model_dump(), history=history)


@router.delete("/{name}")
async def delete(name: Name, request: HttpRequest) -> Deleted:
    """Remove a session for good."""
    store = service_of(request).store(request)
    await _with_locks(request, (name,), lambda: store.delete(name))
    return Deleted(name=name)


@router.post("/{name}/fork", status_code=201)
async def fork(name: Name, body: NameBody, request: HttpRequest) -> SessionEntry:
    """Keep what is in a session under another name too; both then go on apart. Of a session in use, its last
    save is taken."""
    service = service_of(request)
    store = service.store(request)
    return _entry(service, await _with_locks(request, (body.name,), lambda: store.fork(name, body.name)))


@router.post("/{name}/rename")
async def rename(name: Name, body: NameBody, request: HttpRequest) -> SessionEntry:
    """Give a session another name."""
    service = service_of(request)
    store = service.store(request)
    return _entry(
        service, await _with_locks(request, (name, body.name), lambda: store.rename(name, body.name))
    )


@router.post("/{name}/read")
async def read(name: Name, body: ReadBody, request: HttpRequest) -> SessionEntry:
    """Read a text on from where the session is. Its length is bounded by the limits only; the session's size
    does not change."""
    service = service_of(request)
    held = await service.hold(request, name)

    def encode(before: Before) -> list[list[int]]:
        if held.session is None:
            raise ApiError(404, f"there is no session {name!r}", param="session", code="unknown_session")
        ids = service.tokenizer.encode(body.text)
        if body.name is not None:
            held.documents = _documents(held.session, body.name, body.text, len(ids))
        return [[*encode_lead(service.tokenizer, before), *ids]]

    return await _read(request, held, encode)


@router.get("/{name}/memory")
async def memory(name: Name, request: HttpRequest) -> Memory:
    """The filled memory slots of each layer and the words that they come from."""
    service = service_of(request)
    store = service.store(request)

    def look() -> Memory:
        return memory_view(store.load(name, service.model), service.model.config, service.tokenizer)

    return await with_store(look)


async def _read(request: HttpRequest, held: HeldSession, encode: Encode) -> SessionEntry:
    """Have the engine read what `encode` gives into the session, and save it."""
    service = service_of(request)
    answers = await begin(request, held, encode)
    await answers.collect(request)
    store = service.store(request)
    return _entry(service, await with_store(lambda: store.info(held.name)))


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


def _documents(session: Session, name: str, text: str, n_tokens: int) -> list[ReadDocument]:
    """The session's documents once `text` is read; it is a part of the last one if that has the same name."""
    documents = list(session.settled_documents)
    part = replace(ReadDocument.unread(text_document(name, text)), tokens=n_tokens, complete=True)
    if documents and documents[-1].name == name:
        last = documents.pop()
        part = replace(part, bytes=last.bytes_read + part.bytes, tokens=last.tokens + n_tokens)
    return [*documents, replace(part, bytes_read=part.bytes)]


def _entry(service: Service, info: SessionInfo) -> SessionEntry:
    usable = info.model == service.fingerprint
    return SessionEntry(
        name=info.name,
        tokens_read=info.tokens_read,
        turns=info.turns,
        documents=[
            SessionDocument(name=each.name, bytes=each.bytes, bytes_read=each.bytes_read, tokens=each.tokens)
            for each in info.documents
        ],
        model=service.model_name if usable else info.model_name,
        usable=usable,
        created=info.created,
        used=info.used,
        bytes=info.nbytes,
    )
