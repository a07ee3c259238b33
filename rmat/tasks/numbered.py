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
