"""Texts that a grammar or a JSON schema allows: which tokens may come next. The parser is llguidance's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from rmat.generation.row import TextCodec

WHITESPACE = r" |\n( {0,24}|\t{0,8})"
"""Between the parts of a JSON text: compact, on one line or indented. JSON allows blanks without end, and a
model would write them."""


MAX_SIZE = 20_000
"""Most symbols of a grammar: a larger one may take many seconds to prepare."""


class GrammarError(ValueError):
    """A grammar cannot be followed, or not from where a text is."""


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON texts that are valid by a JSON schema, properties in the schema's order.

    Which keywords it can follow, llguidance's documentation tells; others are refused when the grammar is
    used. Raises ValueError for what is no JSON object.
    """
    return f'%llguidance {{"skip_repetition": "once"}}\nstart: {json_rule(schema)}'


def json_rule(schema: Mapping[str, Any]) -> str:
    """The right side of a rule, as in `json_grammar`, whose first line a grammar with such a rule needs too.
    Raises ValueError."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"the JSON schema is {type(schema).__name__}: give an object such as a dict")
    try:
        text = json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the JSON schema cannot be written as JSON: {error}") from None
    return f"%json {text}"


class Constraint:
    """The place of one text in its grammar. Each text has its own.

    Args:
        grammar: in llguidance's variant of Lark's language, such as `json_grammar` gives.
        tokenizer: of the model that writes.
        ends: tokens that end a text; they may be drawn where the grammar may end.

    Raises GrammarError for a grammar that cannot be followed, ModuleNotFoundError without llguidance.
    """

    def __init__(self, grammar: str, tokenizer: TextCodec, ends: Iterable[int]) -> None:
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError:
            raise ModuleNotFoundError(
                "a grammar needs the llguidance package: pip install 'rmat[grammar]'"
            ) from None

        if tokenizer.decode_bytes(tokenizer.encode("a")) != b"a":
            # Where the grammar leaves one text, llguidance takes the tokens that `encode` makes of it: not of
            # a tokenizer that puts a blank in front of each text.
            grammar = f'%llguidance {{"no_forcing": true}}\n{grammar}'
        self._size = tokenizer.vocab_size
        vocabulary = _vocabulary(tokenizer.encode, spellings(tokenizer), tuple(sorted(set(ends))))
        limits = LLParserLimits(max_grammar_size=MAX_SIZE, verbose_errors=False)
        self._matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
        if reason := self._error():
            raise GrammarError(f"the grammar or JSON schema cannot be followed ({reason}): change that part")
        self.allowed()

    @property
    def complete(self) -> bool:
        """Whether nothing can follow but the end of the text."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Tensor:
        """(V,) bool on the CPU: tokens that may come next. Raises GrammarError."""
        mask = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[: self._size] > 0
        if (reason := self._error()) or not mask.any():
            raise GrammarError(f"the text cannot go on by its grammar: {reason or 'no token fits'}")
        return torch.from_numpy(mask)

    def accept(self, token: int) -> None:
        """Go on behind `token`, one of the allowed."""
        self._matcher.consume_token(token)

    def _error(self) -> str:
        """What is wrong in a few words, without the lines of the grammar that llguidance shows."""
        reason = re.split(r"\n +\d+ \| |\s*<non-verbose/>", self._matcher.get_error())[0]
        return " ".join(re.sub(r"^at \d+\(\d+\): ", "", reason).split())[:300]


def spellings(tokenizer: TextCodec) -> tuple[bytes, ...]:
    """Bytes of every token; none for special tokens."""
    return _spelled(tokenizer.decode_bytes, tokenizer.vocab_size)


@lru_cache(maxsize=2)
def _spelled(decode: Callable[[Sequence[int]], bytes], vocab_size: int) -> tuple[bytes, ...]:
    return tuple(decode([token]) for token in range(vocab_size))


@lru_cache(maxsize=2)
def _vocabulary(
    encode: Callable[[str], list[int]], spelled: tuple[bytes, ...], ends: tuple[int, ...]
) -> LLTokenizer:
    """A tokenizer as llguidance wants it, which takes a second to make from a large one."""
    from llguidance import LLTokenizer

    return LLTokenizer(_Wrapper(encode, spelled, ends[0]), eos_token=list(ends))  # type: ignore[arg-type]


class _Wrapper:
    """What llguidance asks of a tokenizer of another library."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, encode: Callable[[str], list[int]], spelled: Sequence[bytes], end: int) -> None:
        self.eos_token_id = end
        self.special_token_ids = [token for token, text in enumerate(spelled) if not text]
        self.tokens = [text or b"%d" % token for token, text in enumerate(spelled)]
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)
