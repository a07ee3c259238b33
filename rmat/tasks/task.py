"""What a synthetic task is: rows to train on and examples to be asked, made on demand from random numbers.

Two kinds. A task of numbered tokens (`mqar`, `recall`) brings its own vocabulary and asks all along the row. A text
task (`passkey`, `needle`, `babilong`, `facts`) works with any tokenizer and asks at the end:

    <|document|> prompt answer <|turn_end|>
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmat.data.documents import Part, Special
from rmat.data.lanes import IGNORED
from rmat.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Row:
    """One row of training tokens."""

    tokens: NDArray[np.int64]
    """(T,) ids."""

    targets: NDArray[np.int64]
    """(T,) the token that should follow each place; -100 where nothing is scored."""


@dataclass(frozen=True)
class Example:
    """A text to be read and what should follow it."""

    pieces: Iterable[Part]
    """The prompt in parts, made while they are read, so that memory does not grow with its length."""

    answer: str
    """What follows the prompt."""

    references: tuple[str, ...]
    """What a scorer looks for in an answer."""

    labels: dict[str, Any] = field(default_factory=dict)
    """What the example is, for a table: for instance task and depth."""


def encode_parts(tokenizer: Tokenizer, parts: Iterable[Part]) -> Iterator[int]:
    """Ids of text and special tokens; each text is encoded by itself."""
    for part in parts:
        if isinstance(part, str):
            yield from tokenizer.encode(part)
        else:
            yield tokenizer.special_id(part.name)


def texts_of(parts: Iterable[Part]) -> Iterator[str]:
    """The texts among the parts."""
    return (part for part in parts if isinstance(part, str))


class Task(ABC):
    """A source of rows."""

    @abstractmethod
    def row(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Row:
        """A row of at most `length` tokens. The same numbers make the same row."""


class NumberedTask(Task):
    """A task of numbered tokens; `row` needs no tokenizer."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Tokens 0..vocab_size-1."""


class TextTask(Task):
    """A task that asks at the end of a text."""

    @abstractmethod
    def example(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Example:
        """An example whose document token, prompt, answer and end token are at most `length` tokens together.

        Raises ValueError, naming the least length, if `length` is too short for what must be said.
        """

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """A few megabytes of text like the task's, to train a tokenizer on."""

    def row(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Row:
        """The example as one row; the answer and the end token are scored."""
        example = self.example(random, length, tokenizer)
        prompt = [*encode_parts(tokenizer, chain((Special("document"),), example.pieces))]
        tail = [*encode_parts(tokenizer, (example.answer, Special("turn_end")))]
        tokens = np.array(prompt + tail, dtype=np.int64)
        targets = np.full(len(tokens), IGNORED, dtype=np.int64)
        targets[len(prompt) - 1 : -1] = tail
        return Row(tokens[:-1], targets[:-1])
