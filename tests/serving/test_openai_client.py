"""The real client of OpenAI against a real server on loopback."""

import asyncio
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI

from rmat.serving.auth import Keys
from rmat.serving.limits import LOOPBACK_HOSTS
from tests.makers.servers import NAME, running_app, running_server

KEY = "a-key-for-tests"
USER = {"role": "user", "content": "how are you?"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    folder = tmp_path_factory.mktemp("sessions")
    with running_app(folder, keys=Keys([KEY]), hosts=LOOPBACK_HOSTS, engine={"max_waiting": 3}) as app:
        yield app


@pytest.fixture(scope="module")
def base(app: FastAPI) -> Iterator[str]:
    with running_server(app) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(base: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "rmat"


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model=NAME, prompt="once", max_tokens=10, seed=1, n=2, logprobs=2, stop=["never written"]
    )
    first, second = answer.choices
    assert len(first.text) == len(second.text) == 10 and first.text != second.text
    assert first.logprobs is not None and first.logprobs.tokens is not None
    assert "".join(first.logprobs.tokens) == first.text
    assert answer.usage is not None and answer.usage.completion_tokens == 20
    again = client.completions.create(model=NAME, prompt="once", max_tokens=10, seed=2)
    assert again.choices[0].text == second.text
    assert again.system_fingerprint == answer.system_fingerprint


def test_chat_whole_and_streamed(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model=NAME,
        messages=[USER],
        max_completion_tokens=10,
        seed=1,
        logprobs=True,
        top_logprobs=1,  # type: ignore[list-item]
    )
    choice = whole.choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    with client.chat.completions.create(
        model=NAME,
        messages=[USER],  # type: ignore[list-item]
        max_completion_tokens=10,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == choice.message.content and len(parts) > 5
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason == "length"


def test_an_answer_can_be_sent_back_as_the_client_dumps_it(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=[USER], max_tokens=5, seed=1)  # type: ignore[list-item]
    messages = [USER, answer.choices[0].message.model_dump(), USER]
    again = client.chat.completions.create(model=NAME, messages=messages, max_tokens=5)  # type: ignore[arg-type]
    assert again.usage is not None and answer.usage is not None
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens + 5
    assert client.chat.completions.create(model=NAME, messages=messages[:2], max_tokens=5).usage  # type: ignore[arg-type]


def test_penalties_and_biases(client: OpenAI) -> None:
    answer = client.completions.create(
        model=NAME,
        prompt="once",
        max_tokens=20,
        temperature=0,
        logit_bias={"97": 100, "98": 99},
        frequency_penalty=2,
        presence_penalty=2,
        extra_body={"min_p": 0.1, "top_k": -1, "min_tokens": 20},
    )
    assert set(answer.choices[0].text) == {"a", "b"}, "one after the other becomes less likely"


def test_a_session_is_an_extra_field(client: OpenAI) -> None:
    sizes = []
    for _ in range(3):
        answer = client.chat.completions.create(
            model=NAME,
            messages=[USER],  # type: ignore[list-item]
            max_tokens=5,
            extra_body={"session": "talk"},
        )
        assert answer.usage is not None
        sizes.append(answer.usage.prompt_tokens)
    assert sizes[1] == sizes[2] == sizes[0] - 1, "all but the document's token, each time"


def test_many_at_once(base: str) -> None:
    """Answers written side by side are those written alone; those that find the queue full come again."""

    async def ask() -> tuple[list[str], list[str]]:
        async with AsyncOpenAI(base_url=base, api_key=KEY, max_retries=20, timeout=60) as client:

            async def one(seed: int) -> str:
                stream = await client.completions.create(
                    model=NAME, prompt=f"number {seed}", max_tokens=15, seed=seed, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            together = await asyncio.gather(*map(one, range(12)))
            return list(together), [await one(seed) for seed in range(12)]

    together, alone = asyncio.run(ask())
    assert together == alone and len(set(alone)) == 12


def test_errors_are_those_of_the_client(client: OpenAI, base: str) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.completions.create(model="gpt", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client.completions.create(model=NAME, prompt="x", temperature=-1)
    assert refused.value.param == "temperature" and refused.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="tools are not supported by this model"):
        tools = [{"type": "function", "function": {"name": "f"}}]
        client.chat.completions.create(model=NAME, messages=[USER], tools=tools)  # type: ignore[call-overload]
    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=base, api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model=NAME, prompt="x", n=16)


def unfinished(app: FastAPI) -> int:
    stats = app.state.service.engine.stats()
    return int(stats["requests"] - sum(n for name, n in stats.items() if name.startswith("finished_")))


def wait_until_idle(app: FastAPI) -> None:
    until = time.monotonic() + 30
    while unfinished(app):
        assert time.monotonic() < until, "a row was not freed"
        time.sleep(0.01)


def test_a_client_that_leaves_frees_its_row_and_changes_no_session(client: OpenAI, app: FastAPI) -> None:
    client.completions.create(model=NAME, prompt="x", max_tokens=3, extra_body={"session": "left"})
    with client.completions.create(
        model=NAME, prompt="x", max_tokens=4000, stream=True, extra_body={"session": "left"}
    ) as stream:
        assert next(iter(stream)).choices[0].text
        assert unfinished(app) == 1
    wait_until_idle(app)
    answer = client.completions.create(model=NAME, prompt="", max_tokens=0, extra_body={"session": "left"})
    assert answer.usage is not None and answer.usage.total_tokens == 0
    with httpx.Client(base_url=str(client.base_url), headers={"authorization": f"Bearer {KEY}"}) as plain:
        assert plain.get("sessions/left").json()["tokens_read"] == 1 + 1 + 3


def test_a_client_that_gives_up_waiting_frees_its_row(base: str, app: FastAPI) -> None:
    hasty = OpenAI(base_url=base, api_key=KEY, max_retries=0, timeout=0.5)
    with hasty, pytest.raises(openai.APITimeoutError):
        hasty.completions.create(model=NAME, prompt="x", max_tokens=4000)
    wait_until_idle(app)
    assert app.state.service.engine.stats()["finished_cancelled"] >= 1
