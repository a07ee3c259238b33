"""Running an app: the socket, connections that are bounded, the signals, and a stop that lets answers end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from rmat.serving.errors import error_body
from rmat.serving.service import Service

SENDING_SECONDS = 5.0
"""After the last text is written, so much longer a stopping server waits for clients to take it."""

SILENT_SECONDS = 10.0
"""So long a connection may wait for a request's head, or for its client to take the last of an answer."""

LOG_SECONDS = 10.0
"""Complaints about connections that begin alike are logged once in so many seconds."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises ValueError where that cannot be."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} is not possible: give a number from 1 to 65535, or 0 for any free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"there is no address {host!r} to listen on: {error.strerror}") from None
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} of {host} is in use: stop what uses it, or choose another with --port"
            ) from None
        raise ValueError(f"cannot listen on port {port} of {host}: {error.strerror}") from None
    return listening


def address_of(listening: socket.socket) -> str:
    """The address as a URL begins with it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def most_connections() -> int:
    """Half of the files that this process may open, a few aside: sessions need some, and connections that
    were accepted but not counted yet."""
    if sys.platform == "win32":
        return 500
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1000 if files == resource.RLIM_INFINITY else max(4, min(1000, (files - 32) // 2))


class Connection(H11Protocol):
    """A connection that waits for its client for a while, and gives way where there are too many."""

    since: float = math.inf
    """Time of the loop at which it began to wait for its client; later by up to a second."""

    @property
    def in_request(self) -> bool:
        """Whether the head of a request has arrived that is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """If this is one too many, close the one that has waited for longest, or else this one."""
        super().connection_made(transport)
        self.since = self.loop.time()
        open_ones = [each for each in self.connections if not each.transport.is_closing()]
        if len(open_ones) <= most_connections():
            return
        waiting = [
            each
            for each in open_ones
            if isinstance(each, Connection)
            and each is not self
            and (not each.in_request or each.cycle.more_body)
        ]
        if waiting:
            min(waiting, key=lambda each: (each.in_request, each.since)).transport.abort()
            return
        body = json.dumps(error_body(503, "too many requests are being answered: try again later")).encode()
        head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        transport.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        transport.close()

    def on_response_complete(self) -> None:
        """As in the base class."""
        super().on_response_complete()
        self.since = self.loop.time()

    def check_time(self) -> None:
        """Close it if it has waited too long."""
        if self.in_request and not self.transport.is_closing():
            self.since = self.loop.time()
        elif self.loop.time() - self.since > SILENT_SECONDS:
            self.transport.abort()


class _Rarely(logging.Filter):
    """Lets a message pass once in `LOG_SECONDS`, so that nobody can fill the disk with our log."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, begin = time.monotonic(), record.getMessage()[:40]
        passes = now - self._passed.get(begin, -math.inf) > LOG_SECONDS
        if passes:
            self._passed[begin] = now
        return passes


class Server(uvicorn.Server):
    """Serves an app of `create_app` until SIGTERM or SIGINT. Then new requests are refused (503), answers
    that end within `grace` seconds end as they would, the others end where they are; sessions are saved after
    both. A second SIGINT ends the waiting."""

    def __init__(self, app: FastAPI, *, grace: float) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            backlog=max(4, most_connections() // 8),  # so many are accepted before any is counted
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(SENDING_SECONDS),
        )
        super().__init__(config)
        service = app.state.service
        assert isinstance(service, Service)
        self._service = service
        self._grace = grace

    def serve_on(self, listening: socket.socket, tell: Callable[[], None]) -> None:
        """Serve until a signal comes; returns when all is done. `tell` says that the server is there: a
        signal that comes as an answer to it counts, however early."""
        # uvicorn listens to signals a moment later only, and raises them again when it is done, which would
        # end the process without a handler.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        tell()
        self.run(sockets=[listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As in the base class; asyncio complains for each connection that it cannot accept."""
        for name in ("asyncio", "uvicorn.error"):
            logger = logging.getLogger(name)
            if not any(isinstance(each, _Rarely) for each in logger.filters):
                logger.addFilter(_Rarely())
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections once a second."""
        if counter % 10 == 0:
            for each in list(self.server_state.connections):
                if isinstance(each, Connection):
                    each.check_time()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers end before connections are closed."""
        self._service.stopping.set()
        stopping = asyncio.ensure_future(asyncio.to_thread(self._service.engine.stop, self._grace))
        while not stopping.done() and not self.force_exit:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._service.engine.stop, 0.0)
        await stopping
        await super().shutdown(sockets)
