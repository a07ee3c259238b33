"""/v1/chat/completions: turns are answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from rmat.data.documents import encode_turns
from rmat.data.template import Before, ChatTemplate
from rmat.data.tokenizer import Tokenizer
from rmat.engine.request import Piece, Stream, TokenLogprob
from rmat.serving.bodies import StrictRoute
from rmat.serving.errors import ApiError
from rmat.serving.openai_types import ChatBody, ChatCompletion, Message, NamedTool, Tool, answered, opened
from rmat.serving.service import Service, in_thread, service_of
from rmat.serving.streaming import Form, finish, finite, respond, token_text
from rmat.serving.tools import CallReader, call_grammar, joined

DEFAULT_TOKENS = 1024
"""Length of an answer if nothing is said."""

NO_TOOLS = (
    "tools are not supported by this model: its chat template does not know them, or writes calls in another "
    "form than JSON; leave them out, or ask for JSON with response_format"
)

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.post("/chat/completions", responses=answered(ChatCompletion))
async def chat_completions(body: ChatBody, request: HttpRequest) -> Response:
    """Answer a conversation; with `session`, the new turns of one that was read before."""
    service = service_of(request)
    service.check(body, 1)
    length = _length(body, service)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs is for logprobs: true only", param="top_logprobs")
    messages, begun = opened(body.messages, body.continue_final_message, body.add_generation_prompt)
    tools, tokenizer = body.callable_tools(), service.tokenizer
    grammar, chat = None, None
    if tools or any(message.has_tools for message in messages):
        chat = _knows_tools(tokenizer, body)
        grammar = await in_thread(lambda: _grammar(tokenizer, chat, body, tools)) if tools else None

    def encode(before: Before) -> list[list[int]]:
        return [message_ids(tokenizer, messages, begun, before, tools)]

    return await respond(
        request,
        body,
        ChatForm(service, chat if tools else None, body.n or 1),
        encode,
        turns=[message.turn() for message in messages],
        grammar=grammar,
        begun=begun or "",
        max_new_tokens=length,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        close_turn=body.session is not None,
    )


def message_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    begun: str | None,
    before: Before,
    tools: Sequence[Tool] = (),
) -> list[int]:
    """Ids of finished turns and of the one that opens the answer, which has `begun` with this text; the
    document token first if nothing is `before` them, unless a chat template says how a dialogue opens. Raises
    ValueError where `tools`, calls or results of them are not known to the template."""
    chat = tokenizer.chat
    if tools or any(message.has_tools for message in messages):
        if chat is None or chat.call_form is None:
            raise ValueError(NO_TOOLS)
        told = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]
        for tool in told:
            tool["function"].setdefault("parameters", {"type": "object", "properties": {}})
        templated = [message.templated() for message in messages]
        return tokenizer.encode_special(chat.tool_pieces(templated, told, begun=begun or ""))
    start = [tokenizer.special_id("document")] if before == "nothing" and chat is None else []
    turns = [message.turn() for message in messages]
    return [*start, *encode_turns(tokenizer, turns, before, answer=True, begun=begun or "")]


def _knows_tools(tokenizer: Tokenizer, body: ChatBody) -> ChatTemplate:
    """The chat template, if it knows tools. Raises ApiError."""
    if tokenizer.chat is None or tokenizer.chat.call_form is None:
        raise ApiError(400, NO_TOOLS, param="tools")
    if body.session is not None:
        raise ApiError(400, "a conversation with tools takes no session: send all of it", param="session")
    return tokenizer.chat


def _grammar(tokenizer: Tokenizer, chat: ChatTemplate, body: ChatBody, tools: Sequence[Tool]) -> str:
    assert chat.call_form is not None
    wanted = body.response_format
    return call_grammar(
        tokenizer,
        chat.call_form,
        {tool.function.name: tool.function.arguments for tool in tools},
        must_call=body.tool_choice not in (None, "auto"),
        many=body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool),
        answer=None if wanted is None else wanted.schema_wanted,
    )


def _length(body: ChatBody, service: Service) -> int:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise ApiError(400, "max_tokens and max_completion_tokens differ: leave one out", param="max_tokens")
    param = "max_tokens" if new is None else "max_completion_tokens"
    return service.length(body, old if new is None else new, DEFAULT_TOKENS, param)


class ChatForm(Form):
    """Of /v1/chat/completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, service: Service, tools: ChatTemplate | None, n_choices: int) -> None:
        """With `tools`, the template by which answers call them."""
        super().__init__(service)
        form = None if tools is None else tools.call_form
        self._readers = [
            None if tools is None or form is None else CallReader(tools, form) for _ in range(n_choices)
        ]

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._delta(index, {"role": "assistant", "content": ""}, None)

    def part(self, index: int, stream: Stream, piece: Piece) -> dict[str, Any] | None:
        reader = self._readers[index]
        text, calls = (piece.text, []) if reader is None else reader.push(piece.text)
        if not (text or calls or piece.logprobs):
            return None
        delta = {
            **({"content": text} if text or not calls else {}),
            **({"tool_calls": calls} if calls else {}),
        }
        return self._delta(index, delta, piece.logprobs)

    def ending(self, index: int, stream: Stream) -> dict[str, Any]:
        reader = self._readers[index]
        text = "" if reader is None else reader.flush()
        return {**self._delta(index, {"content": text} if text else {}, None), **self._finish(index, stream)}

    def whole(self, index: int, stream: Stream, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if (reader := self._readers[index]) is not None:
            said, deltas = reader.push(text)
            message["content"] = said + reader.flush()
            if reader.called:
                message |= {"content": message["content"] or None, "tool_calls": joined(deltas)}
        return {
            "index": index,
            "message": message,
            "logprobs": self._listed(logprobs or None),
            **self._finish(index, stream),
        }

    def _finish(self, index: int, stream: Stream) -> dict[str, str]:
        reader, told = self._readers[index], finish(stream)
        called = reader is not None and reader.called and told["finish_reason"] == "stop"
        return {**told, "finish_reason": "tool_calls"} if called else told

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob] | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": self._listed(logprobs), "finish_reason": None}

    def _listed(self, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        content = [
            {
                **self._token(entry.token, entry.logprob),
                "top_logprobs": [self._token(token, logprob) for token, logprob in entry.top],
            }
            for entry in logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_text(self.tokenizer, token),
            "logprob": finite(logprob),
            "bytes": list(self.tokenizer.decode_bytes([token])),
        }
