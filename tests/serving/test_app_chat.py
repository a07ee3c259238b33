from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rmat.data.documents import encode_turns
from rmat.generation.stream import generate
from rmat.sessions.conversation import Conversation
from rmat.sessions.store import SessionStore
from tests.makers.servers import events, message, model, running_client, tokenizer

SYSTEM = {"role": "system", "content": "be brief"}
USER = {"role": "user", "content": "how are you?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sessions")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with running_client(folder) as client:
        yield client


def chat(client: TestClient, *messages: dict[str, Any], **body: Any) -> dict[str, Any]:
    answer = client.post(
        "/v1/chat/completions", json={"messages": messages, "max_tokens": 12, "seed": 5, **body}
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def expected(*turns: tuple[str, str], **options: Any) -> str:
    ids = [
        tokenizer().special_id("document"),
        *encode_turns(tokenizer(), turns),
        tokenizer().special_id("assistant"),
    ]
    return "".join(
        generate(
            model(), tokenizer(), ids, **{"max_new_tokens": 12, "seed": 5, "temperature": 1.0, **options}
        )
    )


def test_turns_are_told_as_in_training(client: TestClient) -> None:
    answer = chat(client, SYSTEM, USER)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert text(answer) == expected(("system", "be brief"), ("user", "how are you?"))
    n_marks = 1 + 2 + 2 + 1  # the document's, those around two turns, the one that opens the answer
    assert answer["usage"]["prompt_tokens"] == n_marks + len("be brief" + "how are you?")


def test_other_ways_to_say_the_same(client: TestClient) -> None:
    parts = [{"type": "text", "text": "how are "}, {"type": "text", "text": "you?"}]
    answer = chat(client, {**SYSTEM, "role": "developer"}, {"role": "user", "content": parts})
    assert text(answer) == text(chat(client, SYSTEM, USER))
    assert text(chat(client, USER, max_tokens=None, max_completion_tokens=12)) == text(chat(client, USER))


def test_a_name_stands_before_what_its_user_says(client: TestClient) -> None:
    assert text(chat(client, {**USER, "name": "Ada"})) == expected(("user", "Ada: how are you?"))


def test_what_spells_a_special_token_is_none(client: TestClient) -> None:
    answer = chat(client, {"role": "user", "content": "<|turn_end|>"})
    assert answer["usage"]["prompt_tokens"] == 4 + len("<|turn_end|>")


def test_streamed_pieces_are_the_whole_answer(client: TestClient) -> None:
    body = {"messages": [USER], "max_tokens": 12, "seed": 5, "stream": True}
    parts = [part["choices"][0] for part in events(client.post("/v1/chat/completions", json=body).text)]
    assert parts[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(part["delta"].get("content", "") for part in parts) == text(chat(client, USER))
    assert parts[-1]["delta"] == {} and parts[-1]["finish_reason"] == "length"


def test_log_probabilities_are_those_of_the_tokens(client: TestClient) -> None:
    answer = chat(client, USER, temperature=0, logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == text(answer)
    for entry in content:
        assert entry["bytes"] == list(entry["token"].encode())
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0
    plain = chat(client, USER, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in plain)


def test_a_session_goes_on_as_a_conversation_does(client: TestClient, folder: Path) -> None:
    """Only new turns are sent, and what is kept is what a Conversation in this process would keep."""
    conversation = Conversation(model(), tokenizer())
    for question in ("how are you?", "and now?"):
        spoken = "".join(conversation.say(question, max_new_tokens=12, seed=5, temperature=1.0))
        answer = chat(client, {"role": "user", "content": question}, session="talk")
        assert text(answer) == spoken
        assert answer["usage"]["prompt_tokens"] <= len(question) + 4
    kept = SessionStore(folder / "public").load("talk", model())
    assert (kept.turns, kept.tokens_read, kept.tail) == (
        conversation.session.turns,
        conversation.session.tokens_read,
        conversation.session.tail,
    )
    assert kept.next_logits.allclose(conversation.session.next_logits, atol=1e-4)


def test_a_session_goes_on_behind_a_stop_string(client: TestClient, folder: Path) -> None:
    """The turn that a stop string cut is closed, so that the next one begins as in training."""
    stop = text(chat(client, USER))[3]
    answer = chat(client, USER, session="cut", stop=stop)
    kept = SessionStore(folder / "public").load("cut", model())
    assert kept.tail[-1] == tokenizer().special_id("turn_end")
    assert kept.turns[-1] == ("assistant", text(answer))
    assert kept.tokens_read == len(kept.tail) == answer["usage"]["total_tokens"] + 1


def test_a_streamed_answer_is_kept_too(client: TestClient) -> None:
    body = {"messages": [USER], "max_tokens": 12, "seed": 5, "stream": True, "session": "streamed"}
    events(client.post("/v1/chat/completions", json=body).text)
    history = client.get("/v1/sessions/streamed").json()["history"]
    assert history == [USER, {"role": "assistant", "content": text(chat(client, USER))}]


def test_a_last_message_of_the_assistant_is_continued(client: TestClient) -> None:
    begun = {"role": "assistant", "content": "I am"}
    ids = [
        tokenizer().special_id("document"),
        *encode_turns(tokenizer(), [("user", "how are you?")]),
        tokenizer().special_id("assistant"),
        *b"I am",
    ]
    went_on = "".join(generate(model(), tokenizer(), ids, max_new_tokens=12, seed=5, temperature=1.0))
    assert text(chat(client, USER, begun)) == went_on
    assert (
        text(chat(client, USER, begun, continue_final_message=True, add_generation_prompt=False)) == went_on
    )
    new_turn = expected(("user", "how are you?"), ("assistant", "I am"))
    assert text(chat(client, USER, begun, continue_final_message=False)) == new_turn
    assert text(chat(client, USER, begun, add_generation_prompt=True)) == new_turn
    listed = client.post("/tokenize", json={"messages": [USER, begun]}).json()
    assert listed["tokens"] == ids
    assert text(chat(client, begun, seed=1)), "also where nothing stands before it"


def test_a_session_keeps_the_whole_turn_that_was_continued(client: TestClient, folder: Path) -> None:
    answer = chat(client, USER, {"role": "assistant", "content": "I am"}, session="continued")
    kept = SessionStore(folder / "public").load("continued", model())
    assert kept.turns == (("user", USER["content"]), ("assistant", "I am" + text(answer)))
    spelled = [*encode_turns(tokenizer(), kept.turns)]
    assert list(kept.tail) == [tokenizer().special_id("document"), *spelled]


def test_null_is_as_good_as_left_out(client: TestClient) -> None:
    nulls = dict.fromkeys(("audio", "tools", "response_format", "not_a_field", "top_k", "session", "stop"))
    empty = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls", "name"))
    assert text(chat(client, {**USER, **empty}, **nulls)) == text(chat(client, USER))
    assert text(chat(client, USER, tool_choice="auto", tools=[])) == text(chat(client, USER))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages is missing"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content is missing"),
        ({"continue_final_message": True}, "the last message is not the assistant's"),
        ({"add_generation_prompt": False}, "the last message is not the assistant's"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "exclude each other"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "tool_calls.0.function is mis",
        ),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort is not supported"),
        ({"top_logprobs": 2}, "logprobs: true"),
        ({"max_completion_tokens": 3}, "leave one out"),
        ({"session": "../x"}, "session"),
        ({"session": "con"}, "device"),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, body: dict[str, Any], said: str) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": [USER], "max_tokens": 2, **body})
    assert answer.status_code == 400, answer.text
    assert said in message(answer.json())
