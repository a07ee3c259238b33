"""Requests that nobody would think of: whatever comes, an answer of the documented shape comes back, and
never a 5xx."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from rmat.serving.limits import Limits
from tests.makers.servers import NAME, message, running_client

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
BOUNDED = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Answers are short and texts few, so that many requests fit into a test."""
    limits = Limits(max_new_tokens=4, max_choices=2, max_seconds=20, session_seconds=0.5)
    with running_client(tmp_path_factory.mktemp("sessions"), limits=limits) as client:
        yield client


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_as_documented(client: TestClient, mode: GenerationMode) -> None:
    """Every operation of the OpenAPI schema, with requests that fit the schema, and with ones that do not."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters):
            continue

        @settings(max_examples=12, **BOUNDED)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS)

        check()
        tried.add(operation.label)
    assert len(tried) >= 9


TEXTS = st.text(max_size=20) | st.sampled_from(["a", NAME, "text", "user", "<|document|>", "\ud800", "\0"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 2, -1, 2**31, 2**63, -(2**63), 10**40, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = {
    "/v1/completions": [
        "prompt",
        "suffix",
        "echo",
        "logprobs",
        "n",
        "session",
        "stream",
        "stop",
        "seed",
        "model",
    ],
    "/v1/chat/completions": [
        "messages",
        "top_logprobs",
        "logprobs",
        "n",
        "tools",
        "stream",
        "max_tokens",
        "user",
    ],
}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
}


@pytest.mark.parametrize("path", FIELDS)
@settings(max_examples=80, **BOUNDED)
@given(data=st.data())
def test_any_value_in_any_field_is_answered(client: TestClient, path: str, data: st.DataObject) -> None:
    """A good body of which a field or two is anything, also what strict JSON cannot express."""
    changed = data.draw(st.dictionaries(st.sampled_from(FIELDS[path]), VALUES, min_size=1, max_size=2))
    answer = client.post(
        path,
        content=json.dumps({**GOOD[path], **changed}).encode(),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert message(answer.json())


@settings(max_examples=80, **BOUNDED)
@given(body=st.binary(max_size=60) | TEXTS.map(lambda text: json.dumps(text).encode()))
def test_any_bytes_are_answered(client: TestClient, body: bytes) -> None:
    for path in (*FIELDS, "/v1/sessions", "/v1/sessions/a/read", "/v1/sessions/a/fork"):
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and message(answer.json())


@settings(max_examples=60, **BOUNDED)
@given(
    name=st.text(min_size=1, max_size=20)
    | st.sampled_from(["..", "%2e%2e", "a/../b", ".hidden", "con", "x" * 65])
)
def test_any_session_name_is_answered(client: TestClient, name: str) -> None:
    answer = client.post(
        "/v1/sessions", content=json.dumps({"name": name}), headers={"content-type": "application/json"}
    )
    assert answer.status_code in (201, 400, 409), answer.text
    if answer.status_code == 201:
        assert client.delete(f"/v1/sessions/{name}").status_code == 200
