"""The loop: read a prompt of any length in bounded pieces, then write token by token from the carried state.

The model's state has one size however much was read, so a token costs the same after a thousand and after a
million.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor

from rmat.generation.reader import read_row
from rmat.generation.row import Row, TextCodec
from rmat.generation.sampling import SamplingConfig
from rmat.model import LanguageModel, ModelConfig, StreamState
from rmat.settings import known_keywords


class Generation(Iterator[str]):
    """Text as it is written: iterate over pieces (never an empty one, never half a character).

    What it came to stands in the attributes, which are complete once the iteration is over.
    """

    text: str
    """All pieces so far."""
    tokens: list[int]
    """Tokens drawn so far: those of a matched stop string and a closing turn_end are among them, a document
    end is not."""
    prompt_tokens: int
    """Tokens of the prompt."""
    state: StreamState | None
    """The state after the prompt and all of `tokens`; None before the end. It can go into `generate`
    again."""
    next_logits: Tensor | None
    """(V,) float32 on the CPU: logits of the token after `tokens`; with `state` they let a text go on without
    a prompt."""

    def __init__(
        self,
        model: LanguageModel,
        row: Row,
        ids: Sequence[int],
        start: Callable[[], tuple[Tensor | None, StreamState | None]],
    ) -> None:
        """A text that `row` keeps the books of, behind the prompt `ids`; `start` is called when reading
        begins, for the logits (V,) and the state that it goes on from."""
        self._model, self._row, self._ids, self._start = model, row, ids, start
        self.text, self.tokens, self.prompt_tokens = "", row.tokens, len(ids)
        self.state, self.next_logits = None, None
        self._prompt_read: tuple[Tensor, StreamState | None] | None = None
        self._pieces = self._run()

    @property
    def finish(self) -> Literal["length", "stop", "end"] | None:
        """Why it is over: max_new_tokens, a stop string, or the model ended the text. None before that."""
        return self._row.finish

    def read(self, advance: Callable[[int], None] | None = None) -> None:
        """Read the prompt now, which otherwise the first `next` does; `advance` is told of the tokens
        read."""
        if self._prompt_read is None:
            logits, state = self._start()
            if self._ids:
                logits, state = read_row(self._model, self._ids, state, advance=advance)
            assert logits is not None
            self._prompt_read = logits, state

    def __next__(self) -> str:
        piece = next(self._pieces)
        self.text += piece
        return piece

    def _run(self) -> Iterator[str]:
        self.read()
        assert self._prompt_read is not None
        logits, state = self._prompt_read
        while (token := self._row.draw(logits)) is not None:
            logits, state = read_row(self._model, [token], state)
            if piece := self._row.show(token):
                yield piece
        self.state, self.next_logits = state, logits.float().cpu()
        if piece := self._row.rest():
            yield piece


@known_keywords()
def generate(
    model: LanguageModel,
    tokenizer: TextCodec,
    prompt: str | Sequence[int] = "",
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    min_tokens: int = 0,
    grammar: str | None = None,
    stop: Sequence[str] = (),
    seed: int | None = None,
    state: StreamState | None = None,
    next_logits: Tensor | None = None,
) -> Generation:
    """Text that goes on from a prompt, as an iterator over pieces of it.

    Args:
        model: on any device. It reads without dropout, and between pieces it is in the mode it was in.
        tokenizer: the one the model was trained with.
        prompt: text, or token ids taken as they are. Of any length: it is read in pieces of bounded size.
            Text without a state is read as a new document.
        max_new_tokens: most tokens to write; 0 only reads the prompt, for its `.state`.
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias,
            min_tokens, grammar, seed: see `SamplingConfig`. Penalties look at the tokens written by this
                call, not at the prompt.
        stop: strings at which the text ends; they are not part of it. The special tokens turn_end and
            document always end it.
        state: what was read before (batch size 1), such as the `.state` of an earlier generation; it stays
            valid.
        next_logits: (V,) the `.next_logits` that came with `state`; needed only to go on with an empty
            prompt.

    Raises ValueError, at the call and not during the iteration, for a setting out of range or an empty prompt
    with nothing to go on from.
    """
    sampling = SamplingConfig(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias,
        min_tokens=min_tokens,
        grammar=grammar,
        seed=seed,
    )
    check_tokenizer(tokenizer, model.config)
    ids = _prompt_ids(tokenizer, prompt, model.config.vocab_size, fresh=state is None)
    check_start(model.config, ids, state, next_logits)
    row = Row(tokenizer, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)
    return Generation(model, row, ids, lambda: (next_logits, state))


def check_tokenizer(tokenizer: TextCodec | None, config: ModelConfig) -> None:
    """Raise ValueError if there is no tokenizer, or one with more tokens than the model."""
    if tokenizer is None:
        raise ValueError(
            "tokenizer is None: give the one the model was trained with, as from rmat.load_tokenizer"
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}: "
            "use the tokenizer that was saved with the model"
        )


def check_start(
    config: ModelConfig, ids: Sequence[int], state: StreamState | None, next_logits: Tensor | None
) -> None:
    """Raise ValueError if a text cannot begin with the prompt `ids` after `state`, or with `next_logits`
    (V,)."""
    if state is not None and not isinstance(state, StreamState):
        raise ValueError(
            f"state is {type(state).__name__}: give the .state of an earlier text, or leave it out"
        )
    if state is not None and state.batch_size != 1:
        raise ValueError(
            f"state has {state.batch_size} rows: text is written for one; take one with state.select([0])"
        )
    if next_logits is not None and next_logits.shape != (config.vocab_size,):
        raise ValueError(
            f"next_logits has shape {tuple(next_logits.shape)}: give the ({config.vocab_size},) logits that "
            "came with the state"
        )
    if not ids and next_logits is None:
        raise ValueError(
            "the prompt is empty: give some text to go on from, or next_logits along with the state"
        )


def _prompt_ids(
    tokenizer: TextCodec, prompt: str | Sequence[int], vocab_size: int, *, fresh: bool
) -> list[int]:
    if not isinstance(prompt, str):
        try:
            ids = None if isinstance(prompt, bytes) else [operator.index(token) for token in prompt]
        except TypeError:
            ids = None
        if ids is None:
            raise ValueError(f"the prompt is {type(prompt).__name__}: give text, or a list of token ids")
        for token in ids:
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"token {token} of the prompt is out of range: ids must be in [0, {vocab_size})"
                )
        return ids
    ids = [*(tokenizer.opening if fresh else ()), *tokenizer.encode(prompt)]
    return ids if ids or not fresh else [tokenizer.special_id("document")]
