"""Text at a cursor: other files, what stands behind and what stands before are read, then what lies between is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor

from rmat.generation.cursor import CursorRow, Mode, cursor_prompt, file_header
from rmat.generation.reader import piece_length, read_row
from rmat.generation.row import TextCodec
from rmat.generation.sampling import SamplingConfig
from rmat.generation.stream import Generation, check_tokenizer
from rmat.model import LanguageModel, StreamState

File = tuple[str, str]
"""Name and text of a file; the name is its path in the repository, with slashes."""


class Completion(Generation):
    """What `complete` returns: a `Generation` that reads its context when the iteration begins.

    `prompt_tokens` counts the tokens of the file alone.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: TextCodec,
        ids: Sequence[int],
        row: CursorRow,
        *,
        context: Iterable[File],
        state: StreamState | None,
    ) -> None:
        super().__init__(
            model,
            tokenizer,
            ids,
            max_new_tokens=0,
            sampling=SamplingConfig(),
            stop=(),
            state=state,
            next_logits=None,
        )
        self._row, self.tokens = row, row.tokens
        self._pieces = self._begin(model, tokenizer, list(ids), context, state)

    def _begin(
        self,
        model: LanguageModel,
        tokenizer: TextCodec,
        ids: list[int],
        context: Iterable[File],
        state: StreamState | None,
    ) -> Iterator[str]:
        logits, state = read_context(model, tokenizer, context, state=state)
        yield from self._run(model, ids, state, logits)


def complete(
    model: LanguageModel,
    tokenizer: TextCodec,
    prefix: str,
    suffix: str = "",
    *,
    file_name: str | None = None,
    context: Iterable[File] = (),
    state: StreamState | None = None,
    mode: Mode = "auto",
    lines: int | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    stop: Sequence[str] = (),
    seed: int | None = None,
) -> Completion:
    """What stands between `prefix` and `suffix`, as an iterator over pieces of it.

    Args:
        model: on any device; see `rmat.generate`.
        tokenizer: the one the model was trained with.
        prefix, suffix: the file before and behind the cursor, of any length.
        file_name: name of the file, as in the context; None for text that has no name in training either.
        context: other files, in the order in which they are read: the nearest last. It may be a generator: a file is
            needed only while it is read.
        state: what `read_context` has read before (batch size 1); it stays valid, so many completions can go on from it.
        mode: "fim" shows the model the suffix and is for models trained with `data.fim_rate`; "plain" does not; "auto"
            shows it if it is more than blanks.
        lines: end after so many lines, blank ones in front not counted; 0 goes on to max_new_tokens; None ends with the
            statement behind whose words the cursor stands or, on a blank line, with the block
            (`rmat.generation.cursor.block_end`).
        max_new_tokens: most tokens to write, the one that covers the prefix's last token among them.
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, stop, seed: as in
            `rmat.generate`.

    Raises ValueError, at the call and not during the iteration, for a setting out of range or nothing to go on from.
    """
    if lines is not None and (not isinstance(lines, int) or lines < 0):
        raise ValueError(f"lines is {lines!r}: give a whole number, 0 (no end) or more, or leave it out")
    sampling = SamplingConfig(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
    )
    check_tokenizer(tokenizer, model.config)
    # Without a token to write, what is taken off the prompt would never be read.
    prompt = cursor_prompt(
        tokenizer, prefix, suffix, file_name=file_name, mode=mode, heal=max_new_tokens != 0
    )
    row = CursorRow(
        tokenizer,
        removed=prompt.removed,
        line=prefix.rpartition("\n")[2],
        lines=lines,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
    )
    return Completion(model, tokenizer, prompt.ids, row, context=context, state=state)


def read_context(
    model: LanguageModel,
    tokenizer: TextCodec,
    files: Iterable[File],
    *,
    state: StreamState | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[Tensor | None, StreamState]:
    """Read files one after the other into a state: logits (V,) after the last token, and the state.

    Without a state the document token is read first; with one and without files nothing is, and the logits are None.

    Args:
        model, tokenizer, files, state: as in `complete`.
        advance: told the UTF-8 bytes read since it was told last.
    """
    logits: Tensor | None = None
    if state is None:
        logits, state = read_row(model, [tokenizer.special_id("document")], None)
    piece = piece_length(model)
    for name, text in files:
        ids = [*file_header(tokenizer, name), *tokenizer.encode(text)]
        size, told = len(text.encode()), 0
        for start in range(0, len(ids), piece):
            logits, state = read_row(model, ids[start : start + piece], state)
            done = size * min(start + piece, len(ids)) // len(ids)
            if advance is not None:
                advance(done - told)
            told = done
    return logits, state
