import errno
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI
from starlette.testclient import TestClient

from rmat.serving.auth import Keys
from rmat.serving.limits import Limits
from rmat.sessions.store import SessionStore
from tests.makers.servers import (
    NAME,
    message,
    model,
    running_app,
    running_client,
    running_server,
    tokenizer,
)

TEXT = "the quick brown fox jumps over the lazy dog"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with running_client(tmp_path, limits=Limits(session_seconds=0.2)) as client:
        yield client


def ok(answer: Any, status: int = 200) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def names(client: TestClient, **options: Any) -> set[str]:
    return {entry["name"] for entry in ok(client.get("/v1/sessions", **options))["data"]}


def test_a_life(client: TestClient) -> None:
    assert names(client) == set()
    created = ok(client.post("/v1/sessions", json={"name": "book"}), 201)
    assert created["tokens_read"] == 1 and created["turns"] == 0 and created["bytes"] > 0
    read = ok(client.post("/v1/sessions/book/read", json={"text": TEXT}))
    assert read["tokens_read"] == 1 + len(TEXT)
    assert read["created"] == created["created"] <= read["used"]
    assert ok(client.post("/v1/sessions/book/fork", json={"name": "copy"}), 201)["name"] == "copy"
    assert ok(client.post("/v1/sessions/copy/rename", json={"name": "other"}))["name"] == "other"
    assert names(client) == {"book", "other"}
    assert ok(client.delete("/v1/sessions/book"))["deleted"]
    assert names(client) == {"other"}
    shown = ok(client.get("/v1/sessions/other"))
    assert shown["tokens_read"] == 1 + len(TEXT) and shown["history"] == []


def test_what_was_read_counts_and_is_not_read_again(client: TestClient) -> None:
    """A completion in the session equals one with the whole text."""
    ok(client.post("/v1/sessions", json={"name": "a"}), 201)
    ok(client.post("/v1/sessions/a/read", json={"text": TEXT}))
    body = {"prompt": " and", "max_tokens": 10, "seed": 1}
    going_on = ok(client.post("/v1/completions", json={**body, "session": "a"}))
    whole = ok(client.post("/v1/completions", json={**body, "prompt": TEXT + " and"}))
    assert going_on["choices"][0]["text"] == whole["choices"][0]["text"]
    assert going_on["usage"]["prompt_tokens"] == len(" and")
    assert ok(client.get("/v1/sessions/a"))["tokens_read"] == whole["usage"]["total_tokens"]


def test_a_session_goes_on_without_a_prompt(client: TestClient) -> None:
    body = {"max_tokens": 8, "temperature": 0}
    whole = ok(client.post("/v1/completions", json={**body, "prompt": TEXT, "max_tokens": 16}))
    first = ok(client.post("/v1/completions", json={**body, "prompt": TEXT, "session": "a"}))
    second = ok(client.post("/v1/completions", json={**body, "prompt": "", "session": "a"}))
    texts = [answer["choices"][0]["text"] for answer in (first, second, whole)]
    assert texts[0] + texts[1] == texts[2]


def test_forks_go_on_apart(client: TestClient) -> None:
    ok(client.post("/v1/completions", json={"prompt": TEXT, "session": "a", "max_tokens": 0}))
    ok(client.post("/v1/sessions/a/fork", json={"name": "b"}), 201)
    ok(client.post("/v1/sessions/b/read", json={"text": "more"}))
    sizes = {entry["name"]: entry["tokens_read"] for entry in ok(client.get("/v1/sessions"))["data"]}
    assert sizes == {"a": 1 + len(TEXT), "b": 5 + len(TEXT)}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/v1/sessions/none", None, 404, "none"),
        ("DELETE", "/v1/sessions/none", None, 404, "none"),
        ("GET", "/v1/sessions/none/memory", None, 404, "none"),
        ("POST", "/v1/sessions/none/read", {"text": "a"}, 404, "none"),
        ("POST", "/v1/sessions/none/fork", {"name": "b"}, 404, "none"),
        ("POST", "/v1/sessions/none/rename", {"name": "b"}, 404, "none"),
        ("POST", "/v1/sessions", {"name": "there"}, 409, "already"),
        ("POST", "/v1/sessions/there/fork", {"name": "there"}, 409, "there"),
        ("POST", "/v1/sessions", {"name": "../x"}, 400, "name"),
        ("POST", "/v1/sessions", {"name": "aux.txt"}, 400, "device"),
        ("POST", "/v1/sessions", {}, 400, "name is missing"),
        ("POST", "/v1/sessions/there/read", {"text": ""}, 400, "text"),
        ("GET", "/v1/sessions/.hidden", None, 400, "name"),
        ("GET", "/v1/sessions/%2e%2e%2fx", None, 404, "no such address"),
    ],
)
def test_what_cannot_be_is_said(
    client: TestClient, tmp_path: Path, method: str, path: str, body: Any, status: int, said: str
) -> None:
    ok(client.post("/v1/sessions", json={"name": "there"}), 201)
    answer = client.request(method, path, json=body) if body is not None else client.request(method, path)
    assert answer.status_code == status, answer.text
    assert said in message(answer.json()) and str(tmp_path) not in answer.text
    assert "rmat " not in message(answer.json()), "whoever asks over HTTP may have no command line"


def test_a_busy_session_answers_409(client: TestClient, tmp_path: Path) -> None:
    ok(client.post("/v1/sessions", json={"name": "a"}), 201)
    requests: list[tuple[str, str, Any]] = [
        ("POST", "/v1/sessions/a/read", {"text": "x"}),
        ("POST", "/v1/completions", {"session": "a"}),
        ("POST", "/v1/chat/completions", {"session": "a", "messages": [{"role": "user", "content": "x"}]}),
        ("POST", "/v1/sessions/a/rename", {"name": "b"}),
        ("DELETE", "/v1/sessions/a", None),
    ]
    with SessionStore(tmp_path / "public").lock("a"):
        for method, path, body in requests:
            answer = client.request(method, path, **({} if body is None else {"json": body}))
            assert answer.status_code == 409, (path, answer.text)
            assert "retry-after" in answer.headers and "wait" in message(answer.json())
        assert ok(client.get("/v1/sessions/a"))["tokens_read"] == 1
    assert ok(client.post("/v1/sessions/a/read", json={"text": "x"}))["tokens_read"] == 2


def test_a_refused_request_leaves_the_session_free(client: TestClient) -> None:
    for body in ({"prompt": [999]}, {"prompt": "x" * 2**20}):
        assert client.post("/v1/completions", json={**body, "session": "a"}).status_code == 400
    assert ok(client.post("/v1/completions", json={"prompt": "x", "session": "a"}))


