"""Bodies of requests: read with bounds, parsed strictly and turned into a model away from the event loop."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from rmat.engine.engine import has_room
from rmat.serving.errors import ApiError, explain
from rmat.serving.limits import Limits

SHORT = 2**16
"""A body of so many bytes is parsed at once; a longer one in a thread, beside the other answers."""

MAX_PARTS = 2**17
"""Most texts, lists and objects in a body together."""

MAX_VALUES = 2**21
"""Most values in a body, numbers included."""

MAX_KEYS = 1024
"""Most keys of one object."""

ARRIVING = 16
"""Before they are parsed, bodies hold at most the bytes of so many longest ones; then only short ones
come."""

_THREADS = ThreadPoolExecutor(
    2, thread_name_prefix="rmat-body"
)  # no more, for memory: a value is larger than its JSON
_PART = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]', re.DOTALL)
"""A text, a list or an object; a text without an end goes to the body's, so that none of it is looked at
twice."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Bodies:
    """What all bodies may take together: bytes before they are parsed, places while they are answered.

    Args:
        limits: of the app.
        field_names: names of the fields of all bodies, for errors.
    """

    def __init__(self, limits: Limits, field_names: frozenset[str]) -> None:
        self.field_names = field_names
        self._limits = limits
        self._arriving = 0
        self._answered: Counter[str] = Counter()

    async def read(self, headers: Headers, receive: Receive, until: ExitStack) -> bytes:
        """The whole body; its bytes count until `until` is closed. Raises ApiError (408, 413, 415, 429)."""
        # A web page of another origin can send other types without asking; for this one the browser asks.
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be JSON: send the header 'Content-Type: application/json'")
        if (coding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
            raise ApiError(
                415, f"the body is encoded as {coding[:30]!r}: send it as it is, without Content-Encoding"
            )
        most, body = self._limits.max_body_bytes, bytearray()
        too_long = ApiError(413, f"the body is longer than {most} bytes: send less")
        told = headers.get("content-length", "0")
        if not told.isdecimal() or int(told[:20]) > most:
            raise too_long
        until.callback(lambda: self._count(-len(body)))
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(499, "the client went away")
                    body += message.get("body", b"")
                    self._count(len(message.get("body", b"")))
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise too_long
                    if len(body) > SHORT and self._arriving > ARRIVING * most:
                        raise ApiError(429, "too many long bodies arrive: try again later", retry_after=1)
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise ApiError(408, f"the body took longer than {seconds:g} seconds: send it faster") from None
        return bytes(body)

    @contextmanager
    def place(self, owner: str) -> Iterator[None]:
        """One of the places of the requests that are being answered. Raises ApiError (429)."""
        if not has_room(self._answered, owner, self._limits.max_requests):
            message = f"{self._answered.total()} requests are being answered already: try again later"
            raise ApiError(429, message, retry_after=1)
        self._answered[owner] += 1
        try:
            yield
        finally:
            self._answered[owner] -= 1
            if not self._answered[owner]:
                del self._answered[owner]

    def _count(self, n_bytes: int) -> None:
        self._arriving += n_bytes


class StrictRoute(APIRoute):
    """A route whose body, if it takes one, is read by `app.state.bodies` and parsed by `parse`."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As in the base class."""
        if self.body_field is None or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        bodies: Bodies = scope["app"].state.bodies
        kind: Any = self.body_field.field_info.annotation  # the model that the route asks for
        with ExitStack() as reading:
            body = await bodies.read(Headers(scope=scope), receive, reading)
            with bodies.place(scope["state"]["owner"]):
                if len(body) <= SHORT:
                    value = parse(body, kind, bodies.field_names)
                else:
                    loop = asyncio.get_running_loop()
                    value = await loop.run_in_executor(_THREADS, parse, body, kind, bodies.field_names)
                scope["state"]["body"] = value
                del body
                reading.close()
                await super().handle(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As in the base class."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_ReadRequest(request.scope, request.receive))

        return strict


class _ReadRequest(Request):
    """A request whose body is a model already, which FastAPI takes as it is."""

    async def body(self) -> bytes:
        return b"{}"

    async def json(self) -> Any:
        return self.state.body


def parse(body: bytes, kind: type[BaseModel], field_names: frozenset[str]) -> BaseModel:
    """The model in `body`. Raises ApiError (400) for the first mistake."""
    if not body:
        raise ApiError(400, "the body is missing: give a JSON object")
    value = parse_json(body)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)[0], field_names) from None


def parse_json(body: bytes) -> Any:
    """The value in `body`. Raises ApiError (400) for what is no JSON in UTF-8, for a key that stands twice in
    an object, for numbers that are not finite, for halves of surrogate pairs, which no text can hold, and for
    too many values."""
    try:
        text = body.decode("utf-8-sig")
        if len(body) > SHORT:
            _check_size(body)
        value = json.loads(text, parse_constant=_not_finite, parse_float=_finite, object_pairs_hook=_object)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 text (byte {error.start})") from None
    except UnicodeEncodeError:
        raise ApiError(400, "the body holds a lone surrogate (half a character): remove it") from None
    except json.JSONDecodeError as error:
        message = f"the body is no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise ApiError(400, message) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError:
        raise ApiError(400, "the body holds a number with too many digits") from None
    return value


def _check_size(body: bytes) -> None:
    """Refuse too many values before any is made: the parser would hold the interpreter, this loop does
    not."""
    parts = values = end = 0
    for match in _PART.finditer(body):
        parts += 1
        values += body.count(b",", end, match.start())
        end = match.end()
        if parts > MAX_PARTS or values > MAX_VALUES:
            break
    if parts > MAX_PARTS or values + body.count(b",", end) > MAX_VALUES:
        raise ApiError(
            400,
            f"the body has too many values: at most {MAX_PARTS} texts, lists and objects, {MAX_VALUES} in "
            "all",
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(pairs) > MAX_KEYS:
        raise ApiError(400, f"an object in the body has {len(pairs)} keys: at most {MAX_KEYS} are read")
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ApiError(400, f"the body names {json.dumps(twice[:100])} twice in one object: leave one out")
    return made


def _not_finite(name: str) -> NoReturn:
    raise ApiError(400, f"the body holds {name}: numbers must be finite")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ApiError(400, f"the body holds {digits[:30]}: numbers must be finite")
    return number
