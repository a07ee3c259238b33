import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from rmat.serving.auth import Keys
from rmat.serving.limits import Limits
from rmat.sessions.store import SessionStore
from tests.makers.servers import message, model, running_client, tokenizer

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


def test_a_damaged_session_is_told_without_where_it_lies(client: TestClient, tmp_path: Path) -> None:
    ok(client.post("/v1/sessions", json={"name": "a"}), 201)
    (tmp_path / "public" / "a.safetensors").write_bytes(b"no session")
    answer = client.post("/v1/completions", json={"prompt": "x", "session": "a"})
    assert answer.status_code == 409 and "damaged" in message(answer.json())
    assert str(tmp_path) not in answer.text


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
