"""Reading a request's JSON strictly: UTF-8, finite numbers, whole characters."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from rmat.serving.errors import ApiError

_SURROGATE = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def parse_json(body: bytes) -> Any:
    """The value in `body`. Raises ApiError (400) for what is no JSON in UTF-8, for numbers that are not finite, and for
    halves of surrogate pairs, which no text can hold."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_not_finite, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        message = f"the body is no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise ApiError(400, message) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError:
        raise ApiError(400, "the body holds a number with too many digits") from None
    if _SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ApiError(400, "the body holds a lone surrogate (half a character): remove it") from None
    return value


def _not_finite(name: str) -> NoReturn:
    raise ApiError(400, f"the body holds {name}: numbers must be finite")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ApiError(400, f"the body holds {digits[:30]}: numbers must be finite")
    return number


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


class StrictRoute(APIRoute):
    """A route whose body is read by `parse_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As in the base class."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict
