"""The way of a request that reads and writes, from top to bottom: its session is taken, its prompts are
encoded and handed to the engine, what the engine writes is sent whole or as server-sent events, the session
is saved and released.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rmat.data.documents import Turn
from rmat.data.template import Before
from rmat.data.tokenizer import Tokenizer
from rmat.engine.request import Piece, Request, Stream, TokenLogprob
from rmat.generation.grammar import GrammarError
from rmat.generation.reader import NotFiniteError
from rmat.generation.sampling import SamplingConfig
from rmat.serving.errors import ApiError, error_body, internal_error, log
from rmat.serving.held_session import HeldSession
from rmat.serving.openai_types import WritingBody
from rmat.serving.service import Service, service_of, stopping
from rmat.sessions.conversation import read_before
from rmat.sessions.file import session_after

GRACE_SECONDS = 10.0
"""After its deadline, so much longer a client may take to read what was written."""

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has not."""

Encode = Callable[[Before], Sequence[Sequence[int]]]
"""Makes the ids of the prompts; told what they follow. Raises ApiError or ValueError."""


async def respond(
    request: HttpRequest,
    body: WritingBody,
    form: Form,
    encode: Encode,
    *,
    turns: Sequence[Turn] | None = None,
    grammar: str | None = None,
    **settings: Any,
) -> Response:
    """The answer to a body of either API; `turns` and `settings` as in `begin`, `grammar` as in
    `WritingBody.sampling`. Raises ApiError."""
    service = service_of(request)
    samplings = [body.sampling(index, grammar) for index in range(body.n or 1)]
    held = None if body.session is None else await service.hold(request, body.session)
    answers = await begin(request, held, encode, samplings, turns=turns, stop=body.stops(), **settings)
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return _EventStream(answers, form, request, with_usage)
    texts, logprobs = await answers.collect(request)

    def whole() -> Response:
        choices = [
            form.whole(index, stream, texts[index], logprobs[index])
            for index, stream in enumerate(answers.streams)
        ]
        return JSONResponse({**form.envelope(choices, chunk=False), "usage": answers.usage()})

    return await asyncio.to_thread(whole)  # log-probabilities of long prompts take a while


async def begin(
    request: HttpRequest,
    held: HeldSession | None,
    encode: Encode,
    samplings: Sequence[SamplingConfig] = (SamplingConfig(),),
    *,
    turns: Sequence[Turn] | None = None,
    begun: str = "",
    max_new_tokens: int = 0,
    **settings: Any,
) -> Answers:
    """Have the engine read prompts and write. Whoever gets the answers collects or closes them.

    Args:
        request: says whose they are and until when.
        held: the session to go on in. It is released with the answers, and here if they cannot begin.
        encode: called in a thread.
        samplings: of the answers to each prompt.
        turns: those that are read, if it is a chat.
        begun: text at the prompt's end with which the answer's turn begins.
        max_new_tokens, settings: of the engine's requests.

    Raises ApiError.
    """
    service = service_of(request)
    session = None if held is None else held.session
    if session is not None:
        settings |= {"state": session.state, "next_logits": session.next_logits}
    try:
        prompts = await service.encode(lambda: encode(read_before(session, service.tokenizer)))
        if session is None and not all(prompts):
            raise ApiError(400, "the prompt is empty: give a text, or at least one token id", param="prompt")
        streams = await service.submit(
            [
                Request(
                    ids=ids,
                    sampling=sampling,
                    max_new_tokens=max_new_tokens,
                    deadline=request.state.deadline,
                    owner=request.state.owner,
                    **settings,
                )
                for ids in prompts
                for sampling in samplings
            ]
        )
    except BaseException:
        if held is not None:
            held.release()
        raise
    return Answers(streams, len(samplings), held, prompts[0], turns, begun)