def test_sessions_are_private_to_their_key(tmp_path: Path) -> None:
    one, other = ({"headers": {"authorization": f"Bearer {key}"}} for key in ("first-key", "second-key"))
    with running_client(tmp_path, keys=Keys(["first-key", "second-key"])) as client:
        ok(client.post("/v1/sessions", json={"name": "mine"}, **one), 201)
        assert names(client, **one) == {"mine"} and names(client, **other) == set()
        assert client.get("/v1/sessions/mine", **other).status_code == 404
        ok(client.post("/v1/sessions", json={"name": "mine"}, **other), 201)
    assert not any("key" in path.name for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2


def test_what_one_key_asked_is_not_in_the_cache_of_another(tmp_path: Path) -> None:
    """Else the time to an answer would tell whether somebody asked the same."""
    with running_client(tmp_path, keys=Keys(["first-key", "second-key"])) as client:
        cached = [
            client.post(
                "/v1/completions",
                json={"prompt": TEXT * 10, "max_tokens": 1},
                headers={"authorization": f"Bearer {key}"},
            ).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            for key in ("first-key", "second-key", "first-key", "second-key")
        ]
    assert cached[:2] == [0, 0] and min(cached[2:]) > 100


def test_a_session_of_other_weights_is_refused(client: TestClient, tmp_path: Path) -> None:
    ok(client.post("/v1/sessions", json={"name": "a"}), 201)
    with running_client(tmp_path, seed=1) as other:
        answer = other.post("/v1/completions", json={"prompt": "x", "session": "a"})
        assert answer.status_code == 400 and "read by the model" in message(answer.json())


def test_a_damaged_session_is_refused_until_it_is_deleted_or_created_anew(
    client: TestClient, tmp_path: Path
) -> None:
    """With a status that clients do not repeat, and never an empty session in its place."""
    file = tmp_path / "public" / "a.safetensors"
    chat = {"session": "a", "messages": [{"role": "user", "content": "x"}]}
    for anew in (False, True):
        ok(client.post("/v1/sessions", json={"name": "a"}), 201)
        file.write_bytes(b"no session")
        for _ in range(2):
            for method, path, body in [
                ("POST", "/v1/completions", {"prompt": "x", "session": "a"}),
                ("POST", "/v1/chat/completions", chat),
                ("POST", "/v1/sessions/a/read", {"text": "x"}),
                ("POST", "/v1/sessions/a/fork", {"name": "b"}),
                ("GET", "/v1/sessions/a", None),
                ("GET", "/v1/sessions/a/memory", None),
            ]:
                answer = client.request(method, path, **({} if body is None else {"json": body}))
                assert answer.status_code == 410 and "damaged" in message(answer.json()), path
                assert answer.json()["error"]["code"] == "session_damaged"
                assert str(tmp_path) not in answer.text
        assert file.read_bytes() == b"no session"
        assert ok(client.get("/v1/sessions"))["damaged"] == ["a"]
        if not anew:
            ok(client.delete("/v1/sessions/a"))
    assert ok(client.post("/v1/sessions", json={"name": "a"}), 201)["tokens_read"] == 1
    assert ok(client.post("/v1/chat/completions", json={**chat, "max_tokens": 1}))
    assert ok(client.get("/v1/sessions"))["damaged"] == []
    assert [path.read_bytes() for path in (tmp_path / "public" / "quarantine").iterdir()] == [b"no session"]


def test_openai_asks_a_damaged_session_once(tmp_path: Path) -> None:
    with running_app(tmp_path) as app:
        with (
            running_server(app) as address,
            OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=3) as client,
        ):
            client.completions.create(model=NAME, prompt="x", max_tokens=1, extra_body={"session": "a"})
            (tmp_path / "public" / "a.safetensors").write_bytes(b"no session")
            with pytest.raises(openai.APIStatusError, match="damaged"):
                client.completions.create(model=NAME, prompt="x", max_tokens=1, extra_body={"session": "a"})
        # A request counts once its answer is sent, a moment after its client has it: the server ended first.
        counted = app.state.metrics.text().decode()
        assert re.findall(r'rmat_requests_total{.*status="410"} (\S+)', counted) == ["1.0"], counted


