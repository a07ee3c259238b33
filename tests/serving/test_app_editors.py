"""What editors send, as they send it."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from rmat.generation.stream import generate
from tests.makers.servers import (
    NAME,
    events,
    message,
    model,
    running_app,
    running_client,
    running_server,
    tokenizer,
)
from tests.makers.tools import tool_tokenizer

BEFORE, LINE, BEHIND = "import os\n\n\ndef main():\n", "    for name in os.", "\n\n\nmain()\n"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with running_client(tmp_path_factory.mktemp("sessions")) as client:
        yield client


def post(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body, headers={"authorization": "Bearer none", "x-api-key": ""})
    assert answer.status_code == 200, answer.text
    return answer


def filled(before: str, behind: str | None, extra: str = "", n: int = 8, **options: Any) -> str:
    """What the model writes alone for a gap told as in training."""
    text, special = tokenizer(), tokenizer().special_id
    gap = text.encode(before)
    if behind is not None:
        marks = [special(f"fim_{part}") for part in ("suffix", "prefix", "middle")]
        gap = [marks[0], *text.encode(behind), marks[1], *gap, marks[2]]
    other = [special("file_name"), *text.encode(extra)] if extra else []
    ids = [special("document"), *other, *gap]
    return "".join(generate(model(), text, ids, max_new_tokens=n, **{"temperature": 0.0, **options}))


LLAMA_VIM: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": BEFORE,
    "input_suffix": BEHIND,
    "input_extra": [{"text": "VAT = 0.19\n", "time": [1764, -3], "filename": "shop/prices.py"}],
    "prompt": LINE,
    "n_predict": 8,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.99,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": ["content", "timings/prompt_n", "timings/prompt_ms", "truncated", "tokens_cached"],
}


def test_llama_vim_asks_for_a_gap(client: TestClient) -> None:
    answer = post(client, "/infill", LLAMA_VIM).json()
    assert answer["content"] == filled(BEFORE + LINE, BEHIND, "shop/prices.py\nVAT = 0.19\n")
    assert set(answer) == {"content", "truncated", "tokens_cached"}
    whole = post(client, "/infill", {**LLAMA_VIM, "response_fields": None}).json()
    assert (whole["tokens_predicted"], whole["stop_type"], whole["stop"]) == (8, "limit", True)
    assert post(client, "/infill", {**LLAMA_VIM, "input_suffix": "\n"}).json()["content"] == filled(
        BEFORE + LINE, None, "shop/prices.py\nVAT = 0.19\n"
    ), "at the end of a file nothing follows the gap"


def test_llama_vim_warms_the_cache(client: TestClient) -> None:
    """Between two keys it has the other files read, and writes nothing."""
    extra = [{"text": "import this\n" * 60, "time": [1, 2], "filename": "long.py"}]
    warm = {
        "input_prefix": "",
        "input_suffix": "",
        "prompt": "",
        "input_extra": extra,
        "n_predict": 0,
        "temperature": 0.0,
        "stream": False,
        "samplers": [],
        "cache_prompt": True,
        "t_max_prompt_ms": 1,
        "t_max_predict_ms": 1,
        "response_fields": [""],
    }
    assert post(client, "/infill", warm).json() == {}
    answer = post(client, "/infill", {**LLAMA_VIM, "input_extra": extra}).json()
    assert answer["tokens_cached"] > 400


@pytest.mark.parametrize(
    ("form", "stops"),
    [
        (
            "<|fim_prefix|>{}<|fim_suffix|>{}<|fim_middle|>",
            ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>"],
        ),
        ("<fim_prefix>{}<fim_suffix>{}<fim_middle>", ["<|endoftext|>", "<fim_prefix>", "<fim_middle>"]),
    ],
    ids=["qwen", "star_coder"],
)
def test_zed_spells_the_marks_of_a_gap(client: TestClient, form: str, stops: list[str]) -> None:
    body = {"model": NAME, "prompt": form.format(BEFORE + LINE, BEHIND), "max_tokens": 8, "stop": stops}
    answer = post(client, "/v1/completions", {**body, "temperature": 0}).json()
    assert answer["choices"][0]["text"] == filled(BEFORE + LINE, BEHIND)
    assert {"id", "object", "created", "model", "usage"} <= set(answer)
    inside = post(
        client, "/v1/completions", {**body, "prompt": "x" + body["prompt"], "temperature": 0}
    ).json()
    assert inside["usage"]["prompt_tokens"] == 1 + len("x" + form.format(BEFORE + LINE, BEHIND)), (
        "any other is text"
    )


def test_continue_streams_a_prompt_with_marks_and_a_gap(client: TestClient) -> None:
    """The first with its provider `openai`, the second with `mistral`, whose form of a gap it is."""
    sampling = {"max_tokens": 8, "temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}
    stops = {"stop": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "/src/", "#- coding: utf-8", "```"]}
    raw = f"<fim_prefix>{BEFORE}{LINE}<fim_suffix>{BEHIND}<fim_middle>"
    expected = filled(BEFORE + LINE, BEHIND)
    body = {"model": NAME, "prompt": raw, **sampling, **stops, "stream": True}
    chunks = events(post(client, "/v1/completions", body).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
    body = {"model": NAME, "prompt": BEFORE + LINE, "suffix": BEHIND, **sampling, **stops, "stream": True}
    chunks = events(post(client, "/v1/fim/completions", body).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected
    answer = post(client, "/v1/fim/completions", {**body, "stream": False}).json()
    assert answer["choices"][0]["message"]["content"] == expected


def test_a_suffix_beside_the_prompt(client: TestClient) -> None:
    """As minuet and others send it, with a field of llama.cpp's server."""
    body = {
        "prompt": BEFORE + LINE,
        "suffix": BEHIND,
        "max_tokens": 8,
        "temperature": 0,
        "cache_prompt": True,
    }
    assert post(client, "/v1/completions", body).json()["choices"][0]["text"] == filled(BEFORE + LINE, BEHIND)


