from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from starlette.testclient import TestClient
from tokenizers import decoders, models, pre_tokenizers

from rmat.data.tokenizer import load_tokenizer
from rmat.engine.request import TokenLogprob
from rmat.generation.stream import generate
from rmat.serving.completions import _Offsets, prompt_ids
from rmat.serving.limits import Limits
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
        {"min_p": 0.2, "presence_penalty": 1.5, "frequency_penalty": -0.5},
        {"seed": 2**63 - 1},
    ],
)
def test_settings_mean_what_they_mean_in_generate(client: TestClient, settings: dict[str, Any]) -> None:
    assert complete(client, **settings)["choices"][0]["text"] == alone(**settings)


def test_biases_are_by_token_id(client: TestClient) -> None:
    bias = {str(token): 100 for token in b"z"}
    assert complete(client, temperature=0, logit_bias=bias)["choices"][0]["text"] == "z" * 12
    forbidden = {str(token): -100 for token in set(alone().encode())}
    assert not set(complete(client, logit_bias=forbidden)["choices"][0]["text"]) & set(alone())


def test_a_least_length_comes_before_ends(client: TestClient) -> None:
    ends = {str(tokenizer().special_id(name)): 100 for name in ("document", "turn_end")}
    answer = complete(client, logit_bias=ends)
    assert answer["choices"][0]["finish_detail"] == "end" and answer["usage"]["completion_tokens"] <= 1
    stop = alone()[1]
    answer = complete(client, logit_bias=ends, min_tokens=5, stop=stop)
    assert len(answer["choices"][0]["text"]) == 5 and answer["choices"][0]["finish_detail"] == "end"


@pytest.mark.parametrize("top_k", [0, -1, None])
def test_no_top_k_in_the_words_of_other_servers(client: TestClient, top_k: int | None) -> None:
    assert complete(client, top_k=top_k)["choices"][0]["text"] == alone()


def test_tokenize_as_vllm_and_as_llama_cpp(client: TestClient) -> None:
    def tokenize(**body: Any) -> dict[str, Any]:
        answer = client.post("/tokenize", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    document, text = tokenizer().special_id("document"), list("hé".encode())
    vllm = tokenize(model=NAME, prompt="hé", return_token_strs=True)
    assert vllm["tokens"] == [document, *text] and vllm["count"] == 4 and vllm["max_model_len"] > 1000
    assert vllm["token_strs"] == ["<|document|>", "h", "bytes:\\xc3", "bytes:\\xa9"]
    assert tokenize(prompt="hé", add_special_tokens=False)["tokens"] == text
    assert tokenize(content="hé")["tokens"] == text
    assert tokenize(content="", add_special=True)["tokens"] == [document]
    pieces = tokenize(content="hé", with_pieces=True)["tokens"]
    assert pieces == [{"id": 104, "piece": "h"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]
    back = client.post("/detokenize", json={"tokens": vllm["tokens"]}).json()
    assert back == {"prompt": "<|document|>hé", "content": "<|document|>hé"}
    usage = complete(client, prompt="hé")["usage"]
    assert usage["prompt_tokens"] == vllm["count"], "a completion reads the same"


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("tokenize", {}, "give one of prompt, content and messages"),
        ("tokenize", {"prompt": "a", "content": "a"}, "give one of"),
        ("tokenize", {"prompt": "a", "model": "gpt"}, "there is no model 'gpt'"),
        ("tokenize", {"content": "a", "parse_special": True}, "parse_special is true: give False"),
        ("detokenize", {}, "tokens is missing"),
        ("detokenize", {"tokens": [999]}, "token id 999 is outside the vocabulary"),
    ],
)
def test_what_cannot_be_tokenized(client: TestClient, path: str, body: dict[str, Any], said: str) -> None:
    answer = client.post(f"/{path}", json=body)
    assert answer.status_code == (404 if "model" in body else 400)
    assert said in message(answer.json())


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


def prompt_logprobs(ids: list[int]) -> list[float]:
    """Of all but the first token, by the model alone."""
    with torch.no_grad():
        logits, _ = model()(torch.tensor([ids]))
    every = logits[0, :-1].log_softmax(-1)
    return [float(row[token]) for row, token in zip(every, ids[1:], strict=True)]


def test_echo_lists_the_log_probabilities_of_the_prompt(client: TestClient) -> None:
    long = "Tell me: " + PROMPT * 50  # read in several calls
    document = tokenizer().special_id("document")
    for _ in range(2):  # the second time, the prompt would be found in the cache
        choice = complete(client, prompt=long, echo=True, logprobs=2, temperature=0)["choices"][0]
        listed = choice["logprobs"]
        assert "".join(listed["tokens"]) == choice["text"] and choice["text"].startswith(long)
        assert listed["text_offset"] == list(range(len(choice["text"])))
        found = listed["token_logprobs"][: len(long)]
        assert found == pytest.approx(prompt_logprobs([document, *long.encode()]), abs=1e-4)
        assert all(len(top) in (2, 3) for top in listed["top_logprobs"])
    plain = complete(client, prompt=long, logprobs=2, temperature=0)["choices"][0]
    assert choice["text"] == long + plain["text"]
    assert listed["token_logprobs"][len(long) :] == pytest.approx(
        plain["logprobs"]["token_logprobs"], abs=1e-4
    )


