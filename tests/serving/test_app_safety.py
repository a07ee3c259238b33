import asyncio
import copy
import gzip
import json
import logging
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from rmat.serving.auth import ENVIRONMENT, Keys, hash_key
from rmat.serving.bodies import _PART, SHORT, parse, parse_json
from rmat.serving.errors import ApiError
from rmat.serving.limits import LOOPBACK_HOSTS, Limits
from rmat.serving.openai_types import ChatBody, CompletionBody
from rmat.serving.page import FILE, page_routes
from rmat.serving.session_routes import NameBody, ReadBody
from tests.makers.servers import message, model, running_app, running_client, running_server

JSON = {"content-type": "application/json"}
BODY = {"prompt": "x", "max_tokens": 2}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with running_client(tmp_path_factory.mktemp("s"), limits=Limits(max_body_bytes=2000)) as client:
        yield client


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body is missing"),
        (b"{", "no JSON"),
        (b"[1]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"\xff\xfe", "UTF-8"),
        ('{"prompt": "é"}'.encode("latin-1"), "UTF-8"),
        ('{"prompt": "x"}'.encode("utf-16"), "UTF-8"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"temperature": NaN}', "finite"),
        (b'{"temperature": -Infinity}', "finite"),
        (b'{"temperature": 1e999}', "finite"),
        (b'{"metadata": {"a": [NaN]}}', "finite"),
        (b'{"metadata": {"a": -1e999}}', "finite"),
        (b'{"seed": ' + b"9" * 1500 + b"}", "seed"),
        (b"[" * 1900, "the body is n"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "no field 'a'"),
        (b'{"prompt": "a"} x', "no JSON"),
        (b'{"prompt": "a", "prompt": "b"}', '"prompt" twice'),
        (b'{"metadata": {"a": 1, "a": 1}}', '"a" twice'),
        (b'{"temperature": -1}', "temperature is -1: give a number of 0 or more"),
        (b'{"temperature": true}', "temperature is true: give a number"),
        (b'{"top_k": "many"}', 'top_k is "many": give a whole number'),
        (b'{"prompt": []}', "the prompt is empty: give a text"),
        (b'{"prompt": ["a", []]}', "the prompt is empty: give a text"),
        (b'{"stream": 1}', "stream is 1: give true or false"),
        (b'{"session": "a b"}', 'session is "a b": give 1 to 64 letters'),
        (
            b'{"stream_options": {"include_usage": 1}}',
            "stream_options.include_usage is 1: give true or false",
        ),
    ],
)
def test_a_broken_body_is_refused(client: TestClient, body: bytes, said: str) -> None:
    answer = client.post("/v1/completions", content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert said in message(answer.json())


def test_digits_and_depth_have_a_bound(tmp_path: Path) -> None:
    with running_client(tmp_path) as client:
        for body, said in ((b'{"seed": ' + b"9" * 5000 + b"}", "digits"), (b"[" * 10**5, "deeply")):
            answer = client.post("/v1/completions", content=body, headers=JSON)
            assert answer.status_code == 400 and said in message(answer.json())


ITEMS: list[Any] = [{}, [], "", -1, {"type": "text"}, {"role": "user"}, {"role": "user", "content": 1}]


@pytest.mark.parametrize("kind", [CompletionBody, ChatBody, NameBody, ReadBody])
def test_the_first_mistake_ends_it(kind: type[BaseModel]) -> None:
    """However many items of a list or keys of an object are wrong, no more is looked at than anybody is told
    of."""
    for name in kind.model_fields:
        for item in ITEMS:
            for value in ([item] * 5000, [{"role": "user", "content": [item] * 5000}]):
                with pytest.raises(ValidationError) as found:
                    kind.model_validate({name: value, "surely wrong": 1})
                assert found.value.error_count() < 50, (name, item)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"messages": [' + b"{}," * 5000 + b"{}]}", "messages.0.role is missing"),
        (b'{"messages": [' + b"{}," * 350_000 + b"{}]}", "too many values"),
        (b'{"messages": [{"role": "user", "content": [' + b"1," * 2_500_000 + b"1]}]}", "too many values"),
        (b'{"messages": [{"role": "user", "content": [' + b"[]," * 5000 + b"[]]}]}", "messages.0.content"),
        (b'{"stop": [' + b'"",' * 400_000 + b'""]}', "too many values"),
        (b"{" + b",".join(b'"k%d": 1' % n for n in range(5000)) + b"}", "5000 keys"),
        (b"{" + b",".join(b'"k%d": 1' % n for n in range(500)) + b"}", "no field 'k0'"),
        (b'{"' + b"k" * 2**20 + b'": 1}', "no field 'kkkk"),
        (b'{"temperature": "' + b"x" * 2**20 + b'"}', "temperature: give a number"),
        (b'{"' + b"k" * 2**20 + b'": 1, "' + b"k" * 2**20 + b'": 1}', "twice"),
    ],
)
def test_a_long_body_is_refused_shortly(tmp_path: Path, body: bytes, said: str) -> None:
    with running_client(tmp_path) as client:
        path = "/v1/chat/completions" if body.startswith(b'{"messages"') else "/v1/completions"
        answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 400 and said in message(answer.json())
    assert len(answer.content) < 500


