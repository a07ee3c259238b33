"""The place in a text where a person types: what a model reads before it, how the text goes on inside a word,
where it ends.

A prompt may end inside a token: in `def ma` the model has learned `main` whole, and before a line's first
word it has learned the newline and all blanks but the last as one token. So the last token is taken off the
prompt, and what it spelled is written again: only tokens that agree with it may be drawn until it is covered
("token healing").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rmat.generation.grammar import spellings
from rmat.generation.row import Row, TextCodec
from rmat.generation.sampling import Sampler, SamplingConfig
from rmat.generation.stopping import StopMatcher

Mode = Literal["auto", "fim", "plain"]
"""`fim` shows the model what stands behind the cursor, `plain` does not; `auto` takes what measures better
(`plain`)."""

ENDS = (
    "document",
    "file_name",
    "fim_prefix",
    "fim_suffix",
    "fim_middle",
    "system",
    "user",
    "assistant",
    "turn_end",
)
"""Special tokens at which a completion is over: behind the end of a file stands the next one, or nothing."""


_INSIDE = frozenset(bytes([byte]) for byte in range(0x80, 0xC0))
"""Bytes of UTF-8 inside a character."""


@dataclass(frozen=True, kw_only=True)
class CursorPrompt:
    """What a model reads before it completes."""

    ids: list[int]
    """Token ids, without a document token."""

    removed: bytes
    """What was taken off the prefix's end; the completion begins by writing it again."""

    mode: Literal["fim", "plain"]
    """Whether the suffix is in it."""


def file_header(tokenizer: TextCodec, name: str) -> list[int]:
    """What opens a file in training: its token, its name and a newline."""
    opens = [tokenizer.special_id("file_name")] if tokenizer.has_special("file_name") else []
    return [*opens, *tokenizer.encode(f"{name}\n")]


def cursor_prompt(
    tokenizer: TextCodec,
    prefix: str,
    suffix: str = "",
    *,
    file_name: str | None = None,
    mode: Mode = "auto",
    heal: bool = True,
) -> CursorPrompt:
    """The prompt for the place between `prefix` and `suffix`, in the form of training (`rmat/data/fim.py`).

    The suffix stands first, so that the prefix's end is next to what is written.

    Args:
        tokenizer: the one the model was trained with.
        prefix, suffix: the file before and behind the cursor, of any length.
        file_name: put in front, as before the code that the model was trained on; None for text without a
            name.
        mode: whether the suffix is shown.
        heal: False keeps the last token in the prompt.

    Raises ValueError for an unknown mode.
    """
    if mode not in ("auto", "fim", "plain"):
        raise ValueError(f"mode is {mode!r}: choose auto, fim or plain")
    before, removed = tokenizer.encode(prefix), b""
    if heal:
        before, removed = _take_off(tokenizer, before, prefix.encode())
    ids = [] if file_name is None else file_header(tokenizer, file_name)
    if mode == "fim":
        marks = [tokenizer.special_id(f"fim_{part}") for part in ("suffix", "prefix", "middle")]
        ids += [marks[0], *tokenizer.encode(suffix), marks[1], *before, marks[2]]
    else:
        ids += before
    return CursorPrompt(ids=ids, removed=removed, mode="fim" if mode == "fim" else "plain")


def _take_off(tokenizer: TextCodec, ids: list[int], raw: bytes) -> tuple[list[int], bytes]:
    """`ids` without the last token, or the last ones if they are blanks or begin inside a character, and what
    they spelled; all of `ids` if no token could reach from there beyond the prefix's end."""
    spelled = spellings(tokenizer)
    count, removed = 0, b""
    while count < len(ids) and (
        not count or removed[:1] in _INSIDE or (removed.isspace() and spelled[ids[-count - 1]].isspace())
    ):
        count += 1
        removed = spelled[ids[-count]] + removed
    tails = {removed[start:] for start in range(len(removed))}
    reaching = any(token[:size] in tails for token in spelled for size in range(1, len(token)))
    if not reaching or not raw.endswith(
        removed
    ):  # the latter with a tokenizer that does not give back every text
        return ids, b""
    return ids[:-count], removed