def test_the_first_of_given_ids_has_no_log_probability(client: TestClient) -> None:
    """As lm-eval asks: ids in, all of them back, and the text they make scored."""
    ids = [tokenizer().special_id("document"), *PROMPT.encode()]
    choice = complete(client, prompt=[ids, ids[1:]], echo=True, logprobs=0, max_tokens=0)["choices"]
    for given, listed in zip(
        (ids, ids[1:]), (one["logprobs"]["token_logprobs"] for one in choice), strict=True
    ):
        assert listed[0] is None
        assert listed[1:] == pytest.approx(prompt_logprobs(given), abs=1e-4)
    assert choice[0]["logprobs"]["top_logprobs"][0] is None and choice[1]["text"] == PROMPT


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_echo_with_log_probabilities_streamed(client: TestClient, max_tokens: int) -> None:
    body = {
        "prompt": [PROMPT, "twice"],
        "max_tokens": max_tokens,
        "seed": 5,
        "echo": True,
        "logprobs": 1,
        "n": 2,
    }
    whole = client.post("/v1/completions", json=body).json()["choices"]
    parts = [
        part["choices"][0]
        for part in events(client.post("/v1/completions", json={**body, "stream": True}).text)
    ]
    for choice in whole:
        own = [part for part in parts if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        for name in ("tokens", "token_logprobs", "text_offset"):
            told = [entry for part in own if part["logprobs"] for entry in part["logprobs"][name]]
            listed = choice["logprobs"][name]
            assert told == (pytest.approx(listed, abs=1e-4) if name == "token_logprobs" else listed)


def test_in_a_session_the_first_token_follows_on_what_was_read(client: TestClient) -> None:
    complete(client, session="scored", max_tokens=0)
    answer = complete(client, session="scored", prompt=" there", max_tokens=0, echo=True, logprobs=0)
    ids = [tokenizer().special_id("document"), *PROMPT.encode(), *b" there"]
    found = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert found == pytest.approx(prompt_logprobs(ids)[-6:], abs=1e-4)


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
        ({"echo": True, "logprobs": 1, "suffix": "x"}, "leave one out"),
        ({"echo": True, "logprobs": 20, "prompt": "x" * 7000}, "would list 147021 numbers, at most 131072"),
        ({"prompt": [0, 300]}, "below 265"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": {"a": 1}}, "prompt: give text"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"best_of": 4}, "best_of is not supported"),
        ({"logit_bias": {"five": 3}}, "logit_bias: give token ids with numbers"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": 1, "300": 1}}, "logit_bias=300 is not possible: token ids must be below 265"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5: give a number of at most 2"),
        ({"min_p": -1}, "min_p is -1"),
        ({"min_tokens": 3}, "min_tokens is 3, but max_tokens is 2"),
        ({"top_k": -2}, "top_k is -2: give a number of -1 or more"),
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


@pytest.mark.parametrize("body", [{"temperature": 0}, {"max_tokens": 0}, {"stream": True}])
def test_numbers_that_are_not_finite_are_told(tmp_path: Path, body: dict[str, Any]) -> None:
    with running_client(tmp_path, seed=9) as client:
        norm = client.app.state.service.model.norm.weight  # type: ignore[attr-defined]
        whole = norm.detach().clone()
        try:
            with torch.no_grad():
                norm.fill_(float("nan"))
            answer = client.post("/v1/completions", json={"prompt": PROMPT, "session": "a", **body})
            assert "numbers are not finite" in answer.text
            assert body.get("stream") or (answer.status_code, answer.headers["x-should-retry"]) == (
                500,
                "false",
            )
            assert client.get("/v1/sessions").json()["data"] == [], "nothing broken is kept"
        finally:
            with torch.no_grad():
                norm.copy_(whole)


def test_a_prompt_that_takes_too_long_is_the_clients(tmp_path: Path) -> None:
    limits = Limits(max_seconds=0.05)
    with running_client(tmp_path, limits=limits) as client:
        answer = client.post("/v1/completions", json={"prompt": "x" * 200_000})
    assert answer.status_code == 413 and "retry-after" not in answer.headers
    said = message(answer.json())
    assert "the prompt of 200001 tokens was not read in the time" in said and "again" not in said


def test_offsets_are_places_in_the_text_whatever_the_tokenizer(tmp_path: Path) -> None:
    """Tokens of words stand apart from each other, but not from the beginning of a text."""
    words = ["[UNK]", "hello", "##ing", "play", "world"]
    backend = tokenizers.Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    backend.save(str(tmp_path / "words.json"))
    offsets = _Offsets(load_tokenizer(str(tmp_path / "words.json")))

    def scored(*tokens: int) -> list[TokenLogprob]:
        return [TokenLogprob(token=token, logprob=-1.0, top=()) for token in tokens]

    assert offsets.listed(scored(3, 2, 4), scored(1))["text_offset"] == [0, 4, 7, 13]  # playing world|hello
    assert offsets.listed((), scored(2, 4))["text_offset"] == [18, 21]