def test_a_text_without_an_end_is_looked_at_once() -> None:
    """If a search began at each of its quotes, a megabyte would hold the interpreter for an hour."""
    body = b'{"prompt": "' + b'\\"' * (SHORT // 2)
    assert len(_PART.findall(body)) == 3  # the object, the key, the rest
    with pytest.raises(ApiError, match="Unterminated string"):
        parse_json(body)


def test_a_long_body_is_parsed_beside_the_other_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def noting(*arguments: Any) -> BaseModel:
        threads.append(threading.current_thread().name)
        return parse(*arguments)

    monkeypatch.setattr("rmat.serving.bodies.parse", noting)
    with running_client(tmp_path, limits=Limits(max_prompt_tokens=10)) as client:
        for length in (10, 100_000):
            client.post("/v1/completions", json={"prompt": "x" * length})
    assert not threads[0].startswith("rmat-body") and threads[1].startswith("rmat-body")


def test_a_whole_character_may_be_spelled_as_two_halves(client: TestClient) -> None:
    body = b'{"prompt": "\\ud83d\\ude00", "max_tokens": 1}'
    answer = client.post("/v1/completions", content=body, headers=JSON)
    assert answer.json()["usage"]["prompt_tokens"] == 1 + 4


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_must_say_that_it_is_json(client: TestClient, kind: str | None) -> None:
    """A web page may send the other types to a server on loopback without asking first."""
    headers = {} if kind is None else {"content-type": kind}
    answer = client.post("/v1/completions", content=json.dumps(BODY).encode(), headers=headers)
    assert answer.status_code == 415 and "application/json" in message(answer.json())


def test_a_body_is_taken_as_it_is_only(client: TestClient) -> None:
    headers = {**JSON, "content-encoding": "gzip"}
    answer = client.post("/v1/completions", content=gzip.compress(json.dumps(BODY).encode()), headers=headers)
    assert answer.status_code == 415 and "Content-Encoding" in message(answer.json())
    with_mark = b"\xef\xbb\xbf" + json.dumps(BODY).encode()
    assert client.post("/v1/completions", content=with_mark, headers=JSON).status_code == 200


def asynchronous(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=30)


@pytest.mark.parametrize(("told", "most"), [({}, 2200), ({"content-length": "100000"}, 0)])
def test_a_long_body_is_not_listened_to(tmp_path: Path, told: dict[str, str], most: int) -> None:
    """Where its sender says how long it is, none of it is read; else no more than it may be."""
    sent = 0

    async def long() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 100
            yield b" " * 100

    async def ask(app: FastAPI) -> httpx.Response:
        async with asynchronous(app) as client:
            return await client.post("/v1/completions", content=long(), headers={**JSON, **told})

    with running_app(tmp_path, limits=Limits(max_body_bytes=2000)) as app:
        answer = asyncio.run(ask(app))
    assert answer.status_code == 413 and "2000 bytes" in message(answer.json()) and sent <= most


def test_a_slow_body_is_given_up(tmp_path: Path) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    async def ask(app: FastAPI) -> httpx.Response:
        async with asynchronous(app) as client:
            return await client.post("/v1/completions", content=slow(), headers=JSON)

    with running_app(tmp_path, limits=Limits(body_seconds=0.1)) as app:
        assert asyncio.run(ask(app)).status_code == 408


def test_a_body_that_arrives_takes_no_place(tmp_path: Path) -> None:
    """Clients that send slowly do not keep out those that have sent."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"max_tokens": 2,'
        begun.set()
        await go_on.wait()
        yield b'"prompt": "x"}'

    async def ask(app: FastAPI) -> list[int]:
        async with asynchronous(app) as client:
            waiting = asyncio.ensure_future(client.post("/v1/completions", content=slow(), headers=JSON))
            await begun.wait()
            quick = await client.post("/v1/completions", json=BODY)
            go_on.set()
            return [quick.status_code, (await waiting).status_code]

    with running_app(tmp_path, limits=Limits(max_requests=1)) as app:
        assert asyncio.run(ask(app)) == [200, 200]


def test_one_key_does_not_take_the_places_of_another(tmp_path: Path) -> None:
    body = {"prompt": "x", "max_tokens": 300}

    async def ask(app: FastAPI) -> tuple[list[int], int]:
        async with asynchronous(app) as client:

            async def of(key: str) -> int:
                headers = {"authorization": f"Bearer {key}"}
                return (await client.post("/v1/completions", json=body, headers=headers)).status_code

            many = [asyncio.ensure_future(of("one")) for _ in range(4)]
            await asyncio.sleep(0.05)
            other = await of("other")
            return sorted(await asyncio.gather(*many)), other

    with running_app(tmp_path, limits=Limits(max_requests=2), keys=Keys(["one", "other"])) as app:
        assert asyncio.run(ask(app)) == ([200, 200, 429, 429], 200)


def test_bodies_that_arrive_have_a_bound_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmat.serving.bodies.ARRIVING", 0)
    with running_client(tmp_path) as client:
        answer = client.post("/v1/completions", json={**BODY, "prompt": "x" * 100_000})
        assert answer.status_code == 429 and answer.headers["retry-after"]
        assert client.post("/v1/completions", json=BODY).status_code == 200, "short ones are still taken"


def test_no_more_requests_than_allowed_at_a_time(tmp_path: Path) -> None:
    async def ask(app: FastAPI) -> list[int]:
        async with asynchronous(app) as client:
            body = {"prompt": "x", "max_tokens": 50}
            answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(6)))
            assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
            return sorted(answer.status_code for answer in answers)

    with running_app(tmp_path, limits=Limits(max_requests=2)) as app:
        assert asyncio.run(ask(app)) == [200, 200, 429, 429, 429, 429]
        assert asyncio.run(ask(app)) == [200, 200, 429, 429, 429, 429], "slots are given back"


def engine_counts(client: TestClient) -> dict[str, int]:
    return dict(client.app.state.service.engine.stats())  # type: ignore[attr-defined]


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    with running_client(tmp_path, engine={"max_rows": 1, "max_waiting": 2}) as client:
        answer = client.post("/v1/completions", json={**BODY, "n": 16, "max_tokens": 100})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        until = time.monotonic() + 30
        while client.post("/v1/completions", json=BODY).status_code == 429:
            assert time.monotonic() < until, "what was queued is given up"
        assert engine_counts(client)["finished_length"] == 1


def test_a_request_ends_when_its_time_is_up(tmp_path: Path) -> None:
    with running_client(tmp_path, limits=Limits(max_seconds=0.3, max_new_tokens=10**6)) as client:
        answer = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 10**6, "session": "a"})
        choice = answer.json()["choices"][0]
        assert (choice["finish_reason"], choice["finish_detail"]) == ("length", "timeout")
        assert 0 < len(choice["text"]) < 10**6
        read = answer.json()["usage"]["total_tokens"]
        assert client.get("/v1/sessions/a").json()["tokens_read"] == read


def test_too_long_a_prompt_is_refused(tmp_path: Path) -> None:
    with running_client(tmp_path, limits=Limits(max_prompt_tokens=5)) as client:
        answer = client.post("/v1/completions", json={"prompt": "123456"})
        assert answer.status_code == 400 and "7 tokens" in message(answer.json())
        client.post("/v1/sessions", json={"name": "a"})
        answer = client.post("/v1/sessions/a/read", json={"text": "123456"})
        assert answer.status_code == 400 and "6 tokens" in message(answer.json())


def test_what_goes_wrong_inside_stays_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("/secret/path is on fire")

    monkeypatch.setattr("rmat.serving.service.Service.store", broken)
    with running_client(tmp_path) as client, caplog.at_level(logging.ERROR):
        answer = client.get("/v1/sessions")
    assert answer.status_code == 500 and "secret" not in answer.text
    request_id = answer.headers["x-request-id"]
    assert request_id in message(answer.json()) and request_id in caplog.text
    assert "/secret/path is on fire" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_wrong_in_the_model_stays_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("/secret/path is on fire")

    monkeypatch.setattr("rmat.engine.job.Job.advance", broken)
    with running_client(tmp_path) as client:
        answer = client.post("/v1/completions", json={**BODY, "stream": stream, "session": "a"})
        body = json.loads(answer.text.removeprefix("data: "))
        assert answer.headers["x-request-id"] in message(body) and body["error"]["type"] == "server_error"
        assert answer.status_code == (200 if stream else 500) and "secret" not in answer.text
        assert client.get("/v1/sessions/a").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_whose_numbers_broke_is_told_of(tmp_path: Path, stream: bool) -> None:
    broken = copy.deepcopy(model())
    torch.nn.init.constant_(broken.norm.weight, float("nan"))
    with running_client(tmp_path, of=broken) as client:
        for path, body in (
            ("/v1/completions", {**BODY, "stream": stream, "temperature": 0}),
            ("/v1/sessions", {"name": "a"}),
        ):
            answer = client.post(path, json=body)
            told = message(json.loads(answer.text.removeprefix("data: ")))
            assert "not finite" in told and answer.status_code == (200 if "data: " in answer.text else 500)
        assert client.get("/v1/sessions/a").status_code == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example:8000", 400),
        ("", 400),
    ],
)
def test_only_names_of_this_machine_are_answered(tmp_path: Path, host: str, status: int) -> None:
    """A page whose own name resolves to 127.0.0.1 (DNS rebinding) still sends its name."""
    with running_client(tmp_path, hosts=LOOPBACK_HOSTS) as client:
        assert client.get("/v1/models", headers={"host": host}).status_code == status


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text(f"# of the team\nplain-key\n\n{hash_key('hashed-key')}\n")
    monkeypatch.setenv(ENVIRONMENT, "first-in-env, second-in-env")
    keys = Keys.collect(tmp_path / "keys")
    assert len(keys) == 4 and "plain-key" not in str(vars(keys))
    with running_client(tmp_path / "s", keys=keys) as client:
        for key in ("plain-key", "hashed-key", "first-in-env", "second-in-env"):
            for scheme in ("Bearer", "bearer"):
                headers = {"authorization": f"{scheme} {key}"}
                assert client.get("/v1/models", headers=headers).status_code == 200
        wrong = (
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer plain-ke",
            "plain-key",
            "Basic plain-key",
            f"Bearer {hash_key('plain-key')}",
        )
        for header in wrong:
            headers = {} if header is None else {"authorization": header}
            for path in ("/v1/models", "/metrics", "/v1/sessions", "/nowhere"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert "API key" in message(answer.json())
        for path in ("/health", "/", "/openapi.json"):
            assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "entry", ["sha256:123", "a key", "schlüssel", "", hash_key(""), hash_key("").upper()]
)
def test_what_is_no_key_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="API key"):
        Keys([entry])


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(ValueError, match="holds no API key"):
        Keys.collect(tmp_path / "keys")


def test_two_lengths_of_one_body_are_refused(tmp_path: Path) -> None:
    """A proxy that believes the other length would see another request behind this one."""
    with running_app(tmp_path) as app, running_server(app) as base:
        host, port = base.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 30) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            )
            answer = b""
            while part := client.recv(4096):  # until the server closes
                answer += part
    assert answer.startswith(b"HTTP/1.1 400") and b"both Content-Length and Transfer-Encoding" in answer


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("PUT", "/v1/sessions/a", {"GET", "HEAD", "DELETE"}),
        ("PATCH", "/v1/sessions", {"GET", "HEAD", "POST"}),
        ("GET", "/v1/completions", {"POST"}),
        ("HEAD", "/v1/completions", {"POST"}),
        ("DELETE", "/health", {"GET", "HEAD"}),
    ],
)
def test_an_address_says_what_it_takes(client: TestClient, method: str, path: str, allow: set[str]) -> None:
    answer = client.request(
        method, path, content=b"x" * 3000
    )  # neither JSON nor short: the method comes first
    assert answer.status_code == 405 and set(answer.headers["allow"].split(", ")) == allow
    assert len(answer.headers.get_list("allow")) == 1
    assert method == "HEAD" or all(name in message(answer.json()) for name in allow)


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models", "/v1/sessions", "/nowhere"])
def test_a_head_is_a_get_without_a_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.content == b"" and head.status_code == get.status_code
    assert head.headers["content-type"] == get.headers["content-type"]


def test_every_address_that_takes_a_body_takes_json_only(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    posts = [path for path, operations in paths.items() if "post" in operations]
    assert len(posts) >= 6
    for path in posts:
        answer = client.post(
            path.replace("{name}", "a"), content=b"{}", headers={"content-type": "text/plain"}
        )
        assert answer.status_code == 415, path


def test_openai_s_client_for_browsers_may_ask(tmp_path: Path) -> None:
    names = "authorization,content-type,x-stainless-lang,x-stainless-retry-count,x-stainless-helper-method"
    with running_client(tmp_path, cors_origins=["https://friend.example"], keys=Keys(["some-key"])) as client:
        headers = {"origin": "https://friend.example"}
        asks = {"access-control-request-method": "POST", "access-control-request-headers": names}
        answer = client.options("/v1/chat/completions", headers={**headers, **asks})
        assert answer.status_code == 200
        assert {*names.split(",")} <= {*answer.headers["access-control-allow-headers"].split(",")}
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == 401
        exposed = answer.headers["access-control-expose-headers"]
        assert "x-request-id" in exposed and "retry-after" in exposed


def test_the_access_log_tells_neither_texts_nor_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"authorization": "Bearer some-key"}
    with running_client(tmp_path, keys=Keys(["some-key"])) as client, caplog.at_level("INFO", "rmat.access"):
        answer = client.post(
            "/v1/completions?key=some-key", json={**BODY, "prompt": "private"}, headers=headers
        )
        client.get("/v1/sessions/a%0Ab", headers=headers)
    first, second = (record.getMessage() for record in caplog.records if record.name == "rmat.access")
    assert re.fullmatch(r"\S+ POST /v1/completions 200 \d+\.\d{3} s [0-9a-f]{32}", first), first
    assert answer.headers["x-request-id"] in first and "\n" not in second and "a%0Ab" in second


def test_the_page_may_run_its_own_script_only(client: TestClient, tmp_path: Path) -> None:
    answer = client.get("/")
    assert answer.status_code == 200 and answer.content == FILE.read_bytes()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert "unsafe" not in policy.partition("script-src")[2].partition(";")[0]
    app = FastAPI()
    app.include_router(page_routes(tmp_path / "none.html"))
    assert TestClient(app).get("/").status_code == 404


def test_answers_are_neither_guessed_at_nor_kept(client: TestClient) -> None:
    for answer in (client.get("/v1/models"), client.get("/nowhere"), client.post("/v1/completions")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers


def test_other_origins_are_let_in_by_name_only(tmp_path: Path) -> None:
    friend = "https://friend.example"
    with running_client(tmp_path, cors_origins=[friend], keys=Keys(["some-key"])) as client:
        for origin, allowed in ((friend, friend), ("https://evil.example", None)):
            headers = {"origin": origin, "access-control-request-method": "POST"}
            for answer in (
                client.options("/v1/completions", headers=headers),
                client.get("/", headers=headers),
            ):
                assert answer.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize(
    "limits",
    [
        {"max_seconds": 0},
        {"max_requests": -1},
        {"max_body_bytes": float("nan")},
        {"max_seconds": float("inf")},
        {"body_seconds": float("inf")},
    ],
)
def test_a_limit_must_leave_something(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(limits))}="):
        Limits(**limits)
