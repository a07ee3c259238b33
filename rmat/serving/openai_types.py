"""OpenAI's API: bodies of requests, then bodies of answers and errors.

A field of a request that is not named here is refused, so that no wish is silently ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rmat.generation.sampling import SamplingConfig
from rmat.sessions.store import NAME_PATTERN

MAX_TOKEN_IDS = 2**20
"""Longest prompt given as token ids."""

MAX_MESSAGES = 2**14
"""Most messages of a conversation, and parts of a message."""

SessionName = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]
Prompts = Annotated[list[str | TokenIds], Field(min_length=1, max_length=16, fail_fast=True)]
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


class WritingBody(Body):
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
    stop: StopText | Annotated[list[StopText], Field(max_length=16, fail_fast=True)] | None = None
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

    def sampling(self, index: int) -> SamplingConfig:
        """How the tokens of choice `index` are drawn; the seeds of the choices follow on each other."""
        return SamplingConfig(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty or 1.0,
            seed=None if self.seed is None else (self.seed + index) % 2**63,
        )

    def stops(self) -> tuple[str, ...]:
        """Strings at which the text ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionBody(WritingBody):
    """Text to go on from, or with `suffix` a gap to fill."""

    prompt: str | TokenIds | Prompts | None = None
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
    content: str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    refusal: None = None
    tool_calls: Nothing | None = None


class ChatBody(WritingBody):
    """Turns to answer: all of them, or with `session` the new ones."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    audio: None = None
    function_call: Literal["none"] | None = None
    functions: Nothing | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1, fail_fast=True)] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: None = None
    response_format: TextFormat | None = None
    tool_choice: Literal["none"] | None = None
    tools: Nothing | None = None
    verbosity: None = None
    web_search_options: None = None


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every answer with an error status."""

    error: ErrorDetail


class ModelLimits(BaseModel):
    """The most that this server takes: tokens of one answer, and of one prompt."""

    max_tokens: int
    max_prompt_tokens: int


class Model(BaseModel):
    """A model. `state_bytes`: what one session carries, however much it has read."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rmat"
    state_bytes: int
    limits: ModelLimits


class ModelList(BaseModel):
    """The models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Whether requests are answered."""

    status: Literal["ok", "stopping", "failed"]


class PromptDetails(BaseModel):
    """Of the prompt's tokens, those that were not read again."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Choice(BaseModel):
    """Why a text is over: OpenAI's word, and `length`, `stop`, `end`, `timeout` or `stopped`."""

    index: int
    finish_reason: Literal["stop", "length"]
    finish_detail: Literal["length", "stop", "end", "timeout", "stopped"]


class CompletionLogprobs(BaseModel):
    """The tokens of a text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Choice):
    """A text."""

    text: str
    logprobs: CompletionLogprobs | None


class Completion(BaseModel):
    """Texts that go on from the prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class TopToken(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TopToken):
    """A token that was written, beside the likeliest at its place."""

    top_logprobs: list[TopToken]


class ChatLogprobs(BaseModel):
    """The tokens of an answer."""

    content: list[ChatToken]
    refusal: None


class AssistantMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Choice):
    """An answer."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None


class ChatCompletion(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "what was wrong with the request"},
    "5XX": {"model": ErrorBody, "description": "the server failed or is stopping"},
}
"""Every route may answer so."""


def field_names(*kinds: type[BaseModel]) -> frozenset[str]:
    """Names of the fields of `kinds`."""
    return frozenset(name for kind in kinds for name in kind.model_fields)


FIELD_NAMES = field_names(CompletionBody, ChatBody, Message, TextPart, TextFormat, StreamOptions)
"""Names that a path to a mistake may hold."""


def answered(whole: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """How a route that writes text answers: with `whole`, or with events where the body says `stream: true`."""
    events: dict[str, Any] = {"text/event-stream": {}}
    return {
        200: {"model": whole, "content": events, "description": "the answer, or a stream of it"},
        **ERRORS,
    }
