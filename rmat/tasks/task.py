"""What a synthetic task is: rows to train on and examples to be asked, made on demand from random numbers.

Two kinds. A task of numbered tokens (`mqar`, `recall`) brings its own vocabulary and asks all along the row.
A text task (`passkey`, `needle`, `babilong`, `facts`) works with any tokenizer and asks at the end:

    <|document|> prompt answer <|turn_end|>
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rmat.data.documents import Part, Special, spell
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
    for part in spell(tokenizer, parts):
        yield from tokenizer.encode(part) if isinstance(part, str) else part


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


@dataclass(frozen=True, kw_only=True)
class Member:
    """One kind of rows in a mixture to train on."""

    task: Task
    share: float = 1.0
    """Share of the batches, in any unit."""
    length: int | None = None
    """Tokens of every row; None: drawn between `shortest` and the window."""
    shortest: int | None = None
    """Least tokens of a row; None: the window, so that all rows are equally long."""
    grow: int = 0
    """Updates over which the longest row grows from `shortest` to the window."""

    def lengths(self, window: int, update: int) -> tuple[int, int]:
        """Least and most tokens of the rows of an update."""
        if self.length is not None:
            return self.length, self.length
        shortest = min(self.shortest or window, window)
        step, steps = (min(update, self.grow), self.grow) if self.grow else (1, 1)
        return shortest, shortest + (window - shortest) * step // steps

    def draw_length(self, window: int, update: int, uniform: float) -> int:
        """Tokens of the rows of a batch of an update, given a number drawn from [0, 1)."""
        shortest, longest = self.lengths(window, update)
        return shortest + int(uniform * (longest - shortest + 1))


def whole(name: str, text: str, least: int) -> int:
    """A setting of a SPEC that is a whole number. Raises ValueError naming setting, value and remedy."""
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}={text} is not possible: give a whole number of at least {least}")
    return int(text)


def number(name: str, text: str) -> float:
    """A setting of a SPEC that is a number. Raises ValueError naming setting, value and remedy."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}={text} is not possible: give a number") from None


def last_or_all(questions: str) -> Literal["last", "all"]:
    """The setting `questions` of a SPEC. Raises ValueError for another value."""
    asked: Literal["last", "all"] = "all" if questions == "all" else "last"
    if questions != asked:
        raise ValueError(f"questions={questions} is not possible: choose last or all")
    return asked


def option(default: Any, help: str, *, metavar: str | None = None, shown: str | None = None) -> Any:
    """A field that is an option of `rmat eval`: `shown` is its default in words; ... stands for one that must
    be given."""
    metadata = {"help": help, "metavar": metavar, "shown": shown}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class QuestionCell:
    """What is asked in one cell of a table."""

    task: str
    """Name of the task."""
    length: int | None
    """Most tokens of document token, prompt, answer and end token; 0 for no filler; None: as long as they
    are."""
    depth: float | None
    """Share of the filler before what is asked for; None: random."""
    examples: Sequence[Example]
    """What is asked; their prompts are made while they are read."""
    turns: int | None = None
    """Turns of a dialogue between what is asked for and the question; None where there are none."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What `rmat eval NAME` asks: fields made with `option` are its options, the docstring is its
    description."""

    note: ClassVar[str] = ""
    """What the caption of the table says first."""
    samples: ClassVar[int] = 100
    """Default of `--samples`; 0 where there is no such option."""
    samples_are: ClassVar[str] = "questions in each cell"

    def __post_init__(self) -> None:
        for item in fields(self):  # numbers of numpy become Python's, as results are written as JSON
            value = getattr(self, item.name)
            object.__setattr__(
                self, item.name, tuple(map(_plain, value)) if isinstance(value, tuple) else _plain(value)
            )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


class TextQuestions(Questions, ABC):
    """Questions at the end of a text, answered in words."""

    @abstractmethod
    def cells(self, tokenizer: Tokenizer, samples: int, seed: int) -> Iterator[QuestionCell]:
        """The cells of the table, each with `samples` examples or as many as there are.

        Raises ValueError for a length that is too short, or a setting out of range.
        """

    @abstractmethod
    def score(self, output: str, example: Example) -> float:
        """Score of an answer, 0 to 1."""

    @property
    @abstractmethod
    def max_new_tokens(self) -> int:
        """Most tokens of an answer."""

    def tokens(self, tokenizer: Tokenizer) -> int:
        """About the tokens of one sample of every cell, for the bar of progress."""
        firsts = (cell.examples[0] for cell in self.cells(tokenizer, 1, 0))
        return sum(1 for example in firsts for _ in encode_parts(tokenizer, example.pieces))


def draw_examples(make: Callable[[np.random.Generator], Example], samples: int, seed: int) -> list[Example]:
    """Examples each drawn from a seed of its own, so that more samples leave the first ones as they are."""
    return [make(np.random.default_rng([seed, index])) for index in range(samples)]


def exact_match(output: str, references: Sequence[str]) -> float:
    """1 if the output is one of the references, blanks around them aside."""
    return float(output.strip() in {reference.strip() for reference in references})


@dataclass(frozen=True)
class RowPart:
    """Some tokens of B rows, which follow on those of the part before."""

    tokens: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64: the right answer where something is asked, -100 elsewhere."""
    first: Tensor
    """(B, T) bool: places whose answers make the accuracy; the others that are asked are counted beside
    it."""


@dataclass(frozen=True, kw_only=True)
class RowCell:
    """Rows that are asked all along, the right answers given as they go."""

    labels: dict[str, Any]
    """JSON-able place of the cell in a table: task, length, depth and what else tells cells apart."""
    rows: int
    batch: Callable[[int, int], Iterator[RowPart]]
    """Makes `count` rows from number `start` on; to be called in order."""
    donor: Callable[[], Iterator[RowPart]]
    """Makes one more row like them, in parts of the same lengths."""
    by_row: bool
    """Whether rows are what is drawn, each with its share of right answers, or the questions of all rows
    together."""


class RowQuestions(Questions, ABC):
    """Questions to a model that was trained on rows of numbered tokens."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Numbered tokens that the model must know."""

    @abstractmethod
    def cells(self, rows: int, seed: int, piece: int) -> Iterator[RowCell]:
        """The cells of the table, each of `rows` rows in parts of at most about `piece` tokens.

        Raises ValueError for a length that is too short, or a setting out of range.
        """

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens of one row of every cell; for the bar of progress."""
