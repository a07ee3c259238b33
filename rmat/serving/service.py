"""What all routes of a server share: the model, whose sessions are where, and how a request reaches the
engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request as HttpRequest

from rmat.data.tokenizer import Tokenizer
from rmat.engine.engine import Engine
from rmat.engine.request import Full, Request, Stopped, Stream
from rmat.model import LanguageModel
from rmat.serving.errors import ApiError
from rmat.serving.held_session import HeldSession
from rmat.serving.limits import Limits
from rmat.serving.openai_types import WritingBody
from rmat.sessions.store import SessionStore

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Service:
    """One model behind HTTP."""

    engine: Engine
    model: LanguageModel
    tokenizer: Tokenizer
    store_of: Callable[[str], SessionStore]
    """The store of the sessions of one owner."""
    limits: Limits
    model_name: str
    fingerprint: str
    """`weights_fingerprint` of the model; the same seed gives the same text as long as it stays."""
    started: int = field(default_factory=lambda: int(time.time()))
    """Unix time in seconds."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set once no new request is to be answered."""

    def store(self, request: HttpRequest) -> SessionStore:
        """The sessions of whoever asks."""
        return self.store_of(request.state.owner)

    async def hold(self, request: HttpRequest, name: str, *, anew: bool = False) -> HeldSession:
        """The session `name` of whoever asks, for this request alone; `anew`, one to begin. Raises
        ApiError."""
        seconds = self.limits.session_seconds
        return await HeldSession.take(self.store(request), name, self.model, seconds, anew=anew)

    async def encode(self, work: Callable[[], Sequence[Sequence[int]]]) -> list[tuple[int, ...]]:
        """Token ids of the prompts that `work` makes, in a thread and not too many. Raises ApiError."""
        prompts = await in_thread(lambda: [tuple(ids) for ids in work()])
        longest, most = max(map(len, prompts)), self.limits.max_prompt_tokens
        if longest > most:
            message = f"the prompt has {longest} tokens: at most {most} are read at once"
            raise ApiError(400, message, code="context_length_exceeded")
        return prompts

    async def submit(self, requests: Sequence[Request]) -> list[Stream]:
        """Hand all requests to the engine, or none. Raises ApiError."""

        def work() -> list[Stream]:
            streams: list[Stream] = []
            try:
                for request in requests:
                    streams.append(self.engine.submit(request))
            except Full:
                raise ApiError(
                    429, "too many requests wait already: try again later", retry_after=1
                ) from None
            except Stopped:
                raise stopping() from None
            finally:
                if len(streams) < len(requests):
                    for stream in streams:
                        stream.cancel()
            return streams

        return await in_thread(work)  # a long prompt is looked through

    def check(self, body: WritingBody, n_prompts: int) -> None:
        """Refuse a body that asks for another model or too much. Raises ApiError."""
        self.check_model(body.model)
        n = body.n or 1
        if n * n_prompts > self.limits.max_choices:
            raise ApiError(
                400, f"n is {n} for {n_prompts} prompts: at most {self.limits.max_choices} answers", param="n"
            )
        if body.session is not None and n * n_prompts > 1:
            raise ApiError(400, "a session goes on with one answer: leave n out, give one prompt", param="n")
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options is for stream: true only", param="stream_options")

    def check_model(self, name: str | None) -> None:
        """Refuse another model. Raises ApiError."""
        if name is not None and name != self.model_name:
            message = f"there is no model {name!r} here: the model is {self.model_name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def length(self, body: WritingBody, asked: int | None, default: int, param: str) -> int:
        """Tokens to write: `asked` for by the field `param`, or `default`. Raises ApiError."""
        most, least = self.limits.max_new_tokens, body.min_tokens or 0
        if asked is not None and asked > most:
            raise ApiError(
                400, f"{param} is {asked}: this server writes at most {most} in one answer", param=param
            )
        length = min(default, most) if asked is None else asked
        if least > length:
            message = f"min_tokens is {least}, but {param} is {length}: at most so many are written"
            raise ApiError(400, message, param="min_tokens")
        return length


async def in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, made in a thread. A ValueError becomes an ApiError (400)."""
    try:
        return await asyncio.to_thread(work)
    except ValueError as error:
        raise ApiError(400, str(error)) from None


def service_of(request: HttpRequest) -> Service:
    """The service of the app that got this request."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def stopping() -> ApiError:
    """What is told while the server stops."""
    return ApiError(503, "the server is stopping: try again later", retry_after=5)
