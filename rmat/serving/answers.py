"""Answers under way: pieces of the engine's streams brought to asyncio, and sent whole or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rmat.engine.request import Piece, Stream, TokenLogprob
from rmat.serving.errors import ApiError, error_body, internal_error, log
from rmat.serving.held_session import HeldSession
from rmat.sessions.file import session_after

T = TypeVar("T")

GRACE_SECONDS = 10.0
"""After its deadline, so much longer a client may take to read what was written."""

Turn = tuple[str, str]
"""(role, text)."""


class Form(Protocol):
    """How an API words its answers; `index` is the number of the choice."""

    def envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """A whole answer, or a chunk of one, around its choices."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice in the first chunk, if there is one before the text."""

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice in a chunk."""

    def ending(self, index: int, stream: Stream) -> dict[str, Any]:
        """The choice in its last chunk."""

    def whole(self, index: int, stream: Stream, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        """The whole choice."""


class Answers:
    """The answers to one HTTP request; `close` must follow.

    Args:
        streams: of the engine, in the order of the choices.
        n: choices of each prompt.
        going_on: the session that the only stream goes on in, if any.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        n: int,
        going_on: GoingOn | None = None,
    ) -> None:
        self.streams = streams
        self._n = n
        self._going_on = going_on

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece | None]]:
        """(choice, piece) as they come, None at a choice's end; then the session is saved. Raises ApiError."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(news.set)

        for stream in self.streams:
            stream.listener = wake
        text, running = "", dict(enumerate(self.streams))  # the text is needed only if it is one
        while running:
            news.clear()
            for index, stream in list(running.items()):
                with contextlib.suppress(TimeoutError):
                    while (piece := stream.get(timeout=0)) is not None:
                        text += piece.text
                        yield index, piece
                    _require_answer(stream)
                    del running[index]
                    yield index, None
            if running:
                await news.wait()
        if self._going_on is not None:
            await self._going_on.save(self.streams[0], text)

    def usage(self) -> dict[str, Any]:
        """What was read and written; a prompt counts once for all its answers."""
        prompts = self.streams[:: self._n]
        read = sum(stream.prompt_tokens for stream in prompts)
        written = sum(stream.completion_tokens for stream in self.streams)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": sum(stream.cached_tokens for stream in prompts)},
        }

    def close(self) -> None:
        """Free the rows of streams that still run, and the session. Needs no waiting."""
        for stream in self.streams:
            stream.cancel()
        if self._going_on is not None:
            self._going_on.held.release()


@dataclass(frozen=True, kw_only=True)
class GoingOn:
    """A session that an answer goes on in."""

    held: HeldSession
    ids: Sequence[int]
    """What was read before the answer."""
    turns: Sequence[Turn] | None
    """(role, text) of the turns in `ids`; None if it is no chat."""
    turn_end: int
    """The token."""

    async def save(self, stream: Stream, text: str) -> None:
        """Save the session after `stream`, which wrote `text`, and let others have it."""
        turns = () if self.turns is None else (*self.turns, ("assistant", text))
        assert stream.state is not None and stream.next_logits is not None
        ids = [*self.ids, *stream.tokens, *([self.turn_end] if stream.closed else [])]
        await self.held.save(session_after(self.held.session, stream.state, stream.next_logits, ids, turns))
        self.held.release()


async def send(
    request: HttpRequest, answers: Answers, form: Form, *, stream: bool, with_usage: bool
) -> Response:
    """The HTTP answer: whole, or as events while it is written. Closes the answers in any case."""
    if stream:
        events = _events(answers, form, request.state.request_id, with_usage)
        return _EventStream(events, answers, request.state.deadline + GRACE_SECONDS - time.monotonic())
    try:
        return await unless_gone(request, _whole(answers, form))
    finally:
        answers.close()


async def unless_gone(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "the client went away")
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


async def _whole(answers: Answers, form: Form) -> Response:
    texts = [""] * len(answers.streams)
    logprobs: list[list[TokenLogprob]] = [[] for _ in texts]
    async for index, piece in answers.pieces():
        if piece is not None:
            texts[index] += piece.text
            logprobs[index] += piece.logprobs or ()
    choices = [
        form.whole(index, stream, texts[index], logprobs[index])
        for index, stream in enumerate(answers.streams)
    ]
    return JSONResponse({**form.envelope(choices, chunk=False), "usage": answers.usage()})


async def _events(answers: Answers, form: Form, request_id: str, with_usage: bool) -> AsyncGenerator[str]:
    extra = {"usage": None} if with_usage else {}

    def chunk(*choices: dict[str, Any], **more: Any) -> str:
        return _event({**form.envelope(list(choices), chunk=True), **extra, **more})

    try:
        for index in range(len(answers.streams)):
            if (opening := form.opening(index)) is not None:
                yield chunk(opening)
        async for index, piece in answers.pieces():
            if piece is None:
                yield chunk(form.ending(index, answers.streams[index]))
            elif piece.text or piece.logprobs:
                yield chunk(form.part(index, piece))
        if with_usage:
            yield chunk(usage=answers.usage())
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error_body(error.status_code, error.detail, error.param, error.code))
    except Exception:
        log.exception("request %s failed", request_id)
        yield _event(error_body(500, internal_error(request_id).detail))


class _EventStream(StreamingResponse):
    """Server-sent events that leave nothing running behind, however their sending ended and even if it never began.

    A client that does not take what it is sent is cut off after `seconds`.
    """

    def __init__(self, events: AsyncGenerator[str], answers: Answers, seconds: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._events = events
        self._answers = answers
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As in the base class."""
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.warning("a client did not take its answer in %g seconds", self._seconds)
        finally:
            self._answers.close()
            await self._events.aclose()


def _require_answer(stream: Stream) -> None:
    """Raise ApiError where a stream ended without an answer."""
    if stream.finish == "error":
        raise stream.error or RuntimeError("the engine failed")
    if stream.state is None:
        told = {"timeout": "the request took longer than it may", "stopped": "the server is stopping"}
        raise ApiError(503, f"{told.get(stream.finish or '', 'the request was given up')}: try again later")


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
