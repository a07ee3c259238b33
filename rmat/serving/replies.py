"""Bodies of answers, for the OpenAPI schema and for whoever reads it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


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


class SessionEntry(BaseModel):
    """A session; times are unix seconds."""

    name: str
    tokens_read: int
    turns: int
    created: float
    used: float
    bytes: int


class SessionList(BaseModel):
    """The sessions of the API key."""

    object: Literal["list"] = "list"
    data: list[SessionEntry]


class HistoryTurn(BaseModel):
    """A turn that was read or written."""

    role: str
    content: str


class SessionDetail(SessionEntry):
    """A session with its last turns."""

    history: list[HistoryTurn]


class Deleted(BaseModel):
    """A session that is gone."""

    name: str
    deleted: Literal[True] = True


class HeldToken(BaseModel):
    """A filled slot: `age` in tokens up to the open segment, `text` around the token it comes from if that is still
    known, and the character of `text` at which that token begins."""

    slot: int
    age: int
    gate: float
    token: str | None
    text: str | None
    start: int | None


class LayerMemory(BaseModel):
    """One layer's bank: of `slots`, `filled`; `pushed` vectors entered it, `openness` a token."""

    layer: int
    slots: int
    filled: int
    pushed: int
    openness: float
    held: list[HeldToken]


class Memory(BaseModel):
    """What a session remembers."""

    tokens_read: int
    layers: list[LayerMemory]


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


def answered(whole: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """How a route that writes text answers: with `whole`, or with events where the body says `stream: true`."""
    events: dict[str, Any] = {"text/event-stream": {}}
    return {
        200: {"model": whole, "content": events, "description": "the answer, or a stream of it"},
        **ERRORS,
    }
