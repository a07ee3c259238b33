"""What editors ask for besides /v1/completions: /infill of llama.cpp's server, /v1/fim/completions of
Mistral's API."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from rmat.data.tokenizer import Tokenizer
from rmat.generation.cursor import file_header
from rmat.serving.bodies import StrictRoute
from rmat.serving.chat import ChatForm
from rmat.serving.completions import prompt_ids
from rmat.serving.openai_types import (
    ERRORS,
    Body,
    ChatCompletion,
    WritingBody,
    answered,
    field_names,
)
from rmat.serving.service import service_of
from rmat.serving.streaming import begin, finish, respond

DEFAULT_TOKENS = 128
"""Length of an answer if nothing is said, as of `rmat complete`."""

router = APIRouter(route_class=StrictRoute, responses=ERRORS)


class ExtraFile(Body):
    """A part of another file, or of the same one."""

    text: str
    filename: Annotated[str, Field(max_length=4096)] | None = None
    time: Any = None


class InfillBody(WritingBody):
    """A gap between `input_prefix` with `prompt` and `input_suffix`, with other files before it."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: Annotated[list[ExtraFile], Field(max_length=1024, fail_fast=True)] | None = None
    prompt: str = Field("", description="goes on behind `input_prefix`: the cursor's line up to the cursor")
    n_predict: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(
        None, description="-1: as many as by default"
    )
    response_fields: Annotated[list[str], Field(max_length=64, fail_fast=True)] | None = Field(
        None, description="only these fields of the answer"
    )
    n: Literal[1] | None = None
    session: None = None
    stream: Literal[False] | None = None

    # Accepted and ignored: they do not change an answer, or say how llama.cpp is to find one.
    id_slot: int | None = None
    n_indent: int | None = None
    samplers: Any = None
    t_max_prompt_ms: Any = None
    t_max_predict_ms: Any = None


class FimBody(WritingBody):
    """A gap between `prompt` and `suffix`."""

    prompt: str
    suffix: str | None = None


FIELD_NAMES = field_names(InfillBody, ExtraFile, FimBody)
"""Names that a path to a mistake may hold."""


class Infill(BaseModel):
    """A text for a gap; with `response_fields`, only those."""

    content: str | None = None
    stop: bool | None = None
    stop_type: Literal["eos", "word", "limit"] | None = None
    model: str | None = None
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    tokens_cached: int | None = None
    truncated: bool | None = None


@router.post("/infill", responses={200: {"model": Infill}})
async def infill(body: InfillBody, request: HttpRequest) -> Response:
    """Fill a gap, as llama.cpp's server does for llama.vim and llama.vscode. The likeliest tokens, unless a
    temperature is given; without the suffix where the model was not trained with gaps."""
    service = service_of(request)
    service.check(body, 1)
    asked = body.max_tokens if body.n_predict in (None, -1) else body.n_predict
    sampling = body.sampling(0)
    if body.temperature is None:
        sampling = dataclasses.replace(sampling, temperature=0.0)
    answers = await begin(
        request,
        None,
        lambda before: [_infill_ids(service.tokenizer, body)],
        [sampling],
        max_new_tokens=service.length(body, asked, DEFAULT_TOKENS, "n_predict"),
        stop=body.stops(),
    )
    (text,), _ = await answers.collect(request)
    (stream,), usage = answers.streams, answers.usage()
    told = finish(stream)
    reason = "limit" if told["finish_reason"] == "length" else "word"
    whole = {
        "content": text,
        "stop": True,
        "stop_type": "eos" if told["finish_detail"] == "end" else reason,
        "model": service.model_name,
        "tokens_predicted": usage["completion_tokens"],
        "tokens_evaluated": usage["prompt_tokens"],
        "tokens_cached": usage["prompt_tokens_details"]["cached_tokens"],
        "truncated": False,
    }
    wanted = body.response_fields
    return JSONResponse({name: value for name, value in whole.items() if wanted is None or name in wanted})


def _infill_ids(tokenizer: Tokenizer, body: InfillBody) -> list[int]:
    ids = [*tokenizer.opening]
    for part in body.input_extra or ():
        ids += [*file_header(tokenizer, part.filename or ""), *tokenizer.encode(part.text)]
    gap = body.input_suffix.strip() and tokenizer.has_special("fim_suffix")
    before = body.input_prefix + body.prompt
    ids += prompt_ids(tokenizer, before, body.input_suffix if gap else None, begins=False)
    return ids or [tokenizer.special_id("document")]


@router.post("/v1/fim/completions", responses=answered(ChatCompletion))
async def fim_completions(body: FimBody, request: HttpRequest) -> Response:
    """Fill the gap between `prompt` and `suffix`, answered in the form of a chat, as Mistral's API does for
    Continue."""
    service = service_of(request)
    service.check(body, 1)
    return await respond(
        request,
        body,
        ChatForm(service, None, body.n or 1),
        lambda before: [prompt_ids(service.tokenizer, body.prompt, body.suffix, before == "nothing")],
        max_new_tokens=service.length(body, body.max_tokens, DEFAULT_TOKENS, "max_tokens"),
    )
