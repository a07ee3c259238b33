"""OpenAI's API: bodies of requests, then bodies of answers and errors.

A field of a request that is not named here is refused, so that no wish is silently ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from rmat.data.documents import Turn
from rmat.generation.grammar import json_grammar
from rmat.generation.sampling import SamplingConfig
from rmat.serving.errors import ApiError
from rmat.sessions.store import NAME_PATTERN

MAX_TOKEN_IDS = 2**20
"""Longest prompt given as token ids."""

MAX_MESSAGES = 2**14
"""Most messages of a conversation, and parts of a message."""

MAX_TOOLS = 128
"""Most tools of a request, and calls of a message."""


def _function_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise ValueError("give 1 to 64 letters, digits, '_', '-' or '.'")
    return name


SessionName = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]
Prompts = Annotated[list[str | TokenIds], Field(min_length=1, max_length=16, fail_fast=True)]
Nothing = Annotated[list[Any], Field(max_length=0)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class Body(BaseModel):
    """What all bodies have: types are not converted, unknown fields are refused, and null is as good as left
    out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict) and None in value.values():
            return {name: entry for name, entry in value.items() if entry is not None}
        return value


class StreamOptions(Body):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class JsonSchema(Body):
    """What an answer in JSON must be valid by."""

    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="it is always followed")


class ResponseFormat(Body):
    """The form of answers: any text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    _grammar: str | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _prepare(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('give a json_schema with the type "json_schema", and with no other')
        if (schema := self.schema_wanted) is not None:
            self._grammar = json_grammar(schema)
        return self

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The schema of the answers; None for any text."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.json_schema

    @property
    def grammar(self) -> str | None:
        """That of the answers, made when the body was parsed; None for any text."""
        return self._grammar


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
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = Field(None, description="0 and -1: all tokens")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenKey, Bias] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16, fail_fast=True)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Accepted and ignored: they do not change an answer.
    cache_prompt: bool | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None

    def sampling(self, index: int, grammar: str | None = None) -> SamplingConfig:
        """How the tokens of choice `index` are drawn; the seeds of the choices follow on each other. A
        `grammar` takes the place of that of `response_format`."""
        return SamplingConfig(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k if self.top_k and self.top_k > 0 else None,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            min_tokens=self.min_tokens or 0,
            grammar=grammar or self._grammar(),
            seed=None if self.seed is None else (self.seed + index) % 2**63,
        )

    def _grammar(self) -> str | None:
        return None if self.response_format is None else self.response_format.grammar

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


class CalledFunction(Body):
    """What a call asks for; the arguments are the JSON of an object."""

    name: Annotated[str, Field(max_length=64)]
    arguments: str


class ToolCall(Body):
    """A call in a message of the assistant."""

    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One turn. A message with a name speaks as `Name: text`. The result of a tool has the role `tool`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    annotations: Nothing | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _calls_need_no_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("tool_calls") and value.get("content") is None:
            return {**value, "content": ""}
        return value

    @property
    def text(self) -> str:
        """What it says."""
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)

    @property
    def has_tools(self) -> bool:
        """Whether it calls a tool, or is the result of one."""
        return bool(self.tool_calls) or self.role == "tool"

    def turn(self) -> Turn:
        """(role, text)."""
        role = "system" if self.role == "developer" else self.role
        return role, f"{self.name}: {self.text}" if self.name and role == "user" else self.text

    def templated(self) -> dict[str, Any]:
        """As a chat template takes it, the arguments of calls as objects. Raises ValueError."""
        role, text = self.turn()
        given: dict[str, Any] = {"role": role, "content": text}
        if self.tool_calls:
            given["tool_calls"] = [
                {
                    "type": "function",
                    "id": call.id or "",
                    "function": {"name": call.function.name, "arguments": _arguments(call.function)},
                }
                for call in self.tool_calls
            ]
        if role == "tool":
            given |= {"tool_call_id": self.tool_call_id or "", "name": self.name or ""}
        return given


def _arguments(called: CalledFunction) -> dict[str, Any]:
    try:
        given = json.loads(called.arguments)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise ValueError(f"messages: the arguments of a call of {called.name!r} are no JSON object")
    return given


class Function(Body):
    """A function that the model may ask for; without `parameters` it takes no arguments."""

    name: Annotated[str, AfterValidator(_function_name)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="the schema is always followed")

    @property
    def arguments(self) -> dict[str, Any]:
        """The schema of its arguments. Raises ValueError."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        if self.parameters.get("type", "object") != "object":
            raise ValueError(f"tools: the parameters of {self.name!r} are no object")
        return {**self.parameters, "type": "object"}


