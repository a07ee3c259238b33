"""Answers of a form: JSON, JSON by a schema, one form for each request of a batch."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from tests.makers.servers import events, message, running_app, running_client, running_server

USER = {"role": "user", "content": "which animal?"}
ANIMAL: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["kind", "legs"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with running_client(tmp_path_factory.mktemp("sessions")) as client:
        yield client


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(
        "/v1/chat/completions",
        json={"messages": [USER], "max_tokens": 120, "temperature": 2, "seed": 1, **body},
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_every_choice_is_valid_by_the_schema(client: TestClient) -> None:
    choices = ask(client, response_format=form(ANIMAL), n=3)["choices"]
    for choice in choices:
        assert (choice["finish_reason"], choice["finish_detail"]) == ("stop", "end")
        jsonschema_rs.validate(ANIMAL, json.loads(choice["message"]["content"]))
    assert len({choice["message"]["content"] for choice in choices}) == 3, "each has a place of its own"


def test_rows_of_one_batch_have_forms_of_their_own(client: TestClient) -> None:
    """Three forms and none, written side by side, are what each is alone."""
    bodies: list[dict[str, Any]] = [
        {"response_format": form(ANIMAL)},
        {"response_format": form(LIST)},
        {"response_format": {"type": "text"}, "max_tokens": 30},
        {"max_tokens": 30},
    ]
    alone = [ask(client, **body)["choices"][0]["message"]["content"] for body in bodies]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda body: ask(client, **body), bodies))
    together = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert together == alone
    jsonschema_rs.validate(ANIMAL, json.loads(together[0]))
    jsonschema_rs.validate(LIST, json.loads(together[1]))
    assert together[2] == together[3] and len(together[3]) == 30


def test_streamed_it_is_the_same(client: TestClient) -> None:
    body = {
        "messages": [USER],
        "max_tokens": 120,
        "temperature": 2,
        "seed": 1,
        "response_format": form(ANIMAL),
    }
    answer = client.post("/v1/chat/completions", json={**body, "stream": True})
    parts = [chunk["choices"][0] for chunk in events(answer.text)]
    text = "".join(part["delta"].get("content", "") for part in parts)
    assert text == ask(client, response_format=form(ANIMAL))["choices"][0]["message"]["content"]
    assert parts[-1]["finish_reason"] == "stop"


def test_an_answer_that_max_tokens_cut_says_so(client: TestClient) -> None:
    choice = ask(client, response_format=form(ANIMAL), max_tokens=3)["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"].startswith("{")


def test_a_completion_and_a_session_take_a_form_too(client: TestClient) -> None:
    body = {"prompt": "animal: ", "max_tokens": 120, "seed": 1, "session": "animals"}
    for _ in range(2):
        answer = client.post("/v1/completions", json={**body, "response_format": form(ANIMAL)})
        jsonschema_rs.validate(ANIMAL, json.loads(answer.json()["choices"][0]["text"]))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"type": "xml"}, "response_format.type is \"xml\": give 'text', 'json_object' or 'json_schema'"),
        ({"type": "json_schema"}, 'response_format: give a json_schema with the type "json_schema"'),
        ({"type": "json_object", "json_schema": {"schema": {}}}, "and with no other"),
        (
            {"type": "json_schema", "json_schema": {"name": "x"}},
            "response_format.json_schema.schema is missing",
        ),
        ({"type": "json_schema", "json_schema": {"schema": 3}}, "schema is 3: give an object"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "scheme": 1}}, "there is no field"),
        (form({"type": "foo"}), "cannot be followed (failed to compile JSON schema: Invalid type: foo)"),
        (form({"$ref": "#/x"}), "Pointer '/x' does not exist"),
    ],
)
def test_a_bad_form_is_one_sentence(client: TestClient, wanted: dict[str, Any], said: str) -> None:
    for stream in (False, True):
        body = {"messages": [USER], "response_format": wanted, "stream": stream}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400, answer.text
        assert said in message(answer.json()) and "\n" not in message(answer.json())


class Animal(BaseModel):
    kind: str
    owners: list["Person"]


class Person(BaseModel):
    age: int


def test_the_client_parses_into_its_own_types(tmp_path: Path) -> None:
    """OpenAI's client sends the schema of a pydantic model and reads the answer into it."""
    with (
        running_app(tmp_path) as app,
        running_server(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        answer = client.chat.completions.parse(
            model="tiny",
            messages=[{"role": "user", "content": "which animal?"}],
            response_format=Animal,
            max_tokens=400,
            seed=1,
            logit_bias={str(ord('"')): 30, str(ord("]")): 30, str(ord("}")): 30, str(ord(",")): 30},
        )
    assert isinstance(answer.choices[0].message.parsed, Animal)
