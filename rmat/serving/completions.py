"""/v1/completions: text goes on, or a gap is filled."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from rmat.data.tokenizer import Tokenizer
from rmat.engine.request import Piece, Stream, TokenLogprob
from rmat.serving.bodies import StrictRoute
from rmat.serving.errors import ApiError
from rmat.serving.openai_types import Completion, CompletionBody, answered
from rmat.serving.service import Service, in_thread, service_of
from rmat.serving.streaming import Form, finish, finite, respond, token_text

DEFAULT_TOKENS = 16
"""Length of an answer if nothing is said, as at OpenAI."""

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.post("/completions", responses=answered(Completion))
async def completions(body: CompletionBody, request: HttpRequest) -> Response:
    """Go on from a prompt; with `suffix`, fill the gap between the two."""
    service = service_of(request)
    tokenizer = service.tokenizer
    prompts = _prompts(body)
    service.check(body, len(prompts))
    length = service.length(body, body.max_tokens, DEFAULT_TOKENS, "max_tokens")
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "echo with logprobs is not supported: leave one out", param="echo")
    echoed = await in_thread(lambda: [_text(tokenizer, prompt) if body.echo else "" for prompt in prompts])
    return await respond(
        request,
        body,
        _Form(service, [text for text in echoed for _ in range(body.n or 1)]),
        lambda begins: [prompt_ids(tokenizer, prompt, body.suffix, begins) for prompt in prompts],
        max_new_tokens=length,
        logprobs=body.logprobs,
    )


def prompt_ids(
    tokenizer: Tokenizer, prompt: str | Sequence[int], suffix: str | None, begins: bool
) -> list[int]:
    """Ids of a prompt. Text that `begins` a document has the document token first; ids are taken as they are. A gap is
    told as in training: what follows it, what precedes it, and then what fills it."""
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if suffix is not None:
        after, before, middle = (
            tokenizer.special_id(f"fim_{part}") for part in ("suffix", "prefix", "middle")
        )
        ids = [after, *tokenizer.encode(suffix), before, *ids, middle]
    if begins and isinstance(prompt, str):
        ids = [tokenizer.special_id("document"), *ids]
    if any(token >= tokenizer.vocab_size for token in ids):
        raise ValueError(f"prompt: token ids must be below {tokenizer.vocab_size}")
    return ids


def _prompts(body: CompletionBody) -> list[str | list[int]]:
    prompt = body.prompt
    if prompt is None:
        return [""]
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(part, int) for part in prompt):
        return [[part for part in prompt if isinstance(part, int)]]
    return [part for part in prompt if not isinstance(part, int)]


def _text(tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


class _Form(Form):
    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, service: Service, echoed: Sequence[str]) -> None:
        super().__init__(service)
        self._echoed = echoed
        self._offsets = [_Offsets(self.tokenizer) for _ in echoed]

    def opening(self, index: int) -> dict[str, Any] | None:
        echoed = self._echoed[index]
        return self._choice(index, echoed, None) if echoed else None

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        return self._choice(index, piece.text, piece.logprobs)

    def ending(self, index: int, stream: Stream) -> dict[str, Any]:
        return self._choice(index, "", None, **finish(stream))

    def whole(self, index: int, stream: Stream, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        return self._choice(index, self._echoed[index] + text, logprobs or None, **finish(stream))

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] | None, **more: Any
    ) -> dict[str, Any]:
        listed = None if logprobs is None else self._offsets[index].listed(logprobs)
        return {"index": index, "text": text, "logprobs": listed, "finish_reason": None, **more}


class _Offsets:
    """Log-probabilities as this API lists them, with the place of each token in the answer's characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def listed(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        offsets = []
        for entry in logprobs:
            offsets.append(self._offset)
            self._offset += len(self._characters.decode(self._tokenizer.decode_bytes([entry.token])))
        text = self._tokenizer
        return {
            "tokens": [token_text(text, entry.token) for entry in logprobs],
            "token_logprobs": [finite(entry.logprob) for entry in logprobs],
            "top_logprobs": [
                {token_text(text, token): finite(logprob) for token, logprob in entry.top}
                for entry in logprobs
            ],
            "text_offset": offsets,
        }
