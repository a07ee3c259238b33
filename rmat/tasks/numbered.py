"""The vocabulary of tasks that speak in numbered tokens: token i is written as the decimal number i."""

from __future__ import annotations

import tokenizers
from tokenizers import models, pre_tokenizers

from rmat.data.tokenizer import Tokenizer


def numbered_tokenizer(size: int) -> Tokenizer:
    """`size` numbered tokens 0..size-1, then the special tokens. Text is numbers with blanks between."""
    backend = tokenizers.Tokenizer(
        models.WordLevel({str(i): i for i in range(size)} | {"[unknown]": size}, unk_token="[unknown]")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend)


def require_numbered(tokenizer: Tokenizer, size: int, task: str) -> None:
    """Raise ValueError for a tokenizer whose first `size` tokens are not the numbered ones of a task's
    rows."""
    if size > tokenizer.vocab_size or tokenizer.encode(str(size - 1)) != [size - 1]:
        raise ValueError(
            f"the model does not speak in the numbered tokens of {task}: ask a model that was trained on it "
            f"(rmat train --data {task})"
        )
