"""Tool calls: written as the chat template writes them, valid by the tool's schema, told in OpenAI's form."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai
import pytest
import torch
from starlette.testclient import TestClient

from rmat.data.template import CallForm
from rmat.generation.row import Row
from rmat.generation.sampling import SamplingConfig
from rmat.model import LanguageModel, ModelConfig
from rmat.serving.tools import CallReader, call_grammar, joined
from tests.makers.servers import events, message, running_app, running_client, running_server
from tests.makers.tools import TEMPLATES, tool_tokenizer

USER = {"role": "user", "content": "Will it rain?"}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", 'a "b" {c}']},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": WEATHER,
    "stop-all": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "of <|im_end|> a city", "parameters": WEATHER},
    },
    {"type": "function", "function": {"name": "stop-all", "strict": True}},
]
KINDS = list(TEMPLATES)


def form_of(kind: str) -> CallForm:
    chat = tool_tokenizer(kind).chat
    assert chat is not None and chat.call_form is not None
    return chat.call_form


def written(kind: str, grammar: str, seed: int, like: str = "", n: int = 300) -> tuple[str, str | None]:
    """A text drawn from noise, in which the bytes of `like` are likelier; and why it is over."""
    tokenizer, noise = tool_tokenizer(kind), torch.Generator().manual_seed(seed)
    bias = dict.fromkeys(tokenizer.encode(like), 12.0)
    sampling = SamplingConfig(grammar=grammar, temperature=1.0, seed=seed, logit_bias=bias)
    row, text = Row(tokenizer, max_new_tokens=n, sampling=sampling, stop=()), ""
    while (token := row.draw(3 * torch.randn(tokenizer.vocab_size, generator=noise))) is not None:
        text += row.show(token)
    return text + row.rest(), row.finish


def read(kind: str, text: str, size: int) -> tuple[str, list[dict[str, Any]]]:
    """Text and calls of an answer that comes in pieces of so many characters."""
    chat = tool_tokenizer(kind).chat
    assert chat is not None
    reader, shown, deltas = CallReader(chat, form_of(kind)), "", list[dict[str, Any]]()
    for start in range(0, len(text), size):
        piece, more = reader.push(text[start : start + size])
        shown, deltas = shown + piece, deltas + more
    return shown + reader.flush(), joined(deltas)


def test_the_form_of_calls_is_found_out_from_the_template() -> None:
    assert form_of("tags") == CallForm(
        "", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n", ""
    )
    assert form_of("object") == CallForm("", '{"name": "', '", "parameters": ', "}", None, "")
    assert form_of("list") == CallForm("[TOOL_CALLS][", '{"name": "', '", "arguments": ', "}", ", ", "]")
    begin = '\n<tool_call>\n{"name": "'
    assert form_of("thoughts") == CallForm(
        "<think>\n\n</think>\n", begin, '", "arguments": ', "}\n</tool_call>", "", ""
    )
    chat = tool_tokenizer(None).chat
    assert chat is not None and chat.call_form is None


@pytest.mark.parametrize("kind", KINDS)
def test_what_must_call_calls_with_arguments_that_are_valid(kind: str) -> None:
    many = call_grammar(tool_tokenizer(kind), form_of(kind), SCHEMAS, must_call=True, many=True)
    one = call_grammar(tool_tokenizer(kind), form_of(kind), SCHEMAS, must_call=True, many=False)
    counts, names = set(), set()
    for seed in range(8):
        for grammar in (many, one):
            text, finish = written(kind, grammar, seed)
            said, calls = read(kind, text, 1)
            assert finish == "end" and not said and calls, text
            for call, whole in zip(calls, read(kind, text, len(text))[1], strict=True):
                assert call["function"] == whole["function"], "however it is cut into pieces"
                jsonschema_rs.validate(
                    SCHEMAS[call["function"]["name"]], json.loads(call["function"]["arguments"])
                )
                assert len(call["id"]) == 9 and call["id"].isalnum()
                names.add(call["function"]["name"])
            assert grammar is many or len(calls) == 1
            counts.add(len(calls))
    assert names == set(SCHEMAS) and (max(counts) > 1) == (kind != "object")


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_call_writes_text_or_calls(kind: str) -> None:
    """Text is free until it has what begins a call; from there on a call follows."""
    tokenizer, form = tool_tokenizer(kind), form_of(kind)
    grammar = call_grammar(tokenizer, form, SCHEMAS, must_call=False, many=True)
    said, calls = read(kind, written(kind, grammar, 0, n=40)[0], 1)
    assert said and not calls
    sampling = SamplingConfig(grammar=grammar, temperature=1.0, seed=1)
    row = Row(tokenizer, max_new_tokens=400, sampling=sampling, stop=())
    forced = [*tokenizer.encode("Let me see.\n")]
    begins = {"object": '{"name": "', "list": "[TOOL_CALLS]"}.get(kind, "<tool_call>")
    forced += [tokenizer.token_id(begins)] if kind == "list" else tokenizer.encode(begins)
    text, noise = "", torch.Generator().manual_seed(1)
    for place in range(400):
        logits = torch.randn(tokenizer.vocab_size, generator=noise)
        if place < len(forced):
            logits[forced[place]] = 100.0
        if (token := row.draw(logits)) is None:
            break
        text += row.show(token)
    said, calls = read(kind, text + row.rest(), 3)
    assert said == "Let me see." and calls and row.finish == "end", text
    for call in calls:
        jsonschema_rs.validate(SCHEMAS[call["function"]["name"]], json.loads(call["function"]["arguments"]))


@pytest.mark.parametrize("kind", KINDS)
def test_json_or_a_call(kind: str) -> None:
    wanted = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}
    if kind == "list":
        wanted = {"const": True}  # without the special token a list of calls looks like any list
    grammar = call_grammar(
        tool_tokenizer(kind), form_of(kind), SCHEMAS, must_call=False, many=True, answer=wanted
    )
    found = set()
    for seed in range(12):
        said, calls = read(kind, written(kind, grammar, seed)[0], 2)
        assert bool(said) != bool(calls)
        found.add(bool(calls))
        if said:
            jsonschema_rs.validate(wanted, json.loads(said))
    assert found == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_only_looks_like_a_call_is_not_lost(kind: str) -> None:
    opening = {"object": '{"name": "', "list": '[{"name": "'}.get(kind, '<tool_call>\n{"name": "')
    for text in ("a < b, a [1] {2} ", "see " + opening[:-3], f"see {opening}wea"):
        said, calls = read(kind, text, 1)
        assert (said.replace(" ", ""), calls) == (text.replace(" ", ""), [])


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    size = tool_tokenizer("tags").vocab_size
    return LanguageModel(
        ModelConfig.preset("tiny", vocab_size=size, n_layers=1, d_model=32, n_heads=2)
    ).eval()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> Iterator[TestClient]:
    with running_client(tmp_path_factory.mktemp("s"), of=model, speaks=tool_tokenizer("tags")) as client:
        yield client


def chat(client: TestClient, *messages: dict[str, Any], **body: Any) -> dict[str, Any]:
    body = {"messages": messages or (USER,), "max_tokens": 200, "seed": 3, **body}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["choices"][0])


def test_a_named_tool_is_called_once(client: TestClient) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    choice = chat(client, tools=TOOLS, tool_choice=named)
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["function"]["name"] == "weather"
    jsonschema_rs.validate(WEATHER, json.loads(call["function"]["arguments"]))


def test_a_stream_of_calls_adds_up_to_the_whole_answer(client: TestClient) -> None:
    body = {"messages": [USER], "max_tokens": 200, "seed": 3, "tools": TOOLS, "tool_choice": "required"}
    chunks = events(client.post("/v1/chat/completions", json={**body, "stream": True}).text)
    deltas = [delta for chunk in chunks for delta in chunk["choices"][0]["delta"].get("tool_calls", ())]
    whole = chat(client, tools=TOOLS, tool_choice="required")["message"]["tool_calls"]
    assert [call["function"] for call in joined(deltas)] == [call["function"] for call in whole]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)


def test_without_a_call_the_answer_is_text(client: TestClient) -> None:
    for body in ({"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = chat(client, max_tokens=20, **body)
        assert choice["finish_reason"] == "length" and choice["message"]["content"]
        assert "tool_calls" not in choice["message"]
    assert chat(client, max_tokens=20, tools=TOOLS, tool_choice="none") == chat(client, max_tokens=20)


def test_a_call_that_max_tokens_cut_says_so(client: TestClient) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    whole = chat(client, tools=TOOLS, tool_choice=named)["message"]["tool_calls"][0]["function"]["arguments"]
    for length in range(4, 60, 8):
        choice = chat(client, tools=TOOLS, tool_choice=named, max_tokens=length)
        if choice["finish_reason"] == "length" and (calls := choice["message"].get("tool_calls")):
            assert whole.startswith(calls[0]["function"]["arguments"])
            return
    raise AssertionError("no length cut a call")


def test_the_conversation_goes_into_the_template(client: TestClient) -> None:
    """Tools, calls with their arguments as objects and results; what spells a special token is none."""
    called = {
        "id": "abc",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "<|im_end|>"}'},
    }
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "abc", "content": [{"type": "text", "text": "dry <|im_start|>"}]},
    ]
    tokenizer = tool_tokenizer("tags")
    answer = client.post("/tokenize", json={"messages": messages})
    special = [
        tokenizer.special_names[token]
        for token in answer.json()["tokens"]
        if token in tokenizer.special_names
    ]
    assert special == ["<|im_start|>", "<|im_end|>"] * 3 + ["<|im_start|>"]
    text = client.post("/detokenize", json={"tokens": answer.json()["tokens"]}).json()["content"]
    assert text == (
        "<|im_start|>user\nWill it rain?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "<|im_end|>"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\ndry <|im_start|><|im_end|>\n<|im_start|>assistant\n"
    )
    shown = chat(client, *messages, tools=TOOLS, max_tokens=3)
    assert shown["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function is missing"),
        ({"tools": [{"type": "search"}]}, "tools.0.type is \"search\": give 'function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "give 1 to 64 letters, digits"),
        ({"tools": TOOLS * 2}, "two tools have the same name"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "none of the tools",
        ),
        ({"tools": TOOLS, "tool_choice": "maybe"}, 'tool_choice: give "none", "auto", "required"'),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": TOOLS, "session": "s"}, "takes no session"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "'a' are no object",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}]},
            'Unimplemented keys: ["not"]',
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]}
                ]
            },
            "the arguments of a call of 'a' are no JSON object",
        ),
        ({"functions": [{"name": "a"}]}, "functions is not supported: they are the old form of tools"),
    ],
)
def test_a_mistake_is_one_sentence(client: TestClient, body: dict[str, Any], said: str) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": [USER], "max_tokens": 4, **body})
    assert answer.status_code == 400 and said in message(answer.json()), answer.text


@pytest.mark.parametrize("template", [True, False])
def test_a_model_that_knows_no_tools_says_so(template: bool, tmp_path: Path, model: LanguageModel) -> None:
    options: dict[str, Any] = {"of": model, "speaks": tool_tokenizer(None)} if template else {}
    with running_client(tmp_path, **options) as client:
        result = {"role": "tool", "content": "dry", "tool_call_id": "a"}
        for body in ({"messages": [USER], "tools": TOOLS}, {"messages": [USER, result]}):
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400
            assert "its chat template does not know them" in message(answer.json())
        answer = client.post(
            "/v1/chat/completions",
            json={"messages": [USER], "tools": TOOLS, "tool_choice": "none", "max_tokens": 2},
        )
        assert answer.status_code == 200
        assert client.post("/tokenize", json={"messages": [result]}).status_code == 400


def test_openai_client_goes_round(tmp_path: Path, model: LanguageModel) -> None:
    """A call is asked for, answered, and what the client got is sent back."""
    with (
        running_app(tmp_path, of=model, speaks=tool_tokenizer("tags")) as app,
        running_server(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        messages: list[Any] = [USER]
        asked: dict[str, Any] = {"model": "tiny", "tools": TOOLS, "max_tokens": 200, "seed": 1}
        first = client.chat.completions.create(messages=messages, tool_choice="required", **asked).choices[0]
        assert first.message.tool_calls
        messages += [first.message] + [
            {"role": "tool", "tool_call_id": call.id, "content": "dry"} for call in first.message.tool_calls
        ]
        with client.chat.completions.stream(messages=messages, tool_choice="required", **asked) as stream:
            last = stream.get_final_completion().choices[0]
        assert last.finish_reason == "tool_calls" and last.message.tool_calls
        for call in last.message.tool_calls:
            jsonschema_rs.validate(SCHEMAS[call.function.name], json.loads(call.function.arguments))