@dataclass(frozen=True)
class Answers:
    """What is written for one HTTP request."""

    streams: Sequence[Stream]
    """Of the engine, in the order of the choices."""
    n: int
    """Choices of each prompt."""
    held: HeldSession | None
    """The session that the only stream goes on in, if any."""
    ids: Sequence[int]
    """The first prompt."""
    turns: Sequence[Turn] | None
    """(role, text) of the turns in `ids`; None if it is no chat."""
    begun: str
    """Text of `ids` with which the answer's turn begins."""

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece | None]]:
        """(choice, piece) as they come, None at a choice's end; then the session is saved. Raises
        ApiError."""
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
        if self.held is not None:
            await self._save(self.held, self.streams[0], text)

    async def _save(self, held: HeldSession, stream: Stream, text: str) -> None:
        """Keep the session after `stream`, which wrote `text`, and let others have it."""
        turns = () if self.turns is None else (*self.turns, ("assistant", self.begun + text))
        assert stream.state is not None and stream.next_logits is not None
        ids = [*self.ids, *stream.tokens, *stream.closed]
        before, state, logits = held.session, stream.state, stream.next_logits
        await held.save(session_after(before, state, logits, ids, turns, held.documents))
        held.release()

    async def collect(self, request: HttpRequest) -> tuple[list[str], list[list[TokenLogprob]]]:
        """Text and log-probabilities of each choice; given up when the client goes away. Closes. Raises
        ApiError."""
        texts = [""] * len(self.streams)
        logprobs: list[list[TokenLogprob]] = [[] for _ in texts]

        async def work() -> None:
            async for index, piece in self.pieces():
                if piece is not None:
                    texts[index] += piece.text
                    logprobs[index] += piece.logprobs or ()

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        working, waiting = asyncio.ensure_future(work()), asyncio.ensure_future(gone())
        try:
            await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ApiError(499, "the client went away")
            working.result()
            return texts, logprobs
        finally:
            working.cancel()
            waiting.cancel()
            await asyncio.gather(working, waiting, return_exceptions=True)
            self.close()

    def usage(self) -> dict[str, Any]:
        """What was read and written; a prompt counts once for all its answers."""
        prompts = self.streams[:: self.n]
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
        if self.held is not None:
            self.held.release()


class _EventStream(StreamingResponse):
    """Server-sent events that leave nothing running behind, however their sending ended and even if it never
    began.

    A client that does not take what it is sent is cut off `GRACE_SECONDS` after the request's deadline.
    """

    def __init__(self, answers: Answers, form: Form, request: HttpRequest, with_usage: bool) -> None:
        self._answers = answers
        self._events = _events(answers, form, request.state.request_id, with_usage)
        self._seconds = request.state.deadline + GRACE_SECONDS - time.monotonic()
        super().__init__(self._events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

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
            elif part := form.part(index, answers.streams[index], piece):
                yield chunk(part)
        if with_usage:
            yield chunk(usage=answers.usage())
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error_body(error.status_code, error.detail, error.param, error.code))
    except Exception:
        log.exception("request %s failed", request_id)
        yield _event(error_body(500, internal_error(request_id).detail))


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _require_answer(stream: Stream) -> None:
    """Raise ApiError where a stream ended without an answer."""
    if isinstance(stream.error, NotFiniteError):
        message = "the model's numbers are not finite: its weights or this session's state are damaged"
        raise ApiError(500, message, code="not_finite", headers={"x-should-retry": "false"})
    if isinstance(stream.error, GrammarError):
        raise ApiError(400, str(stream.error))
    if stream.finish == "error":
        raise stream.error or RuntimeError("the engine failed")
    if stream.state is None and stream.finish == "timeout":
        message = (
            f"the prompt of {stream.prompt_tokens} tokens was not read in the time that a request may take: "
            "send less, "
            "or read it in parts into a session"
        )
        raise ApiError(413, message, code="too_long")
    if stream.state is None:
        raise stopping()


class Form:
    """How an API words its answers; `index` is the number of the choice."""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    """What a whole answer is called, and a chunk of one."""
    prefix: ClassVar[str]
    """How ids begin."""

    def __init__(self, service: Service) -> None:
        self.tokenizer = service.tokenizer
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.model_name,
            "system_fingerprint": service.fingerprint,
        }

    def envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """A whole answer, or a chunk of one, around its choices."""
        return {**self._head, "object": self.chunk_kind if chunk else self.kind, "choices": choices}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice in the first chunk, if there is one before the text."""
        raise NotImplementedError

    def part(self, index: int, stream: Stream, piece: Piece) -> dict[str, Any] | None:
        """The choice in a chunk; None if there is nothing to send yet."""
        raise NotImplementedError

    def ending(self, index: int, stream: Stream) -> dict[str, Any]:
        """The choice in its last chunk."""
        raise NotImplementedError

    def whole(self, index: int, stream: Stream, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        """The whole choice."""
        raise NotImplementedError


def finish(stream: Stream) -> dict[str, str]:
    """Why a text is over: in OpenAI's words, and in ours."""
    assert stream.finish is not None
    return {
        "finish_reason": "stop" if stream.finish in ("stop", "end") else "length",
        "finish_detail": stream.finish,
    }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; `bytes:\\xe2\\x82` where it is no whole character, `<|turn_end|>` and so on for
    special ones."""
    raw = tokenizer.decode_bytes([token])
    if not raw:
        return tokenizer.special_names.get(token, "")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    """A log-probability that JSON can express."""
    return max(logprob, LEAST_LOGPROB)
