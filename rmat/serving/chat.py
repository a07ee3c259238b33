"""/v1/chat/completions: turns are answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from rmat.data.documents import Turn, encode_turns
from rmat.data.template import Before
from rmat.data.tokenizer import Tokenizer
from rmat.engine.request import Piece, Stream, TokenLogprob
from rmat.serving.bodies import StrictRoute
from rmat.serving.errors import ApiError
from rmat.serving.openai_types import ChatBody, ChatCompletion, answered, turns_of
from rmat.serving.service import Service, service_of
from rmat.serving.streaming import Form, finish, finite, respond, token_text

DEFAULT_TOKENS = 1024
"""Length of an answer if nothing is said."""

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.post("/chat/completions", responses=answered(ChatCompletion))
async def chat_completions(body: ChatBody, request: HttpRequest) -> Response:
    """Answer a conversation; with `session`, the new turns of one that was read before."""
    service = service_of(request)
    service.check(body, 1)
    length = _length(body, service)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs is for logprobs: true only", param="top_logprobs")
    turns, begun = turns_of(body.messages, body.continue_final_message, body.add_generation_prompt)
    return await respond(
        request,
        body,
        _Form(service),
        lambda before: [chat_ids(service.tokenizer, turns, begun, before)],
        turns=turns,
        begun=begun or "",
        max_new_tokens=length,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        close_turn=body.session is not None,
    )


def chat_ids(tokenizer: Tokenizer, turns: Sequence[Turn], begun: str | None, before: Before) -> list[int]:
    """Ids of finished turns and of the one that opens the answer, which has `begun` with this text; the
    document token first if nothing is `before` them, unless a chat template says how a dialogue opens."""
    start = [tokenizer.special_id("document")] if before == "nothing" and tokenizer.chat is None else []
    return [*start, *encode_turns(tokenizer, turns, before, answer=True, begun=begun or "")]


def _length(body: ChatBody, service: Service) -> int:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise ApiError(400, "max_tokens and max_completion_tokens differ: leave one out", param="max_tokens")
    param = "max_tokens" if new is None else "max_completion_tokens"
    return service.length(body, old if new is None else new, DEFAULT_TOKENS, param)


class _Form(Form):
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._delta(index, {"role": "assistant", "content": ""}, None)

    def part(self, index: int, stream: Stream, piece: Piece) -> dict[str, Any]:
        return self._delta(index, {"content": piece.text}, piece.logprobs)

    def ending(self, index: int, stream: Stream) -> dict[str, Any]:
        return {**self._delta(index, {}, None), **finish(stream)}

    def whole(self, index: int, stream: Stream, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._listed(logprobs or None),
            **finish(stream),
        }

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
