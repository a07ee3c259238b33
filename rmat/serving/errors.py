"""What a client is told when a request cannot be answered: OpenAI's shape, one sentence, no internals."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

log = logging.getLogger("rmat.serving")

_TYPES = {401: "authentication_error", 409: "conflict_error", 429: "rate_limit_error"}

_HINTS = {
    "prompt": "give text, a list of texts, a list of token ids, or a list of such lists",
    "stop": "give a text, or a list of at most 16 texts of 1 to 1000 characters",
    "logit_bias": 'give token ids with numbers from -100 to 100, such as {"12": -100}',
    "tool_choice": 'give "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}',
    "content": 'give text, or a list of parts {"type": "text", "text": "..."}',
}
"""Fields that may be of several kinds, for which pydantic would tell what is wrong with each kind."""

_WORDS = {
    "bool_type": "give true or false",
    "dict_type": "give an object",
    "finite_number": "give a finite number",
    "float_type": "give a number",
    "greater_than": "give a number above {gt}",
    "greater_than_equal": "give a number of {ge} or more",
    "int_from_float": "give a whole number",
    "int_type": "give a whole number",
    "less_than": "give a number below {lt}",
    "less_than_equal": "give a number of at most {le}",
    "list_type": "give a list",
    "literal_error": "give {expected}",
    "model_attributes_type": "give an object",
    "model_type": "give an object",
    "none_required": "leave it out",
    "string_pattern_mismatch": "give 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
    "string_too_long": "give at most {max_length} characters",
    "string_too_short": "give at least {min_length} characters",
    "string_type": "give a text",
    "too_long": "give at most {max_length} entries",
    "too_short": "give at least {min_length} entries",
}
"""What to do, by pydantic's names of mistakes; the only pattern is that of a session's name."""

_UNSUPPORTED = {
    **dict.fromkeys(("audio", "modalities", "reasoning_effort", "verbosity", "web_search_options"), ""),
    "best_of": "",
    **dict.fromkeys(("function_call", "functions"), "they are the old form of tools, which there are"),
}
"""Fields of OpenAI's that would change the answer and that no model here can follow, and why; neutral values
are accepted."""


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

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if isinstance(error, ApiError):
            return error.response()
        message, headers = error.detail, {k.lower(): v for k, v in (error.headers or {}).items()}
        if error.status_code == 404:
            message = "there is no such address"
        elif error.status_code == 405:
            headers["allow"] = ", ".join(_methods(app, request))
            message = f"this address does not take {request.method}: it takes {headers['allow']}"
        return ApiError(error.status_code, message, headers=headers).response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return explain({**first, "loc": first["loc"][1:]}, field_names).response()

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What the address of a request takes, whichever routes share it."""

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in app.routes)

    methods = [method for method in ("GET", "POST", "PUT", "PATCH", "DELETE") if taken(method)]
    return [*methods, "HEAD"] if "GET" in methods else methods


def explain(error: Mapping[str, Any], field_names: frozenset[str]) -> ApiError:
    """One of pydantic's errors, whose path `loc` begins with a field, as a sentence of bounded length."""
    path: list[str] = []
    for part in error["loc"]:
        if isinstance(part, str) and part not in field_names and error["type"] != "extra_forbidden":
            break  # the name of one of several kinds that the field may have
        path.append(str(part))
    param = ".".join(path)[:100]
    fields = [part for part in path if not part.isdigit()]
    if error["type"] == "missing":
        message = f"{param} is missing" if param else "the body is missing: give a JSON object"
    elif not param:
        message = "the body is no JSON object"
    elif (fields and fields[0] in _UNSUPPORTED) or path[-1] in _UNSUPPORTED:
        why = _UNSUPPORTED.get(fields[0]) or _UNSUPPORTED.get(path[-1]) or "the model here cannot follow it"
        message = f"{param} is not supported: {why}; leave it out"
    elif error["type"] == "extra_forbidden":
        message = f"there is no field '{param}' here"
    elif fields and fields[-1] in _HINTS:
        message = f"{param}: {_HINTS[fields[-1]]}"
    else:
        known = _WORDS.get(error["type"])
        bounds = {
            name: f"{value:g}" if isinstance(value, float) else value
            for name, value in error.get("ctx", {}).items()
        }
        words = known.format_map(bounds) if known else str(error["msg"])
        message = f"{param}{_shown(error.get('input'))}: {words[:300].removeprefix('Value error, ')}"
    return ApiError(400, message, param=param or None)


def _shown(value: object) -> str:
    """` is VALUE` for a value that is short in JSON, nothing for others."""
    if not isinstance(value, str | int | float | None):
        return ""
    text = json.dumps(value[:60] if isinstance(value, str) else value, ensure_ascii=False)
    return f" is {text}" if len(text) < 60 else ""
