"""Texts and data of reports on tiny models."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmat.data.corpus import Ids, Reading
from rmat.data.tokenizer import Tokenizer, byte_tokenizer
from rmat.model import LanguageModel
from rmat.report.contents import contents
from rmat.report.trace import trace

BYTES = byte_tokenizer()


def document(text: str, tokenizer: Tokenizer = BYTES) -> Ids:
    """The ids of a text, the document token first."""
    return np.array([tokenizer.special_id("document"), *tokenizer.encode(text)], dtype=np.int64)


def random_document(model: LanguageModel, n_tokens: int, seed: int = 0) -> Ids:
    """Ids of the model's vocabulary."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, n_tokens)


def told_of(
    model: LanguageModel, texts: Sequence[str], training: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The data of a report on texts in bytes."""
    reading = Reading(
        name="some texts",
        names=tuple(f"text {k}" for k in range(len(texts))),
        documents=tuple(document(text) for text in texts),
    )
    found = trace(model, reading.documents)
    return contents(model, BYTES, found, reading=reading, model_name="a model", training=training)
