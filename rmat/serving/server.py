"""Running an app: the socket, the signals, and a stop that lets answers end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import signal
import socket
import sys

import uvicorn
from fastapi import FastAPI

from rmat.serving.service import Service

SENDING_SECONDS = 5.0
"""After the last text is written, so much longer a stopping server waits for clients to take it."""


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


class Server(uvicorn.Server):
    """Serves an app of `create_app` until SIGTERM or SIGINT. Then new requests are refused (503), answers that end within
    `grace` seconds end as they would, the others end where they are; sessions are saved after both. A second SIGINT
    ends the waiting."""

    def __init__(self, app: FastAPI, *, grace: float) -> None:
        config = uvicorn.Config(
            app,
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

    def serve_on(self, listening: socket.socket) -> None:
        """Serve until a signal comes; returns when all is done."""
        # uvicorn raises the signal again when it is done. It must find a handler, or it would end the process.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        self.run(sockets=[listening])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers end before connections are closed."""
        self._service.stopping.set()
        stopping = asyncio.ensure_future(asyncio.to_thread(self._service.engine.stop, self._grace))
        while not stopping.done() and not self.force_exit:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._service.engine.stop, 0.0)
        await stopping
        await super().shutdown(sockets)
