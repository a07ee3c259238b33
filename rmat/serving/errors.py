"""What a client is told when a request cannot be answered: OpenAI's shape, one clear sentence, no internals."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger("rmat.serving")

_TYPES = {401: "authentication_error", 409: "conflict_error", 429: "rate_limit_error"}

_HINTS = {
    "prompt": "give text, a list of texts, a list of token ids, or a list of such lists",
    "stop": "give a text, or a list of at most 16 texts of 1 to 1000 characters",
    "content": 'give text, or a list of parts {"type": "text", "text": "..."}',
}
"""Fields that may be of several kinds, for which pydantic would tell what is wrong with each kind."""

_UNSUPPORTED = {
    "audio",
    "best_of",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "modalities",
    "presence_penalty",
    "reasoning_effort",
    "response_format",
    "tool_calls",
    "tool_choice",
    "tools",
    "verbosity",
    "web_search_options",
}
"""Fields of OpenAI's that would change the answer and that no model here can follow; neutral values are accepted."""


class ApiError(HTTPException):
    """An answer with an error status.

    Args:
        status: of HTTP.
        message: what was wrong and what to do.
        param: the field at fault.
        code: OpenAI's short name of the fault.
        retry_after: seconds after which trying again makes sense.
        headers: further ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        retry = {} if retry_after is None else {"retry-after": str(retry_after)}
        super().__init__(status, message, {**(headers or {}), **retry})
        self.param = param
        self.code = code

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(
            error_body(self.status_code, self.detail, self.param, self.code),
            self.status_code,
            dict(self.headers or {}),
        )


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, dict[str, str | None]]:
    """`{"error": {"message", "type", "param", "code"}}`."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def internal_error(request_id: str) -> ApiError:
    """What is told of a fault of ours; the log has the rest under the same id."""
    return ApiError(500, f"the server failed to answer request {request_id}; its log tells why")


def install_handlers(app: FastAPI, field_names: frozenset[str]) -> None:
    """Have the app answer all errors in OpenAI's shape; `field_names` are those of its request bodies."""

    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if not isinstance(error, ApiError):
            message = {404: "there is no such address", 405: "this address does not take this method"}
            error = ApiError(
                error.status_code, message.get(error.status_code, error.detail), headers=error.headers
            )
        return error.response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return explain(error.errors(), field_names).response()

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)


def explain(errors: Sequence[Mapping[str, Any]], field_names: frozenset[str]) -> ApiError:
    """The first of pydantic's errors as a sentence."""
    error = errors[0]
    path: list[str] = []
    for part in error["loc"][1:]:
        if isinstance(part, str) and part not in field_names and error["type"] != "extra_forbidden":
            break  # the name of one of several kinds that the field may have
        path.append(str(part))
    param = ".".join(path)
    fields = [part for part in path if not part.isdigit()]
    if error["type"] == "missing":
        message = f"{param} is missing" if param else "the body is missing: give a JSON object"
    elif not param:
        message = "the body is no JSON object"
    elif (fields and fields[0] in _UNSUPPORTED) or path[-1] in _UNSUPPORTED:
        message = f"{param} is not supported by this server: leave it out"
    elif error["type"] == "extra_forbidden":
        message = f"there is no field {param[:100]!r} here"
    elif fields and fields[-1] in _HINTS:
        message = f"{param}: {_HINTS[fields[-1]]}"
    else:
        message = f"{param}: {str(error['msg']).removeprefix('Value error, ')}"
    return ApiError(400, message, param=param[:100] or None)