class CursorRow(Row):
    """A `Row` that begins by writing again what was taken off the prompt, which it does not show, and that
    ends with the file, or after `lines` (`CursorMatcher`).

    Args:
        line: the cursor's line up to the cursor.
        others: as in `Row`.
    """

    def __init__(
        self,
        tokenizer: TextCodec,
        *,
        removed: bytes,
        line: str,
        lines: int | None,
        max_new_tokens: int,
        sampling: SamplingConfig,
        stop: Sequence[str],
    ) -> None:
        super().__init__(
            tokenizer,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            sampler=_CursorSampler(sampling, tokenizer, removed),
            matcher=CursorMatcher(stop, skip=len(removed.decode()), line=line, lines=lines),
            begins=False,
        )


class _CursorSampler(Sampler):
    """Draws among the tokens that agree with the bytes still to be written again; whatever ends a file is
    drawn as its end."""

    def __init__(self, config: SamplingConfig, tokenizer: TextCodec, removed: bytes) -> None:
        super().__init__(config, tokenizer.vocab_size)
        self._tokenizer, self._left = tokenizer, removed
        self._ends = {tokenizer.special_id(name) for name in ENDS if tokenizer.has_special(name)}
        self._document = tokenizer.special_id("document")

    def draw(self, logits: Tensor) -> int:
        if self._left:
            spelled = spellings(self._tokenizer)
            agrees = [bool(s) and (s.startswith(self._left) or self._left.startswith(s)) for s in spelled]
            disagrees = ~torch.tensor(agrees, device="cpu")
            logits = logits[: len(agrees)].detach().cpu().masked_fill(disagrees, float("-inf"))
        token = super().draw(logits)
        if self._left:
            self._left = self._left[len(spellings(self._tokenizer)[token]) :]
        return self._document if token in self._ends else token


class CursorMatcher(StopMatcher):
    """Stop strings, and the end of what a completion is asked for: lines, or the statement or block at the
    cursor.

    Args:
        stops: strings at which the text ends.
        skip: characters at its beginning that repeat the prefix's end and are not shown.
        line: the cursor's line up to the cursor.
        lines: end after so many lines, blank ones in front not counted; 0 never; None where the statement or
            block ends (`block_end`).
    """

    def __init__(self, stops: Sequence[str], *, skip: int, line: str, lines: int | None) -> None:
        super().__init__(stops)
        self._skip, self._line, self._lines = skip, line, lines
        self._text = ""
        self._shown = 0

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that is safe to show now, and whether the end has come."""
        repeated = min(self._skip, len(piece))
        self._skip -= repeated
        text, stopped = super().push(piece[repeated:])
        self._text += text
        end = self._end()
        if end is not None:
            return self._show(end), True
        # Blank lines belong to the block only if more of it follows.
        solid = len(self._text.rstrip())
        waits = self._lines is None and not stopped and "\n" in self._text[solid:]
        return self._show(solid if waits else len(self._text)), stopped

    def flush(self) -> str:
        """The text held back, now that nothing follows."""
        self._text += super().flush()
        end = self._end()
        return self._show(len(self._text) if end is None else end)

    def _show(self, end: int) -> str:
        start, self._shown = self._shown, max(self._shown, end)
        return self._text[start:end]

    def _end(self) -> int | None:
        if self._lines is None:
            return block_end(self._line, self._text)
        place = len(self._text) - len(self._text.lstrip()) - 1
        for _ in range(self._lines):
            place = self._text.find("\n", place + 1)
            if place < 0:
                return None
        return place if self._lines else None


def block_end(line: str, text: str) -> int | None:
    """Where in `text` the statement or block ends that it completes; None if it goes on to the end of `text`.

    Behind words on its `line` a completion is the rest of a statement: that line, all that are indented
        deeper, and
    those that close a bracket. On a blank line, or where a statement is complete and another one follows, it
    is the rest of a block: all lines that are indented as much. Blank lines count for nothing, and those
        before the end are left out.
    """
    start = len(text) - len(text.lstrip())
    if start == len(text):
        return None
    first = (line + text[: start + 1]).rpartition("\n")[2]
    statement = bool(line.strip()) and ("\n" not in text[:start] or _width(first) > _width(line))
    base = _width(line if statement else first)
    place = text.find("\n", start)
    while place >= 0:
        following = text.find("\n", place + 1)
        other = text[place + 1 : following if following >= 0 else len(text)]
        if other.strip():
            width = _width(other)
            if width < base or (width == base and statement and other.lstrip()[0] not in ")]}"):
                return len(text[:place].rstrip())
        place = following
    return None


def _width(line: str) -> int:
    """Columns of blanks in front of a line."""
    wide = line.expandtabs(8)
    return len(wide) - len(wide.lstrip())
