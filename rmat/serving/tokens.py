"""/tokenize and /detokenize: text to token ids and back, in the forms of vLLM and of llama.cpp's server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from pydantic import Field

from rmat.data.tokenizer import Tokenizer
from rmat.serving.bodies import StrictRoute
from rmat.serving.chat import message_ids
from rmat.serving.errors import ApiError
from rmat.serving.openai_types import ERRORS, MAX_MESSAGES, Body, Message, TokenIds, field_names, opened
from rmat.serving.service import in_thread, service_of
from rmat.serving.streaming import token_text

router = APIRouter(route_class=StrictRoute, responses=ERRORS)


class TokenizeBody(Body):
    """One of `prompt` and `messages`, as /v1/completions and /v1/chat/completions would read them (vLLM), or
    `content`, the text alone (llama.cpp)."""

    model: Annotated[str, Field(max_length=256)] | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = Field(
        None, description="the document token before `prompt`; default true"
    )
    messages: (
        Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None
    ) = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = Field(None, description="tokens as text too, as `token_strs`")
    content: str | None = None
    add_special: bool | None = Field(None, description="the document token before `content`; default false")
    parse_special: Literal[False] | None = None
    with_pieces: bool | None = Field(None, description="tokens as objects with `id` and `piece`")


class DetokenizeBody(Body):
    """Token ids."""

    model: Annotated[str, Field(max_length=256)] | None = None
    tokens: TokenIds


FIELD_NAMES = field_names(TokenizeBody, DetokenizeBody)
"""Names that a path to a mistake may hold."""


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: HttpRequest) -> Response:
    """The token ids of a text or of messages."""
    service = service_of(request)
    service.check_model(body.model)
    if sum(given is not None for given in (body.prompt, body.content, body.messages)) != 1:
        raise ApiError(400, "give one of prompt, content and messages", param="prompt")

    def work() -> Response:
        ids = _ids(service.tokenizer, body)
        answer: dict[str, Any] = {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": service.limits.max_prompt_tokens,
        }
        if body.return_token_strs:
            answer["token_strs"] = [token_text(service.tokenizer, token) for token in ids]
        if body.with_pieces:
            answer["tokens"] = [{"id": token, "piece": _piece(service.tokenizer, token)} for token in ids]
        return JSONResponse(answer)

    return await in_thread(work)


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: HttpRequest) -> Response:
    """The text of token ids, special tokens by name: as `prompt` (vLLM) and as `content` (llama.cpp)."""
    service = service_of(request)
    service.check_model(body.model)

    def work() -> Response:
        text = spelled(service.tokenizer, body.tokens, service.tokenizer.special_names)
        return JSONResponse({"prompt": text, "content": text})

    return await in_thread(work)


def spelled(tokenizer: Tokenizer, ids: Sequence[int], special: Mapping[int, str]) -> str:
    """Text of `ids`, with that of `special` in the place of special tokens. Raises ValueError for ids out of
    range."""
    runs = groupby(ids, key=special.__contains__)
    return "".join(
        "".join(special[token] for token in run) if named else tokenizer.decode(list(run))
        for named, run in runs
    )


def _ids(tokenizer: Tokenizer, body: TokenizeBody) -> list[int]:
    if body.messages is not None:
        messages, begun = opened(body.messages, body.continue_final_message, body.add_generation_prompt)
        return message_ids(tokenizer, messages, begun, "nothing")
    if body.prompt is not None:
        text, begins = body.prompt, body.add_special_tokens is not False
    else:
        text, begins = body.content or "", bool(body.add_special)
    return [*(tokenizer.opening if begins else ()), *tokenizer.encode(text)]


def _piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """A token's text, or its bytes where they are no whole character."""
    raw = tokenizer.decode_bytes([token])
    try:
        return raw.decode() or token_text(tokenizer, token)
    except UnicodeDecodeError:
        return list(raw)