def test_a_model_without_gaps(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It goes on from what stands before the cursor; asked for a gap in so many words it says that it has none."""
    import torch

    from rmat.model import LanguageModel, ModelConfig

    codec = tool_tokenizer(None)
    torch.manual_seed(0)
    small = LanguageModel(
        ModelConfig.preset("tiny", vocab_size=codec.vocab_size, n_layers=1, d_model=16, n_heads=1)
    ).eval()
    with running_client(tmp_path_factory.mktemp("s"), of=small, speaks=codec) as client:
        found = post(client, "/infill", LLAMA_VIM).json()["content"]
        plain = {**LLAMA_VIM, "input_suffix": ""}
        assert found == post(client, "/infill", plain).json()["content"]
        for body in ({"prompt": "a", "suffix": "b"}, {"prompt": "<fim_prefix>a<fim_suffix>b<fim_middle>"}):
            answer = client.post("/v1/completions", json={**body, "max_tokens": 2})
            assert answer.status_code == 400
            assert "this pretrained model has no token for 'fim_suffix'" in message(answer.json())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"stream": True}, "stream"),
        ({"n_predict": 10**6}, "n_predict is 1000000: this server writes at most"),
        ({"input_extra": [{"filename": "a"}]}, "input_extra.0.text is missing"),
        ({"input_sufix": "a"}, "there is no field 'input_sufix' here"),
    ],
)
def test_a_mistake_is_one_sentence(client: TestClient, body: dict[str, Any], said: str) -> None:
    answer = client.post("/infill", json={**LLAMA_VIM, **body})
    assert answer.status_code == 400 and said in message(answer.json())


def test_what_there_is_not_says_what_to_use(tmp_path_factory: pytest.TempPathFactory) -> None:
    """OpenAI's client shows the sentence, at once and not after tries."""
    with (
        running_app(tmp_path_factory.mktemp("s")) as app,
        running_server(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        with pytest.raises(openai.NotFoundError, match="makes no embeddings, its model writes text"):
            client.embeddings.create(model=NAME, input="x")
        with pytest.raises(openai.NotFoundError, match="no Responses API: use /v1/chat/completions"):
            client.responses.create(model=NAME, input="x")
