"""How much a server lets a client ask for, and what every request passes before it is looked at."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmat.serving.auth import Keys
from rmat.serving.errors import ApiError, internal_error, log
from rmat.serving.metrics import Metrics

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
    """Most POST requests at the same time."""
    body_seconds: float = 60.0
    """Longest time that a body may take to arrive."""
    session_seconds: float = 5.0
    """Longest wait for a session that another request holds."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} is {value!r}: give a number above 0")


@dataclass(kw_only=True)
class Guard:
    """ASGI middleware: request id, host, API key, size and time of the body, number of requests at a time, security
    headers, metrics, and one generic answer to every fault of ours.

    What it finds out stands in the scope's state: `request_id`, `owner` (of the API key) and `deadline` (of
    `time.monotonic`).
    """

    app: ASGIApp = field(kw_only=False)
    limits: Limits
    keys: Keys
    metrics: Metrics
    hosts: tuple[str, ...] | None
    """Values of the Host header to accept, without port; None for any. Others are refused, because a web page may
    have its own name resolve to this machine (DNS rebinding)."""
    stopping: threading.Event
    """Set once no new request is to be answered."""
    _running: int = field(default=0, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        started = time.monotonic()
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(request_id=request_id, deadline=started + self.limits.max_seconds)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
                headers.setdefault("cache-control", "no-store")
            await send(message)

        counted = scope["method"] == "POST"
        self._running += counted
        try:
            self._admit(scope, state)
            await self.app(scope, _Body(receive, self.limits).receive, sending)
        except ApiError as error:
            await error.response()(scope, receive, sending)
        except Exception:
            log.exception("request %s failed", request_id)
            if not status:
                await internal_error(request_id).response()(scope, receive, sending)
        finally:
            self._running -= counted
            # A request that was cut before its answer began has no status; 499 is what proxies write for it.
            self.metrics.note(scope, status or 499, time.monotonic() - started)

    def _admit(self, scope: Scope, state: dict[str, Any]) -> None:
        headers, path = Headers(scope=scope), scope["path"]
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
        if scope["method"] != "POST":
            return
        # A web page of another origin can send other types without asking; this one the browser asks for first.
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be JSON: send the header 'Content-Type: application/json'")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.limits.max_body_bytes:
            raise _too_long(self.limits)
        if self._running > self.limits.max_requests:
            raise ApiError(
                429, f"{self.limits.max_requests} requests are being answered already", retry_after=1
            )


class _Body:
    """A request's body, counted and timed while it arrives."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._bytes = 0
        self._complete = False
        self._until = time.monotonic() + limits.body_seconds

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body took longer than {self._limits.body_seconds:g} seconds") from None
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limits.max_body_bytes:
            raise _too_long(self._limits)
        self._complete = not message.get("more_body", False)
        return message


def _too_long(limits: Limits) -> ApiError:
    return ApiError(413, f"the body is longer than {limits.max_body_bytes} bytes")


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()
