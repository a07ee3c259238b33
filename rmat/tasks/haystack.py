"""Endless filler, sentence by sentence, and statements hidden in it, in constant memory.

A sentence carries the blank that stood before it: filler and statements are joined as they are, and as no
usual tokenizer makes one token of a letter and the blank behind it, tokens may be counted sentence by
sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from typing import Literal, Protocol, get_args

import numpy as np

from rmat.data.documents import Document, Part
from rmat.data.sources import split_documents
from rmat.data.tokenizer import Tokenizer, byte_tokenizer
from rmat.tasks.task import TextTask, texts_of

Split = Literal["train", "valid", "test"]

NOISE = "noise"
"""The filler that is made here: the same few sentences, a line of them again and again."""

NOISE_LINE = (
    "\nA cart rolls by.",
    " Rain taps on the roof.",
    " The kettle hums.",
    " Someone folds a letter.",
    " Then all is quiet.",
)

HELD_CHARACTERS = 128 * 2**20
"""Documents of a SPEC after so much text are left out: filler is held in memory."""

LONGEST_SENTENCE = 1000
"""Characters; what is longer is a table or data, not a sentence, and is left out."""

_PROSE = re.compile(
    r"""(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?]["'”’)\]]*(?=\s)"""  # a sentence ends
    r"""|(?<=\S)(?=[^\S\n]*\n[^\S\n]*\n)"""  # a paragraph ends
)
_CODE = re.compile(r"(?<=\S)(?=[^\S\n]*\n)")
_WORD = re.compile(r"\s*\S+")


class Filler(Protocol):
    """A source of sentences."""

    def sentences(self, random: np.random.Generator) -> Iterator[str]:
        """Sentences without end, each with the blank before it. The same numbers make the same sentences."""
        ...


class Noise:
    """`NOISE_LINE` without end, from any sentence of it on."""

    def sentences(self, random: np.random.Generator) -> Iterator[str]:
        """See `Filler`."""
        return islice(cycle(NOISE_LINE), int(random.integers(len(NOISE_LINE))), None)


class Prose:
    """Sentences of texts, lines of code: a random document from a random character on, then another one.

    The first sentence of each, which is a torn one, and what stands behind the last full stop are left out.

    Args:
        documents: held as they are; those of fewer than three sentences are left out.
        name: what they are, for the error.

    Raises ValueError if no document is left.
    """

    def __init__(self, documents: Iterable[Document], name: str) -> None:
        self._texts: list[tuple[str, re.Pattern[str]]] = []
        held = 0
        for document in documents:
            parts = document.parts[document.n_header :]
            text = "\n".join(part for part in parts if isinstance(part, str))
            ends = _CODE if document.n_header else _PROSE
            if next(islice(_sentences(text, 0, ends), 2, None), None) is not None:
                self._texts.append((text, ends))
                held += len(text)
            if held >= HELD_CHARACTERS:
                break
        if not self._texts:
            raise ValueError(f"no document of three sentences in {name}; give a SPEC with more text")

    def sentences(self, random: np.random.Generator) -> Iterator[str]:
        """See `Filler`."""
        while True:
            text, ends = self._texts[random.integers(len(self._texts))]
            yield from islice(_sentences(text, int(random.integers(len(text))), ends), 1, None)


@lru_cache(maxsize=8)
def load_filler(spec: str, split: Split) -> Filler:
    """The filler of a SPEC: `noise`, or the documents that a corpus of that SPEC has in `split`.

    It is read once and kept. Raises ValueError for a SPEC that cannot be read or has no text in the split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} is not possible; choose one of {', '.join(get_args(Split))}")
    if spec == NOISE:
        return Noise()
    chosen = (document for name, document in split_documents(spec) if name == split)
    return Prose(chosen, f"the {split} part of {spec!r}")


@dataclass(frozen=True)
class Replay:
    """Pieces of a prompt that are made anew each time they are iterated."""

    make: Callable[[], Iterator[Part]]
    """The same pieces at every call."""

    def __iter__(self) -> Iterator[Part]:
        return self.make()


def count_tokens(tokenizer: Tokenizer, *texts: str) -> int:
    """Tokens of the texts, each encoded by itself."""
    return sum(map(len, tokenizer.encode_many(texts)))


def fill(sentences: Iterable[str], budget: int, tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """(sentence, its tokens) until `budget` tokens are full; the last one is cut behind a word to fit."""
    for sentence in sentences:
        tokens = len(tokenizer.encode(sentence))
        if tokens > budget:
            break
        yield sentence, tokens
        budget -= tokens
    else:
        return
    kept = ""
    for word in _WORD.findall(sentence):
        if len(tokenizer.encode(kept + word)) > budget:
            break
        kept += word
    if kept:
        yield kept, len(tokenizer.encode(kept))


def hide(
    statements: Sequence[tuple[float, str]], sentences: Iterable[str], budget: int, tokenizer: Tokenizer
) -> Iterator[tuple[int | None, str]]:
    """Filler of at most `budget` tokens with statements in it, as (number of the statement or None, text).

    Args:
        statements: (share of the filler before it, text), by rising share; each goes to the nearest end of a
            sentence.
        sentences: the filler; all of it where it ends before the budget is full.
        budget: tokens of the filler alone.
        tokenizer: what tokens are counted with.
    """
    used = number = 0
    for sentence, tokens in fill(sentences, budget, tokenizer):
        while number < len(statements) and statements[number][0] * budget < used + tokens / 2:
            yield number, statements[number][1]
            number += 1
        yield None, sentence
        used += tokens
    for rest in range(number, len(statements)):
        yield rest, statements[rest][1]


def without(words: Sequence[str], sentences: Iterator[str]) -> Iterator[str]:
    """The sentences in which none of `words` occurs."""
    return (sentence for sentence in sentences if not any(word in sentence for word in words))


def room_for(length: int, parts: Sequence[str], tokenizer: Tokenizer, task: str) -> int:
    """Tokens left for filler in `length` tokens that begin with the document token and close with the end
    token.

    Raises ValueError, naming the least length, if `parts` alone need more.
    """
    least = 2 + count_tokens(tokenizer, *parts)
    if length < least:
        raise ValueError(
            f"{task} does not fit {length} tokens with this tokenizer; the least length is {least}"
        )
    return length - least


def sample_texts(task: TextTask, length: int = 2**14, total: int = 2**22) -> Iterator[str]:
    """About `total` bytes of a task's prompts and answers, each about `length` bytes."""
    random = np.random.default_rng(0)
    tokenizer = byte_tokenizer()
    while total > 0:
        example = task.example(random, length, tokenizer)
        text = "".join(texts_of(example.pieces)) + example.answer
        total -= len(text.encode())
        yield text


def _sentences(text: str, start: int, ends: re.Pattern[str]) -> Iterator[str]:
    """Sentences from character `start` on; what stands behind the last end is left out."""
    for end in ends.finditer(text, start):
        sentence = text[start : end.end()]
        if not sentence.isspace() and sentence:
            start = end.end()
            if len(sentence) <= LONGEST_SENTENCE:
                yield sentence
