"""How much a server lets a client ask for, and what every request passes before it is looked at."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmat.serving.auth import Keys
from rmat.serving.errors import ApiError, internal_error, log
from rmat.serving.metrics import Metrics
from rmat.settings import number

access = logging.getLogger("rmat.access")
"""A line for each request that was answered: who, what, status, seconds, id. No text, no keys."""

TAKING_SECONDS = 15.0
"""So long a client may take to take an answer that is written."""

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Names under which a browser on this machine reaches a server that listens on loopback."""

OPEN_PATHS = ("/health", "/", "/openapi.json")
"""Addresses that need no API key."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on requests. Raises ValueError naming the field and its value."""

    max_body_bytes: int = 16 * 2**20
    """Longest body."""
    max_prompt_tokens: int = 2**20
    """Most tokens that one request may have read."""
    max_new_tokens: int = 4096
    """Most tokens of one answer."""
    max_choices: int = 16
    """Most answers to one request: `n` times the number of prompts."""
    max_seconds: float = 600.0
    """Longest time from the arrival of a request to the end of its answer."""
    max_requests: int = 128
    """Most requests with a body that are answered at a time; owners share them as `has_room` says."""
    body_seconds: float = 60.0
    """Longest time that a body may take to arrive."""
    session_seconds: float = 5.0
    """Longest wait for a session that another request holds."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            number(name, value, above=0)


@dataclass(kw_only=True)
class Guard:
    """ASGI middleware: request id, host, API key, security headers, HEAD, metrics, access log, and one
    generic answer to every fault of ours.

    What it finds out stands in the scope's state: `request_id`, `owner` (of the API key) and `deadline` (of
    `time.monotonic`).
    """

    app: ASGIApp = field(kw_only=False)
    limits: Limits
    keys: Keys
    metrics: Metrics
    hosts: tuple[str, ...] | None
    """Values of the Host header to accept, without port; None for any. Others are refused, because a web page
    may have its own name resolve to this machine (DNS rebinding)."""
    stopping: threading.Event
    """Set once no new request is to be answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, started, status = uuid.uuid4().hex, time.monotonic(), 0
        method, path = scope["method"], scope["path"]
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(request_id=request_id, deadline=started + self.limits.max_seconds)
        if method == "HEAD":  # answered wherever GET is, by the same code
            scope = {**scope, "method": "GET"}

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
                headers.setdefault("cache-control", "no-store")
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            self._admit(scope, state)
            async with asyncio.timeout(self.limits.body_seconds + self.limits.max_seconds + TAKING_SECONDS):
                await self.app(scope, receive, sending)
        except ApiError as error:
            await error.response()(scope, receive, sending)
        except Exception as error:
            if isinstance(error, TimeoutError):
                log.warning("request %s was cut: its client did not take the answer", request_id)
            else:
                log.exception("request %s failed", request_id)
            if not status:
                await internal_error(request_id).response()(scope, receive, sending)
        finally:
            # A request that was cut before its answer began has no status; 499 is what proxies write for it.
            status, seconds = status or 499, time.monotonic() - started
            self.metrics.note(scope, status, seconds)
            client = (scope.get("client") or ("-",))[0]
            access.info(
                "%s %s %s %d %.3f s %s", client, method, quote(path)[:200], status, seconds, request_id
            )

    def _admit(self, scope: Scope, state: dict[str, Any]) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy that believes the other one sees another request behind this one (request smuggling).
            message = "the request has both Content-Length and Transfer-Encoding: send one of them"
            raise ApiError(400, message, headers={"connection": "close"})
        if self.hosts is not None and _without_port(headers.get("host", "")) not in self.hosts:
            raise ApiError(
                400, f"this server is reached under {', '.join(self.hosts)} only", code="wrong_host"
            )
        if path != "/health" and path != "/metrics" and self.stopping.is_set():
            raise ApiError(503, "the server is stopping: try again later", retry_after=5)
        owner = self.keys.owner(headers.get("authorization"))
        if owner is None and path not in OPEN_PATHS:
            raise ApiError(
                401,
                "the API key is missing or wrong: send the header 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        state["owner"] = owner


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()
