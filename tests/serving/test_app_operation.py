"""What an operator sees: health, metrics, and a stop."""

import logging
import re
import signal
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from fastapi.responses import PlainTextResponse
from starlette.testclient import TestClient

from rmat.serving.auth import Keys
from rmat.serving.limits import Limits
from rmat.serving.server import Server, _Rarely, bind
from rmat.serving.service import Service
from tests.makers.servers import (
    events,
    message,
    running_app,
    running_client,
    running_server,
    signals_as_before,
)


def numbers(client: TestClient) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


def test_metrics_count_what_was_done(tmp_path: Path) -> None:
    with running_client(tmp_path) as client:
        for prompt in ("a" * 400, "a" * 400):
            client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 7})
        client.post("/v1/completions", json={"prompt": 5})
        client.get("/v1/sessions/some")
        client.get("/v1/sessions/other")
        client.get("/nowhere/at/all")
        found = numbers(client)
    path = 'route="/v1/completions"'
    assert found[f'rmat_requests_total{{method="POST",{path},status="200"}}'] == 2
    assert found[f'rmat_requests_total{{method="POST",{path},status="400"}}'] == 1
    assert found['rmat_requests_total{method="GET",route="/v1/sessions/{name}",status="404"}'] == 2
    assert found['rmat_requests_total{method="any",route="other",status="404"}'] == 1
    assert found[f"rmat_request_seconds_count{{{path}}}"] == 3
    assert found["rmat_tokens_written_total"] == 14
    assert found["rmat_cache_hits_total"] == 1
    assert found["rmat_tokens_read_total"] + found["rmat_cache_tokens_total"] == 802
    assert found["rmat_cache_bytes"] > 0
    assert found["rmat_rows"] == found["rmat_waiting"] == 0


def test_two_apps_count_apart(tmp_path: Path) -> None:
    with running_client(tmp_path) as one, running_client(tmp_path) as other:
        one.get("/v1/models")
        assert not any("/v1/models" in name for name in numbers(other))


def test_health_follows_the_engine(tmp_path: Path) -> None:
    with running_client(tmp_path) as client:
        assert client.get("/health").json() == {"status": "ok"}
        service = client.app.state.service  # type: ignore[attr-defined]
        assert isinstance(service, Service)
        service.engine.stop()
        assert client.get("/health").status_code == 503
        answer = client.post("/v1/completions", json={"prompt": "x"})
        assert answer.status_code == 503 and "stopping" in message(answer.json())
        service.stopping.set()
        assert client.get("/health").json() == {"status": "stopping"}
        for answer in (client.get("/v1/models"), client.post("/v1/completions", json={})):
            assert answer.status_code == 503 and answer.headers["retry-after"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_address_is_told_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    """Supervisors send it so early; it was lost, and the server went on without end."""
    with running_app(tmp_path) as app, bind("127.0.0.1", 0) as listening, signals_as_before():
        server = Server(app, grace=5.0)
        late = threading.Timer(30, setattr, (server, "should_exit", True))
        late.start()
        server.serve_on(listening, lambda: signal.raise_signal(number))
        assert late.is_alive(), "the signal was lost"
        late.cancel()
        assert app.state.service.stopping.is_set()


@pytest.mark.parametrize("grace", [0.3, 60.0])
def test_a_stop_ends_answers_and_keeps_sessions(tmp_path: Path, grace: float) -> None:
    """A running answer ends within the grace time, by itself or where it is, and its session is saved."""
    body = {"prompt": "x", "max_tokens": 60 if grace > 1 else 4000, "stream": True, "session": "a"}
    received: list[str] = []
    begun = threading.Event()

    def ask(base: str) -> None:
        with httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=60) as answer:
            for part in answer.iter_text():
                received.append(part)
                begun.set()

    with running_app(tmp_path) as app:
        with running_server(app, grace=grace) as base:
            asking = threading.Thread(target=ask, args=(base,))
            asking.start()
            assert begun.wait(30)
        asking.join(30)
        assert app.state.service.stopping.is_set()
        parts = events("".join(received))
        ending = parts[-1]["choices"][0]
        assert ending["finish_detail"] == ("length" if grace > 1 else "stopped")
        written = "".join(part["choices"][0]["text"] for part in parts)
        kept = app.state.service.store_of("public").load("a", app.state.service.model)
        assert kept.tokens_read == 2 + len(written)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{base}/health")


def test_the_schema_names_every_route(tmp_path: Path) -> None:
    with running_client(tmp_path, keys=Keys(["some-key"])) as client:
        schema = client.get("/openapi.json").json()
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert re.search(rf"`{method.upper()} {re.escape(path)}`", page), (
                f"server.md lacks {method} {path}"
            )
            assert path == "/health" or "HTTPBearer" in str(operation["security"])


def opened(base: str, sent: bytes = b"") -> socket.socket:
    """A connection on which `sent` was sent and nothing else will be."""
    host, port = base.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), 30)
    client.sendall(sent)
    return client


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: loc",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\nHost: loc",
    ],
)
def test_a_silent_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr("rmat.serving.server.SILENT_SECONDS", 0.5)
    with (
        running_app(tmp_path) as app,
        running_server(app) as base,
        opened(base, sent) as client,
        suppress(ConnectionResetError),
    ):
        while client.recv(4096):  # times out if nobody closes
            pass


def test_silent_connections_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many connections the one goes that has waited for its client for longest, and never one at
    work."""
    monkeypatch.setattr("rmat.serving.server.most_connections", lambda: 8)
    body = {"prompt": "x", "max_tokens": 4000, "stream": True}
    slow = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9\r\n\r\n{"
    )
    with running_app(tmp_path) as app, running_server(app, grace=0.0) as base, ExitStack() as clients:
        answer = clients.enter_context(httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=60))
        lines = answer.iter_lines()
        next(lines)
        for number in range(30):
            clients.enter_context(opened(base, (b"", b"GET / HTTP", slow)[number % 3]))
            assert httpx.get(f"{base}/health", timeout=30).status_code == 200
        assert next(line for line in lines if line), "the answer goes on"


def test_where_all_connections_are_at_work_a_new_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmat.serving.server.most_connections", lambda: 2)
    body = {"prompt": "x", "max_tokens": 4000, "stream": True}
    with running_app(tmp_path) as app, running_server(app, grace=0.0) as base, ExitStack() as clients:
        for _ in range(2):
            answer = clients.enter_context(
                httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=60)
            )
            assert answer.status_code == 200
        answer = httpx.get(f"{base}/health", timeout=30)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert "try again" in message(answer.json())


def test_a_client_that_does_not_take_its_answer_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is free again, and its connection is closed."""
    monkeypatch.setattr("rmat.serving.limits.TAKING_SECONDS", 0.1)
    monkeypatch.setattr("rmat.serving.server.SILENT_SECONDS", 0.5)
    limits = Limits(max_seconds=0.4, body_seconds=0.5)
    with running_app(tmp_path, limits=limits) as app, running_server(app) as base:

        @app.get("/long")
        async def long() -> PlainTextResponse:
            return PlainTextResponse("x" * 50_000_000)

        with opened(base, b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            until = time.monotonic() + 30
            while 'route="/long"' not in httpx.get(f"{base}/metrics").text:
                assert time.monotonic() < until, "it still waits"
                time.sleep(0.1)


def test_a_flood_of_complaints_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("of this test")
    logger.addFilter(_Rarely())
    with caplog.at_level(logging.INFO):
        for number in range(1000):
            logger.error("socket.accept() out of system resource, number %d", number)
        logger.error("another thing")
    assert len(caplog.records) == 2
