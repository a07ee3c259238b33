"""/v1/completions: text goes on, or a gap is filled."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from rmat.data.template import Before
from rmat.data.tokenizer import Tokenizer
from rmat.engine.request import Piece, Stream, TokenLogprob
from rmat.serving.bodies import StrictRoute
from rmat.serving.errors import ApiError
from rmat.serving.openai_types import Completion, CompletionBody, answered
from rmat.serving.service import Service, in_thread, service_of
from rmat.serving.streaming import Form, finish, finite, respond, token_text

Prompt = str | list[int]

DEFAULT_TOKENS = 16
"""Length of an answer if nothing is said, as at OpenAI."""

MAX_LISTED = 2**17
"""Most log-probabilities of prompts in one answer."""

_MARKED = re.compile(r"<(\|?)fim_prefix\1>(.*)<\1fim_suffix\1>(.*)<\1fim_middle\1>", re.DOTALL)
"""A gap whose marks are spelled in the prompt, as Zed and Continue send it."""

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.post("/completions", responses=answered(Completion))
async def completions(body: CompletionBody, request: HttpRequest) -> Response:
    """Go on from a prompt; with `suffix`, fill the gap between the two."""
    service = service_of(request)
    tokenizer = service.tokenizer
    prompts = _prompts(body)
    service.check(body, len(prompts))
    length = service.length(body, body.max_tokens, DEFAULT_TOKENS, "max_tokens")
    scores = bool(body.echo) and body.logprobs is not None
    if scores and body.suffix is not None:
        raise ApiError(400, "echo with logprobs takes no suffix: leave one out", param="suffix")
    echoed = await in_thread(lambda: [_text(tokenizer, prompt) if body.echo else "" for prompt in prompts])

    def encode(before: Before) -> list[list[int]]:
        begins = before == "nothing"
        ids = [prompt_ids(tokenizer, prompt, body.suffix, begins) for prompt in prompts]
        listed = sum(map(len, ids)) * (body.n or 1) * (1 + (body.logprobs or 0))
        if scores and listed > MAX_LISTED:
            message = (
                f"echo with logprobs would list {listed} numbers, at most {MAX_LISTED}: send shorter prompts"
            )
            raise ApiError(400, message, param="logprobs")
        return ids

    return await respond(
        request,
        body,
        _Form(
            service, [pair for pair in zip(prompts, echoed, strict=True) for _ in range(body.n or 1)], scores
        ),
        encode,
        max_new_tokens=length,
        logprobs=body.logprobs,
        prompt_logprobs=scores,
    )


def prompt_ids(
    tokenizer: Tokenizer, prompt: str | Sequence[int], suffix: str | None, begins: bool
) -> list[int]:
    """Ids of a prompt. Text that `begins` a document has the document token first; ids are taken as they are.
    A gap is told as in training: what follows it, what precedes it, and then what fills it. Without `suffix`,
    a prompt that marks one as StarCoder or Qwen does has that gap."""
    if suffix is None and isinstance(prompt, str) and (marked := _MARKED.fullmatch(prompt)):
        prompt, suffix = marked[2], marked[3]
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if suffix is not None:
        after, before, middle = (
            tokenizer.special_id(f"fim_{part}") for part in ("suffix", "prefix", "middle")
        )
        ids = [after, *tokenizer.encode(suffix), before, *ids, middle]
    if begins and isinstance(prompt, str):
        ids = [*tokenizer.opening, *ids]
    if any(token >= tokenizer.vocab_size for token in ids):
        raise ValueError(f"prompt: token ids must be below {tokenizer.vocab_size}")
    return ids


def _prompts(body: CompletionBody) -> list[Prompt]:
    prompt = body.prompt
    if prompt is None:
        return [""]
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(part, int) for part in prompt):
        return [[part for part in prompt if isinstance(part, int)]]
    return [part for part in prompt if not isinstance(part, int)]


def _text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


class _Form(Form):
    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, service: Service, echoed: Sequence[tuple[Prompt, str]], scores: bool) -> None:
        super().__init__(service)
        self._echoed = echoed
        self._scores = scores
        self._shown = [False for _ in echoed]
        self._offsets = [_Offsets(self.tokenizer) for _ in echoed]

    def opening(self, index: int) -> dict[str, Any] | None:
        echoed = self._echoed[index][1]
        # The prompt's log-probabilities are known when it is read; then it comes with the first piece.
        return self._choice(index, echoed) if echoed and not self._scores else None

    def part(self, index: int, stream: Stream, piece: Piece) -> dict[str, Any] | None:
        if not (piece.text or piece.logprobs):
            return None
        echoed, listed = self._scored(index, stream)
        return self._choice(index, echoed + piece.text, listed, piece.logprobs)

    def ending(self, index: int, stream: Stream) -> dict[str, Any]:
        echoed, listed = self._scored(index, stream)
        return {**self._choice(index, echoed, listed), **finish(stream)}

    def whole(self, index: int, stream: Stream, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        _, listed = self._scored(index, stream)
        text = self._echoed[index][1] + text
        return {**self._choice(index, text, listed, logprobs or None), **finish(stream)}

    def _scored(self, index: int, stream: Stream) -> tuple[str, list[TokenLogprob]]:
        """The prompt and its tokens, at the first call, if it is shown with its log-probabilities."""
        if not self._scores or self._shown[index]:
            return "", []
        self._shown[index] = True
        prompt, echoed = self._echoed[index]
        # Text has no special tokens: what it begins with is the document token that was put before it.
        added = (
            isinstance(prompt, str) and stream.prompt_logprobs[:1] and self._begins(stream.prompt_logprobs[0])
        )
        return echoed, stream.prompt_logprobs[1:] if added else stream.prompt_logprobs

    def _begins(self, first: TokenLogprob) -> bool:
        return first.token in self.tokenizer.opening

    def _choice(
        self,
        index: int,
        text: str,
        prompt: Sequence[TokenLogprob] = (),
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> dict[str, Any]:
        told = prompt or logprobs is not None
        listed = self._offsets[index].listed(prompt, logprobs or ()) if told else None
        return {"index": index, "text": text, "logprobs": listed, "finish_reason": None}


class _Offsets:
    """Log-probabilities as this API lists them, with the place of each token in the answer's characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream()
        self._offset = 0

    def listed(self, prompt: Sequence[TokenLogprob], written: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Those of the prompt, if this is where it is shown, and of what was written since the last call."""
        offsets: list[int] = []
        logprobs, text = [*prompt, *written], self._tokenizer
        for place, entry in enumerate(logprobs):
            if prompt and place == len(prompt):
                self._offset += len(self._stream.flush())  # the answer is a text of its own
            offsets.append(self._offset)
            self._offset += len(self._stream.push(entry.token))
        return {
            "tokens": [token_text(text, entry.token) for entry in logprobs],
            "token_logprobs": [
                None if math.isnan(entry.logprob) else finite(entry.logprob) for entry in logprobs
            ],
            "top_logprobs": [
                None
                if math.isnan(entry.logprob)
                else {token_text(text, token): finite(logprob) for token, logprob in entry.top}
                for entry in logprobs
            ],
            "text_offset": offsets,
        }
