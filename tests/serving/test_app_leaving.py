"""Clients that go away: what they asked for is given up, at whatever moment they leave."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.makers.servers import running_app

COMPLETION = {"prompt": "x", "max_tokens": 4000, "session": "a"}
CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4000, "session": "a"}


async def leave(app: FastAPI, path: str, body: dict[str, Any], after: int) -> int:
    """Ask, and leave when so many messages have come; 0: at once. Returns how many came."""
    sent, gone = [json.dumps(body).encode()], asyncio.Event()
    received = 0
    if after == 0:
        gone.set()

    async def receive() -> dict[str, Any]:
        if sent:
            return {"type": "http.request", "body": sent.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(_: dict[str, Any]) -> None:
        nonlocal received
        received += 1
        if received == after:
            gone.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await asyncio.wait_for(app(scope, receive, send), 30)  # type: ignore[arg-type]
    return received


def wait_until_idle(app: FastAPI) -> None:
    until = time.monotonic() + 30
    while True:
        stats = app.state.service.engine.stats()
        if stats["requests"] == sum(n for name, n in stats.items() if name.startswith("finished_")):
            return
        assert time.monotonic() < until, "a row was not freed"
        time.sleep(0.01)


@pytest.mark.parametrize(("stream", "after"), [(False, 0), (True, 0), (True, 1), (True, 4)])
@pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
def test_row_and_session_are_free_again(
    tmp_path: Path, path: str, body: dict[str, Any], stream: bool, after: int
) -> None:
    with running_app(tmp_path) as app:
        client = TestClient(app)
        before = client.post("/v1/sessions", json={"name": "a"}).json()
        assert asyncio.run(leave(app, path, {**body, "stream": stream}, after)) < 4000
        wait_until_idle(app)
        assert app.state.service.engine.stats()["finished_cancelled"] == 1
        assert client.get("/v1/sessions/a").json()["tokens_read"] == before["tokens_read"]
        assert client.post("/v1/sessions/a/read", json={"text": "x"}).json()["tokens_read"] == 2


def test_a_text_that_is_not_waited_for_is_not_read(tmp_path: Path) -> None:
    with running_app(tmp_path) as app:
        client = TestClient(app)
        client.post("/v1/sessions", json={"name": "a"})
        asyncio.run(leave(app, "/v1/sessions/a/read", {"text": "x" * 200_000}, 0))
        wait_until_idle(app)
        assert client.get("/v1/sessions/a").json()["tokens_read"] == 1
        assert client.post("/v1/sessions/a/read", json={"text": "x"}).json()["tokens_read"] == 2
