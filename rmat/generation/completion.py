"""Text at a cursor: other files, what stands behind and what stands before are read, then what lies between
is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from torch import Tensor

from rmat.generation.cursor import CursorRow, Mode, cursor_prompt, file_header
from rmat.generation.reader import read_row, spans
from rmat.generation.row import TextCodec
from rmat.generation.sampling import SamplingConfig
from rmat.generation.stream import Generation, check_start, check_tokenizer
from rmat.model import LanguageModel, StreamState
from rmat.settings import known_keywords, string, whole

File = tuple[str, str]
"""Name and text of a file; the name is its path in the repository, with slashes."""


class Completion(Generation):
    """What `complete` returns: a `Generation` whose context is read with the prompt, and whose line ends are
    the file's.

    `prompt_tokens` counts the tokens of the file alone.
    """

    def __init__(self, *generation: Any, mode: Literal["fim", "plain"], newline: str) -> None:
        super().__init__(*generation)
        self.mode = mode
        """Whether the model was shown the suffix."""
        self.newline = newline
        """Line end of the file."""

    def _run(self) -> Iterator[str]:
        for piece in super()._run():
            if self.newline != "\n":
                piece = piece.replace("\r", "").replace("\n", self.newline)
            if piece:
                yield piece


@known_keywords()
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
        context: other files, in the order in which they are read: the nearest last. It may be a generator: a
            file is needed only while it is read.
        state: what `read_context` has read before (batch size 1); it stays valid, so many completions can go
            on from it.
        mode: "fim" shows the model the suffix and is for models trained with `data.fim_rate`; "plain" does
            not; "auto" takes "plain", with which every model measured so far writes better lines (`rmat eval
            completion` measures both).
        lines: end after so many lines, blank ones in front not counted; 0 goes on to max_new_tokens; None
            ends with the statement behind whose words the cursor stands or, on a blank line, with the block
            (`rmat.generation.cursor.block_end`).
        max_new_tokens: most tokens to write, the one that covers the prefix's last token among them.
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, stop, seed:
            as in `rmat.generate`.

    Raises ValueError, at the call and not during the iteration, for a setting out of range or nothing to go
    on from.
    """
    if lines is not None:
        lines = whole("lines", lines, remedy="give a whole number, 0 (no end) or more, or leave it out")
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
    for name, value in (("prefix", prefix), ("suffix", suffix), ("file_name", file_name or "")):
        string(name, value)
    check_tokenizer(tokenizer, model.config)
    newline = "\n"
    if 2 * (prefix.count("\r\n") + suffix.count("\r\n")) > prefix.count("\n") + suffix.count("\n"):
        newline = "\r\n"
        prefix, suffix = prefix.replace(newline, "\n"), suffix.replace(newline, "\n")
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
    check_start(model.config, prompt.ids, state, None)

    def start() -> tuple[Tensor | None, StreamState]:
        return read_context(model, tokenizer, context, state=state)

    return Completion(model, row, prompt.ids, start, mode=prompt.mode, newline=newline)


def read_context(
    model: LanguageModel,
    tokenizer: TextCodec,
    files: Iterable[File],
    *,
    state: StreamState | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[Tensor | None, StreamState]:
    """Read files one after the other into a state: logits (V,) after the last token, and the state.

    Without a state the document token is read first; with one and without files nothing is, and the logits
    are None.

    Args:
        model, tokenizer, files, state: as in `complete`.
        advance: told the UTF-8 bytes read since it was told last.
    """
    logits: Tensor | None = None
    if state is None:
        logits, state = read_row(model, [tokenizer.special_id("document")], None)
    for name, content in files:
        ids = [*file_header(tokenizer, name), *tokenizer.encode(content)]
        size, told = len(content.encode()), 0
        for span in spans(model, len(ids), int(state.position_on_cpu()[0])):
            logits, state = read_row(model, ids[span], state)
            done = size * span.stop // len(ids)
            if advance is not None:
                advance(done - told)
            told = done
    return logits, state
