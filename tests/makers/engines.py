"""Models, requests and a record of the model's calls for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rmat.data.tokenizer import Tokenizer
from rmat.engine.request import Request, Stream
from rmat.generation.sampling import SamplingConfig
from rmat.generation.stream import Generation, generate
from rmat.model import LanguageModel, ModelConfig, StreamState

WAIT = 60.0
"""Seconds after which a test gives up; nothing here takes one."""


def small_model(variant: str, tokenizer: Tokenizer, **fields: Any) -> LanguageModel:
    """A random model that writes printable ASCII and never ends a text."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 2,
        "segment_len": 16,
        "tie_embeddings": False,
    }
    if variant in ("recommended", "paper"):
        settings["n_slots"] = 8
    model = LanguageModel(ModelConfig.preset("tiny", variant=variant, **{**settings, **fields})).eval()
    with torch.no_grad():
        model.head.weight.mul_(40)
        model.head.weight[:32] = 0
        model.head.weight[127:] = 0
    return model


def ask(tokenizer: Tokenizer, text: str, *, max_new_tokens: int = 20, **options: Any) -> Request:
    """A request for text behind a document that begins with `text`; sampling settings are taken out of
    `options`."""
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "grammar", "seed")
    sampling = {"seed": 0, **{name: options.pop(name) for name in names if name in options}}
    ids = (tokenizer.special_id("document"), *tokenizer.encode(text))
    return replace(
        Request(ids=ids, sampling=SamplingConfig(**sampling), max_new_tokens=max_new_tokens), **options
    )


def text_of(stream: Stream) -> str:
    """The whole text of a stream, waiting for its end."""
    text = ""
    while (piece := stream.get(WAIT)) is not None:
        text += piece.text
    return text


def alone(model: LanguageModel, tokenizer: Tokenizer, request: Request) -> Generation:
    """The finished text of a lone run of `rmat.generate` for a request."""
    sampling = request.sampling
    writing = generate(
        model,
        tokenizer,
        list(request.ids),
        max_new_tokens=request.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        grammar=sampling.grammar,
        seed=sampling.seed,
        stop=request.stop,
        state=request.state,
        next_logits=request.next_logits,
    )
    list(writing)
    return writing


def same(first: StreamState | None, second: StreamState | None) -> bool:
    """Whether two states are equal bit for bit."""
    assert first is not None and second is not None
    others = second.tensors()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.tensors().items())


@contextmanager
def calls_of(
    model: LanguageModel, before: Callable[[Tensor, StreamState], None] | None = None
) -> Iterator[list[tuple[int, int]]]:
    """Every call of the model as (rows, tokens); `before` sees it first and may raise."""
    calls: list[tuple[int, int]] = []
    hidden = model.hidden

    def recording(tokens: Tensor, state: StreamState, **options: Any) -> Any:
        calls.append((tokens.shape[0], tokens.shape[1]))
        if before is not None:
            before(tokens, state)
        return hidden(tokens, state, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "hidden", recording)
        yield calls