def test_a_full_disk_is_told_and_not_asked_again(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(client.post("/v1/sessions", json={"name": "a"}), 201)
    before = (tmp_path / "public" / "a.safetensors").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        for path, body in (
            ("/v1/sessions/a/read", {"text": "x"}),
            ("/v1/completions", {"prompt": "x", "session": "a", "max_tokens": 1}),
            ("/v1/sessions/a/fork", {"name": "b"}),
            ("/v1/sessions", {"name": "c"}),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 507 and "disk is full" in message(answer.json()), path
            assert answer.headers["x-should-retry"] == "false" and str(tmp_path) not in answer.text
    assert names(client) == {"a"} and (tmp_path / "public" / "a.safetensors").read_bytes() == before
    assert ok(client.post("/v1/sessions/a/read", json={"text": "x"}))


def test_what_can_be_known_before_is_refused_before_the_work(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that differs by case, another model's session: nothing is read by the engine."""
    ok(client.post("/v1/sessions", json={"name": "Notes"}), 201)

    def submit(*_: object) -> None:
        raise AssertionError("work was done")

    chat = {"messages": [{"role": "user", "content": "x"}]}
    with running_client(tmp_path, seed=1) as other:
        monkeypatch.setattr("rmat.engine.engine.Engine.submit", submit)
        for asked, name, status, code in (
            (client, "notes", 409, "session_exists"),
            (other, "Notes", 400, "other_model"),
        ):
            for path, body in (
                ("/v1/completions", {"prompt": "x", "session": name}),
                ("/v1/chat/completions", {**chat, "session": name}),
                (f"/v1/sessions/{name}/read", {"text": "x"}),
            ):
                answer = asked.post(path, json=body)
                assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
                assert status != 409 or answer.headers["x-should-retry"] == "false"
        assert client.post("/v1/sessions", json={"name": "NOTES"}).status_code == 409
        seen = [ok(each.get("/v1/sessions"))["data"][0] for each in (client, other)]
    assert [(entry["usable"], entry["model"]) for entry in seen] == [(True, "tiny"), (False, None)]


def test_a_session_in_use_can_be_forked_as_it_was_saved_last(client: TestClient, tmp_path: Path) -> None:
    ok(client.post("/v1/completions", json={"prompt": TEXT, "session": "a", "max_tokens": 0}))
    with SessionStore(tmp_path / "public").lock("a"):
        assert ok(client.post("/v1/sessions/a/fork", json={"name": "b"}), 201)["tokens_read"] == 1 + len(TEXT)
    with SessionStore(tmp_path / "public").lock("c"):
        assert client.post("/v1/sessions/a/fork", json={"name": "c"}).status_code == 409


def test_documents_that_were_read_are_named(client: TestClient) -> None:
    ok(client.post("/v1/sessions", json={"name": "a"}), 201)
    for text, name in (("x\u00e4", "one.txt"), ("yy", "two.txt"), ("zzz", "two.txt"), ("w", None)):
        named = {} if name is None else {"name": name}
        ok(client.post("/v1/sessions/a/read", json={"text": text, **named}))
    documents = [
        {"name": "one.txt", "bytes": 3, "bytes_read": 3, "tokens": 3},
        {"name": "two.txt", "bytes": 5, "bytes_read": 5, "tokens": 5},
    ]
    assert ok(client.get("/v1/sessions/a"))["documents"] == documents
    assert ok(client.get("/v1/sessions"))["data"][0]["documents"] == documents
    assert client.post("/v1/sessions/a/read", json={"text": "x", "name": ""}).status_code == 400


def test_the_memory_shows_where_slots_come_from(client: TestClient, tmp_path: Path) -> None:
    """What the view says is what a bank holds that was filled by calling the model directly."""
    ok(client.post("/v1/sessions", json={"name": "a"}), 201)
    ok(client.post("/v1/sessions/a/read", json={"text": TEXT}))
    view = ok(client.get("/v1/sessions/a/memory"))
    ids = [tokenizer().special_id("document"), *tokenizer().encode(TEXT)]
    with torch.no_grad():
        _, state = model()(torch.tensor([ids]))
    assert view["tokens_read"] == len(ids)
    start = len(ids) - len(ids) % 16
    for shown, layer in zip(view["layers"], state.layers, strict=True):
        assert (memory := layer.memory) is not None
        assert shown["slots"] == shown["filled"] == 8 and shown["pushed"] == int(memory.pushed)
        assert math.isclose(shown["openness"], shown["pushed"] / len(ids))
        for slot, held in enumerate(shown["held"]):
            assert held["slot"] == slot and held["age"] == int(memory.slots.age[0, slot])
            assert math.isclose(held["gate"], float(memory.slots.log_gate[0, slot].exp()), rel_tol=1e-4)
            place = start - held["age"]
            assert held["token"] == (TEXT[place - 1] if place else "<|document|>")
            assert held["text"] == ("\n" if place <= 48 else "") + TEXT[max(0, place - 49) : place + 24]
            if place:
                assert held["text"][held["start"] :].startswith(held["token"])
                assert held["start"] == min(place - 1, 48) + (place <= 48)


def test_words_older_than_the_tail_are_unknown(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmat.sessions.file.TAIL_TOKENS", 20)
    ok(client.post("/v1/sessions", json={"name": "a"}), 201)
    ok(client.post("/v1/sessions/a/read", json={"text": TEXT}))
    view = ok(client.get("/v1/sessions/a/memory"))
    place_of_first = 1 + len(TEXT) - 20
    start = (1 + len(TEXT)) // 16 * 16
    entries = [entry for layer in view["layers"] for entry in layer["held"]]
    for entry in entries:
        known = start - entry["age"] >= place_of_first
        assert (entry["token"] is not None) == (entry["text"] is not None) == known
    assert len({entry["token"] is None for entry in entries}) == 2
