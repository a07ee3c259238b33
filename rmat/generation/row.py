"""One text as it is written, without the model: draws, ends, whole characters, stop strings.

Whoever runs the model, alone or for many texts at once, asks a `Row` which token to read next and what to
show for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from rmat.generation.grammar import Constraint
from rmat.generation.reader import check_finite
from rmat.generation.sampling import Sampler, SamplingConfig
from rmat.generation.stopping import StopMatcher
from rmat.settings import refuse, whole


class TextCodec(Protocol):
    """What generation needs of a tokenizer; `rmat.data.tokenizer.Tokenizer` has it."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode_bytes(self, ids: Sequence[int], /) -> bytes: ...

    @property
    def opening(self) -> tuple[int, ...]: ...

    @property
    def ends(self) -> frozenset[int]: ...

    def special_id(self, name: str, /) -> int: ...

    def has_special(self, name: str, /) -> bool: ...

    @property
    def closing(self) -> list[int]: ...

    def stream(self, *, begins: bool = True) -> TextStream: ...


class TextStream(Protocol):
    """Text of tokens that come one after the other, in whole characters."""

    def push(self, token: int, /) -> str: ...

    def flush(self) -> str: ...


class Row:
    """The book-keeping of one text. Per token: `draw`, then the model reads the token, then `show`; at the
    end `rest`.

    Args:
        tokenizer: what is shown is `tokenizer.decode` of the tokens.
        max_new_tokens, sampling, stop: as in `rmat.generate`.
        sampler, matcher: take the places of what `sampling` and `stop` make.
        begins: False where the text goes on inside another one, which the first token of some tokenizers
            tells.

    Raises ValueError for a setting out of range.
    """

    tokens: list[int]
    """Tokens drawn so far: those of a matched stop string and a closing turn_end are among them, a document
    end is not."""
    finish: Literal["length", "stop", "end"] | None
    """Why it is over: max_new_tokens, a stop string, or the model ended the text. None before that."""

    def __init__(
        self,
        tokenizer: TextCodec,
        *,
        max_new_tokens: int,
        sampling: SamplingConfig,
        stop: Sequence[str],
        sampler: Sampler | None = None,
        matcher: StopMatcher | None = None,
        begins: bool = True,
    ) -> None:
        remedy = "give a whole number, 0 (only read the prompt) or more"
        self._max_new_tokens = whole("max_new_tokens", max_new_tokens, remedy=remedy)
        if sampling.min_tokens > self._max_new_tokens:
            refuse("min_tokens", sampling.min_tokens, f"at most max_new_tokens={max_new_tokens} are written")
        self.tokens, self.finish = [], None
        self._turn_end, self._ends = tokenizer.special_id("turn_end"), tokenizer.ends
        self._min_tokens = sampling.min_tokens
        ends = (self._turn_end, *self._ends)
        grammar = sampling.grammar
        constraint = None if grammar is None else Constraint(grammar, tokenizer, ends)
        self._sampler = sampler or Sampler(sampling, tokenizer.vocab_size, ends, constraint)
        self._matcher = matcher or StopMatcher(stop)
        self._stream = tokenizer.stream(begins=begins)

    def draw(self, logits: Tensor) -> int | None:
        """The token to read next, from the logits (V,) after the last one; None if the text is over. Raises
        NotFiniteError, GrammarError."""
        if self.finish is None and len(self.tokens) == self._max_new_tokens:
            self.finish = "length"
        if self.finish is not None:
            return None
        check_finite(logits)
        token = self._sampler.draw(logits)
        if token in self._ends:
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
        piece, stopped = self._matcher.push(self._stream.push(token))
        if stopped:
            self.finish = "stop"
        return piece

    def rest(self) -> str:
        """The text that was held back, now that nothing follows."""
        if self.finish == "stop":
            return ""
        piece, stopped = self._matcher.push(self._stream.flush())
        return piece if stopped else piece + self._matcher.flush()