class Tool(Body):
    """A tool."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """The function that is to be called."""

    name: str


class NamedTool(Body):
    """The tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


class ChatBody(WritingBody):
    """Turns to answer: all of them, or with `session` the new ones."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    function_call: Literal["none"] | None = None
    functions: Nothing | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1, fail_fast=True)] | None = None
    parallel_tool_calls: bool | None = Field(None, description="whether an answer may call more than one")
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None

    def callable_tools(self) -> list[Tool]:
        """The tools that the answer may call. Raises ApiError."""
        tools, choice = self.tools or [], self.tool_choice
        names = [tool.function.name for tool in tools]
        if len(set(names)) < len(names):
            raise ApiError(400, "two tools have the same name: leave one out", param="tools")
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            message = f"tool_choice names {choice.function.name!r}, which is none of the tools"
            raise ApiError(400, message, param="tool_choice")
        if choice == "required" and not tools:
            raise ApiError(400, 'tool_choice is "required", but there are no tools', param="tool_choice")
        if isinstance(choice, NamedTool):
            return [tool for tool in tools if tool.function.name == choice.function.name]
        return [] if choice == "none" else tools


def opened(
    messages: Sequence[Message], continue_final: bool | None, opens_turn: bool | None
) -> tuple[Sequence[Message], str | None]:
    """Messages of finished turns, and the text with which the answer begins, if the last message is the
    assistant's and to be continued. Raises ApiError."""
    last = messages[-1].role == "assistant" and not messages[-1].has_tools
    if continue_final and opens_turn:
        message = "continue_final_message and add_generation_prompt exclude each other: set one to false"
        raise ApiError(400, message, param="add_generation_prompt")
    if (continue_final or opens_turn is False) and not last:
        param = "continue_final_message" if continue_final else "add_generation_prompt"
        raise ApiError(400, f"{param}: the last message is not the assistant's: leave it out", param=param)
    if not last or opens_turn or continue_final is False:
        return messages, None
    return messages[:-1], messages[-1].text


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
    finish_reason: Literal["stop", "length", "tool_calls"]
    finish_detail: Literal["length", "stop", "end", "timeout", "stopped"]


class CompletionLogprobs(BaseModel):
    """The tokens of a text; null for a first token before which nothing stands."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
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


class AnsweredFunction(BaseModel):
    """The function that is asked for; the arguments are JSON that is valid by its schema."""

    name: str
    arguments: str


class AnsweredCall(BaseModel):
    """A call."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AssistantMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnsweredCall] = []


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
    """Names of the fields of `kinds`, as bodies have them."""
    return frozenset(field.alias or name for kind in kinds for name, field in kind.model_fields.items())


FIELD_NAMES = field_names(
    *(CompletionBody, ChatBody, Message, TextPart, ResponseFormat, JsonSchema, StreamOptions),
    *(Tool, Function, ToolCall, CalledFunction),
)
"""Names that a path to a mistake may hold."""


def answered(whole: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """How a route that writes text answers: with `whole`, or with events where the body says `stream:
    true`."""
    events: dict[str, Any] = {"text/event-stream": {}}
    return {
        200: {"model": whole, "content": events, "description": "the answer, or a stream of it"},
        **ERRORS,
    }
