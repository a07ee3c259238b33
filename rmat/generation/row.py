"""One text as it is written, without the model: draws, ends, whole characters, stop strings.

Whoever runs the model, alone or for many texts at once, asks a `Row` which token to read next and what to show for it.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from rmat.generation.reader import check_finite
from rmat.generation.sampling import Sampler, SamplingConfig
from rmat.generation.stopping import StopMatcher
from rmat.settings import refuse, whole

END_TOKENS = ("turn_end", "document")
"""Special tokens at which a text is over."""


class TextCodec(Protocol):
    """What generation needs of a tokenizer; `rmat.data.tokenizer.Tokenizer` has it."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode_bytes(self, ids: Sequence[int], /) -> bytes: ...

    def special_id(self, name: str, /) -> int: ...


class Row:
    """The book-keeping of one text. Per token: `draw`, then the model reads the token, then `show`; at the end `rest`.

    Raises ValueError for a setting out of range.
    """

    tokens: list[int]
    """Tokens drawn so far: those of a matched stop string and a closing turn_end are among them, a document end is not."""
    finish: Literal["length", "stop", "end"] | None
    """Why it is over: max_new_tokens, a stop string, or the model ended the text. None before that."""

    def __init__(
        self, tokenizer: TextCodec, *, max_new_tokens: int, sampling: SamplingConfig, stop: Sequence[str]
    ) -> None:
        remedy = "give a whole number, 0 (only read the prompt) or more"
        self._max_new_tokens = whole("max_new_tokens", max_new_tokens, remedy=remedy)
        if sampling.min_tokens > self._max_new_tokens:
            refuse("min_tokens", sampling.min_tokens, f"at most max_new_tokens={max_new_tokens} are written")
        self.tokens, self.finish = [], None
        self._tokenizer = tokenizer
        self._turn_end, self._document = (tokenizer.special_id(name) for name in END_TOKENS)
        self._min_tokens = sampling.min_tokens
        self._sampler = Sampler(sampling, tokenizer.vocab_size, (self._turn_end, self._document))
        self._matcher = StopMatcher(stop)
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def draw(self, logits: Tensor) -> int | None:
        """The token to read next, from the logits (V,) after the last one; None if the text is over. Raises
        NotFiniteError."""
        if self.finish is None and len(self.tokens) == self._max_new_tokens:
            self.finish = "length"
        if self.finish is not None:
            return None
        check_finite(logits)
        token = self._sampler.draw(logits)
        if token == self._document:
            self.finish = "end"
            return None
        self.tokens.append(token)
        return token

    def show(self, token: int) -> str:
        """The text that is safe to show after `token`, which may be none."""
        if token == self._turn_end:
            self.finish = "end"
            return ""
        self._matcher.active = len(self.tokens) > self._min_tokens
        piece, stopped = self._matcher.push(self._characters.decode(self._tokenizer.decode_bytes([token])))
        if stopped:
            self.finish = "stop"
        return piece

    def rest(self) -> str:
        """The text that was held back, now that nothing follows."""
        if self.finish == "stop":
            return ""
        piece, stopped = self._matcher.push(self._characters.decode(b"", final=True))
        return piece if stopped else piece + self._matcher.flush()
