"""Bodies of requests and answers. A field that is not named here is refused, so that no wish is silently ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TOKEN_IDS = 2**20
"""Longest prompt given as token ids."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

SessionName = Annotated[str, Field(pattern=NAME_PATTERN)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS)]
Nothing = Annotated[list[Any], Field(max_length=0)]
NoEntries = Annotated[dict[str, Any], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Body(BaseModel):
    """What all bodies have: types are not converted, unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class TextFormat(Body):
    """The only format of answers."""

    type: Literal["text"]


class Sampling(Body):
    """Fields of /v1/completions and /v1/chat/completions."""

    model: str | None = Field(
        None, max_length=256, description="a name that /v1/models lists; may be left out"
    )
    session: SessionName | None = Field(
        None, description="go on in this session, which is made if there is none, and save it afterwards"
    )
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=1, le=2**31)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Accepted and ignored: they do not change an answer.
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None

    # Accepted only where they ask for nothing.
    frequency_penalty: Zero | None = None
    logit_bias: NoEntries | None = None
    presence_penalty: Zero | None = None


class CompletionBody(Sampling):
    """Text to go on from, or with `suffix` a gap to fill."""

    prompt: str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=16)] | None = None
    suffix: str | None = Field(None, description="text behind the gap that the answer fills")
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn. A message with a name speaks as `Name: text`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    refusal: None = None
    tool_calls: Nothing | None = None


class ChatBody(Sampling):
    """Turns to answer: all of them, or with `session` the new ones."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    audio: None = None
    function_call: Literal["none"] | None = None
    functions: Nothing | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: None = None
    response_format: TextFormat | None = None
    tool_choice: Literal["none"] | None = None
    tools: Nothing | None = None
    verbosity: None = None
    web_search_options: None = None


class NameBody(Body):
    """A session's name."""

    name: SessionName


class ReadBody(Body):
    """Text for a session to read."""

    text: Annotated[str, Field(min_length=1)]


def _names(*kinds: type[BaseModel]) -> frozenset[str]:
    return frozenset(name for kind in kinds for name in kind.model_fields)


FIELD_NAMES = _names(
    CompletionBody, ChatBody, Message, TextPart, TextFormat, StreamOptions, NameBody, ReadBody
)
"""Names that a path to a mistake may hold."""
