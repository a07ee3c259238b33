from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from rmat.generation.stream import generate
from rmat.serving.completions import prompt_ids
from tests.makers.servers import NAME, events, message, model, running_client, tokenizer

PROMPT = "once upon a time"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with running_client(tmp_path_factory.mktemp("sessions")) as client:
        yield client


def complete(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 12, "seed": 5, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def alone(prompt: str | list[int] = PROMPT, **options: Any) -> str:
    """What `rmat.generate` writes without a server."""
    settings = {"temperature": 1.0, "seed": 5, "max_new_tokens": 12, **options}
    return "".join(generate(model(), tokenizer(), prompt, **settings))


def test_the_text_is_that_of_generate(client: TestClient) -> None:
    answer = complete(client)
    assert answer["object"] == "text_completion" and answer["model"] == NAME
    assert [choice["text"] for choice in answer["choices"]] == [alone()]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 1 + len(PROMPT),
        "completion_tokens": 12,
        "total_tokens": 13 + len(PROMPT),
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 0.5, "top_p": 0.7},
        {"top_k": 3, "repetition_penalty": 1.5},
        {"seed": 2**63 - 1},
    ],
)
def test_settings_mean_what_they_mean_in_generate(client: TestClient, settings: dict[str, Any]) -> None:
    assert complete(client, **settings)["choices"][0]["text"] == alone(**settings)


def test_a_text_is_16_tokens_long_if_nothing_is_said(client: TestClient) -> None:
    answer = client.post("/v1/completions", json={"prompt": PROMPT}).json()
    assert answer["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_strings_end_the_text(client: TestClient, as_list: bool) -> None:
    whole = alone()
    stop = whole[5:7]
    answer = complete(client, stop=[stop, "never written"] if as_list else stop)
    assert answer["choices"][0]["text"] == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_choices_have_seeds_that_follow_on_each_other(client: TestClient) -> None:
    answer = complete(client, n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in answer["choices"]] == [alone(seed=seed) for seed in (5, 6, 7)]
    assert answer["usage"]["prompt_tokens"] == 1 + len(PROMPT)
    assert answer["usage"]["completion_tokens"] == 36


def test_several_prompts_at_once(client: TestClient) -> None:
    answer = complete(client, prompt=[PROMPT, "twice"], n=2)
    assert [choice["text"] for choice in answer["choices"]] == [
        alone(prompt, seed=seed) for prompt in (PROMPT, "twice") for seed in (5, 6)
    ]
    assert answer["usage"]["prompt_tokens"] == 2 + len(PROMPT) + len("twice")


def test_token_ids_are_taken_as_they_are(client: TestClient) -> None:
    ids = tokenizer().encode(PROMPT)
    answer = complete(client, prompt=ids)
    assert answer["choices"][0]["text"] == alone(ids) != alone()
    assert answer["usage"]["prompt_tokens"] == len(PROMPT)
    assert complete(client, prompt=[ids, ids])["choices"][1]["text"] == alone(ids)


def test_echo_puts_the_prompt_before_the_text(client: TestClient) -> None:
    assert complete(client, echo=True)["choices"][0]["text"] == PROMPT + alone()
    body = {"prompt": PROMPT, "max_tokens": 3, "seed": 5, "echo": True, "stream": True}
    parts = events(client.post("/v1/completions", json=body).text)
    text = "".join(part["choices"][0]["text"] for part in parts)
    assert text == PROMPT + alone(max_new_tokens=3)


def test_a_gap_is_told_suffix_first() -> None:
    special = tokenizer().special_id
    expected = [
        special("document"),
        special("fim_suffix"),
        *b"after",
        special("fim_prefix"),
        *b"before",
        special("fim_middle"),
    ]
    assert prompt_ids(tokenizer(), "before", "after", True) == expected
    assert prompt_ids(tokenizer(), "before", "after", False) == expected[1:]


def test_a_suffix_makes_it_a_gap(client: TestClient) -> None:
    answer = complete(client, suffix="the end")
    assert answer["choices"][0]["text"] == alone(prompt_ids(tokenizer(), PROMPT, "the end", True))


def test_streamed_pieces_are_the_whole_text(client: TestClient) -> None:
    body = {
        "prompt": PROMPT,
        "max_tokens": 12,
        "seed": 5,
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = client.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *parts, last = events(answer.text)
    for index in (0, 1):
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == alone(seed=5 + index)
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["length"]
    assert all(part["usage"] is None and part["id"] == last["id"] for part in parts)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 24


def test_log_probabilities_are_those_of_the_tokens(client: TestClient) -> None:
    choice = complete(client, temperature=0, logprobs=3)["choices"][0]
    listed = choice["logprobs"]
    assert "".join(listed["tokens"]) == choice["text"]
    assert listed["text_offset"] == list(range(12))
    for token, logprob, top in zip(
        listed["tokens"], listed["token_logprobs"], listed["top_logprobs"], strict=True
    ):
        assert len(top) == 3 and top[token] == logprob == max(top.values()) < 0
    assert complete(client)["choices"][0]["logprobs"] is None


def test_a_prompt_that_begins_alike_is_not_read_again(client: TestClient) -> None:
    long = PROMPT * 40
    first, second = (complete(client, prompt=long) for _ in range(2))
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= len(long) // 2
    assert second["usage"]["prompt_tokens"] == 1 + len(long)
    assert first["choices"][0]["text"] == second["choices"][0]["text"] == alone(long)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"model": "gpt"}, "no model 'gpt'"),
        ({"max_tokens": 5000}, "max_tokens is 5000: this server writes at most 4096"),
        ({"n": 5, "prompt": ["a"] * 4}, "at most 16"),
        ({"n": 2, "session": "a"}, "one answer"),
        ({"echo": True, "logprobs": 1}, "leave one out"),
        ({"prompt": [0, 300]}, "below 265"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": {"a": 1}}, "prompt: give text"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"best_of": 4}, "best_of is not supported"),
        ({"logit_bias": {"5": 3}}, "logit_bias is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
        ({"temprature": 1}, "no field 'temprature'"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"stop": ""}, "stop: give a text"),
        ({"stop": ["a"] * 17}, "stop: give a text"),
        ({"stream_options": {"include_usage": True}}, "stream: true"),
        ({"max_tokens": True}, "max_tokens"),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, body: dict[str, Any], said: str) -> None:
    answer = client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 2, **body})
    assert answer.status_code == (404 if "model" in body else 400), answer.text
    assert said in message(answer.json())


def test_what_does_not_change_the_answer_is_accepted(client: TestClient) -> None:
    harmless = {"user": "me", "metadata": {"a": "b"}, "logit_bias": {}, "presence_penalty": 0, "best_of": 1}
    assert complete(client, **harmless)["choices"][0]["text"] == alone()
