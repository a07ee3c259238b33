"""Facts of bAbI stories (arXiv 1502.05698) spread in order over long text, in the manner of BABILong
(2406.10149).

A story with several questions gives several samples: the statements before a question, and the question.
Train facts come from `_train` files and go into train filler, test facts from `_test` files into test filler.
Of task 4, which has few possible stories, many test stories also occur in the train file: that is so in the
original data.

    Mary went to the kitchen. (filler) John moved to the garden. (filler)
    Question: Where is Mary? Answer: kitchen
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rmat.data.lanes import IGNORED
from rmat.data.sources import STDLIB
from rmat.data.tokenizer import Tokenizer
from rmat.machine import expand
from rmat.tasks.haystack import NOISE, Replay, Split, count_tokens, hide, load_filler, sample_texts
from rmat.tasks.task import (
    Example,
    Member,
    QuestionCell,
    Row,
    TextQuestions,
    TextTask,
    exact_match,
    last_or_all,
    option,
    whole,
)

TASKS = range(1, 11)
"""bAbI tasks whose answer is one word or a short list."""

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")

BABI_LABELS: dict[int, tuple[str, ...]] = {
    **dict.fromkeys((1, 2, 3, 4), PLACES),
    5: ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
}
"""The possible answers of the bAbI tasks that BABILong scores."""

_CUT = re.compile(r"\.|<context>|<example>")

PREFERRED = {"train": ("en-10k", "en"), "test": ("en", "en-10k")}
"""Folders below the given one that are looked into first, for the files of each kind."""

VALID_EVERY = 10
"""Every tenth story of a train file is held out for `valid`."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A statement, or a question with its answer."""

    text: str
    """With the blank or newline before it; a question's ends with `Answer:`."""
    answer: str | None = None
    """With the blank before it; None for a statement."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A story up to one of its questions."""

    task: int
    story: int
    """Number of the story in its file."""
    lines: tuple[Line, ...]
    """Statements and questions in order; the last one is the question that is asked."""

    @property
    def statements(self) -> list[str]:
        """The statements alone."""
        return [line.text for line in self.lines if line.answer is None]


@dataclass(frozen=True)
class BabilongTask(TextTask):
    """The task's settings. Raises ValueError naming setting, value and remedy."""

    facts: str
    """Folder of the bAbI files `qaN_NAME_train.txt` and `qaN_NAME_test.txt`, or of folders such as `en` with
    them."""

    filler: str = NOISE
    """`noise` or a SPEC of text."""

    tasks: tuple[int, ...] = (1,)
    """bAbI tasks; each example draws one."""

    split: Split = "train"
    """Where facts and filler come from; `valid` facts are every tenth story of the train file."""

    questions: Literal["last", "all"] = "last"
    """Which questions of a story a training row asks: the one at its end, or also the earlier ones where they
    stand."""

    def __post_init__(self) -> None:
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise ValueError(
                f"babilong: tasks must be of {TASKS[0]}..{TASKS[-1]}, got {self.tasks!r}; write (1,)"
            )
        if self.split not in get_args(Split):
            raise ValueError(f"babilong: split={self.split!r} is not possible; choose train, valid or test")
        if self.questions not in ("last", "all"):
            raise ValueError(f"babilong: questions={self.questions!r} is not possible; choose last or all")

    def fitting(self, task: int, length: int, tokenizer: Tokenizer) -> list[Sample]:
        """The samples of a bAbI task that fit `length` tokens without filler, in the order of the file.

        Every sample fits the length 0, which stands for no filler and no limit. Raises ValueError, naming the
        least length, if none fits.
        """
        return self._fitting(task, length, tokenizer, whole=False)

    def example(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Example:
        """See `TextTask.example`; the length 0 stands for the facts alone, as many as there are."""
        return self.ask(self._draw(random, length, tokenizer, whole=False), random, length, tokenizer)

    def ask(self, sample: Sample, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Example:
        """The example of one sample: its statements in filler, its question at the end. Labels: task and
        facts."""
        statements, question = sample.statements, sample.lines[-1]
        assert question.answer is not None
        budget = max(0, length - _size(tokenizer, sample, whole=False))
        seed = int(random.integers(2**63))
        filler = load_filler(self.filler, self.split) if length else None

        def pieces() -> Iterator[str]:
            again = np.random.default_rng(seed)
            gaps = sorted(again.random(len(statements)).tolist())
            sentences = filler.sentences(again) if filler else iter(())
            placed = list(zip(gaps, statements, strict=True))
            yield from (text for _, text in hide(placed, sentences, budget, tokenizer))
            yield question.text

        return Example(
            pieces=Replay(pieces),
            answer=question.answer,
            references=(question.answer.strip(),),
            labels={
                "task": f"qa{sample.task}",
                "depth": None,
                "facts": len(statements),
                "question": question.text.strip(),
            },
        )

    def row(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Row:
        """See `TextTask.row`; with questions="all" every answer and its end token are scored."""
        if self.questions == "last":
            return super().row(random, length, tokenizer)
        sample = self._draw(random, length, tokenizer, whole=True)
        *lines, question = sample.lines
        gaps = sorted(random.random(len(lines)).tolist())
        placed = [(gap, line.text) for gap, line in zip(gaps, lines, strict=True)]
        budget = max(0, length - _size(tokenizer, sample, whole=True))
        sentences = load_filler(self.filler, self.split).sentences(random) if length else iter(())
        tokens = [tokenizer.special_id("document")]
        targets: list[int] = []

        def add(text: str, answer: str | None) -> None:
            tokens.extend(tokenizer.encode(text))
            targets.extend([IGNORED] * (len(tokens) - 1 - len(targets)))
            if answer is not None:
                tail = [*tokenizer.encode(answer), tokenizer.special_id("turn_end")]
                tokens.extend(tail)
                targets.extend(tail)

        for number, text in hide(placed, sentences, budget, tokenizer):
            add(text, None if number is None else lines[number].answer)
        add(question.text, question.answer)
        return Row(np.array(tokens[:-1], dtype=np.int64), np.array(targets, dtype=np.int64))

    def texts(self) -> Iterator[str]:
        """See `TextTask.texts`."""
        return sample_texts(self, length=2**12)

    def _draw(self, random: np.random.Generator, length: int, tokenizer: Tokenizer, *, whole: bool) -> Sample:
        task = self.tasks[random.integers(len(self.tasks))]
        samples = self._fitting(task, length, tokenizer, whole=whole)
        return samples[random.integers(len(samples))]

    def _fitting(self, task: int, length: int, tokenizer: Tokenizer, *, whole: bool) -> list[Sample]:
        samples, sizes = (
            _load(self.facts, task, self.split),
            _sizes(self.facts, task, self.split, tokenizer, whole),
        )
        fits = sizes <= (length or sizes.max())
        if not fits.any():
            raise ValueError(
                f"babilong: no sample of task {task} fits {length} tokens with this tokenizer; the least "
                f"length is {sizes.min()}"
            )
        if whole:
            # Of a story's questions the last that fits: it brings the most earlier ones along.
            story = np.array([sample.story for sample in samples])
            later = np.append((story[1:] == story[:-1]) & fits[1:], False)
            fits &= ~later
        return [samples[index] for index in np.flatnonzero(fits)]


@lru_cache(maxsize=32)
def _load(folder: str, task: int, split: str) -> tuple[Sample, ...]:
    """The samples of a split. Raises ValueError if there is none or it is not in the format."""
    kind = "test" if split == "test" else "train"
    path = _find(expand(folder), task, kind)
    samples: list[Sample] = []
    lines: list[Line] = []
    story = 0
    try:
        rows = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as UTF-8 text ({error}); give the bAbI files as they are"
        ) from None
    for place, row in enumerate(rows, start=1):
        number, _, rest = row.strip().partition(" ")
        if not number.isdigit() or not rest:
            raise ValueError(
                f"{path} line {place} is not `NUMBER STATEMENT`; give the bAbI files as they are"
            )
        if number == "1":
            lines, story = [], story + 1
        text, *answer = (part.strip() for part in rest.split("\t"))
        if answer:
            lines.append(Line(text=f"\nQuestion: {text} Answer:", answer=f" {answer[0]}"))
            samples.append(Sample(task=task, story=story, lines=tuple(lines)))
        else:
            lines.append(Line(text=f" {text}"))
    if kind == "train":
        samples = [s for s in samples if (s.story % VALID_EVERY == 0) == (split == "valid")]
    if not samples:
        raise ValueError(f"{path} holds too few questions for {split}; give the bAbI files as they are")
    return tuple(samples)


def _find(folder: Path, task: int, kind: str) -> Path:
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    first = [folder / name for name in PREFERRED[kind]]
    for place in (folder, *first, *below):
        found = sorted(place.glob(f"qa{task}_*_{kind}.txt")) if place.is_dir() else []
        if found:
            return found[0]
    raise ValueError(f"no file qa{task}_*_{kind}.txt in {str(folder)!r}; give the folder of the bAbI files")


@lru_cache(maxsize=32)
def _sizes(folder: str, task: int, split: str, tokenizer: Tokenizer, whole: bool) -> NDArray[np.int64]:
    """(samples,) tokens of each sample without filler."""
    return np.array([_size(tokenizer, sample, whole=whole) for sample in _load(folder, task, split)])


def _size(tokenizer: Tokenizer, sample: Sample, *, whole: bool) -> int:
    """Tokens of document token, statements, questions (`whole`: all, else the last one), answers and end
    tokens."""
    *lines, question = sample.lines
    asked = [line for line in lines if whole and line.answer is not None] + [question]
    parts = [*sample.statements, *(line.text for line in asked), *(line.answer or "" for line in asked)]
    return 1 + len(asked) + count_tokens(tokenizer, *parts)


def named_label(output: str, target: str, question: str, labels: Sequence[str]) -> float:
    """1 if of the labels the output names the target alone (BABILong's score of free answers).

    Only what stands before the first full stop counts, whatever its case, and labels that the question names
    are left out, so that repeating the question does no harm.
    """
    said, asked = _CUT.split(output.lower(), maxsplit=1)[0], question.lower()
    named = {label.lower() for label in labels if label.lower() in said and label.lower() not in asked}
    return float(named == {target.lower()})


def members(
    *, split: Split, facts: str, filler: str = STDLIB, tasks: str = "1+2+3+4+5", questions: str = "last"
) -> list[Member]:
    """See `rmat.tasks.registry`."""
    asked = last_or_all(questions)
    numbers = [whole("tasks", task, 1) for task in tasks.split("+")]
    return [
        Member(task=BabilongTask(facts=facts, filler=filler, tasks=(number,), split=split, questions=asked))
        for number in numbers
    ]


@dataclass(frozen=True, kw_only=True)
class BabilongQuestions(TextQuestions):
    """bAbI facts scattered in the sentences of other text (BABILong), always from bAbI's test files."""

    facts: str = option(..., "folder of bAbI files", metavar="DIR")
    length: tuple[int, ...] = option((1024,), "tokens of prompt and answer", metavar="TOKENS")
    task: tuple[int, ...] = option((1, 2, 3, 4, 5), "number of a task", metavar="N", shown="1 to 5")
    filler: str = option(STDLIB, "text around", metavar="SPEC")
    scorer: Literal["exact", "labels"] = option(
        "exact", "exact answer, or the one label named (for models not trained on the task)"
    )
    split: Split = "test"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scorer not in ("exact", "labels"):
            raise ValueError(f"scorer={self.scorer!r} is not possible: choose exact or labels")
        unlabelled = [task for task in self.task if task not in BABI_LABELS]
        if self.scorer == "labels" and unlabelled:
            raise ValueError(f"scorer='labels' has no labels for task {unlabelled[0]}: choose exact")

    def cells(self, tokenizer: Tokenizer, samples: int, seed: int) -> Iterator[QuestionCell]:
        """By length and task. Every sample is asked at most once in a cell, so that a cell has fewer than
        `samples` where the file has."""
        chosen = BabilongTask(facts=self.facts, filler=self.filler, tasks=self.task, split=self.split)
        for length in self.length:
            for task in self.task:
                fitting = chosen.fitting(task, length, tokenizer)
                order = np.random.default_rng([seed, task]).permutation(len(fitting))[:samples]
                examples = [
                    chosen.ask(
                        fitting[index], np.random.default_rng([seed, task, int(index)]), length, tokenizer
                    )
                    for index in order
                ]
                yield QuestionCell(task=f"qa{task}", length=length, depth=None, examples=examples)

    def score(self, output: str, example: Example) -> float:
        """Exact match or `named_label`."""
        if self.scorer == "exact":
            return exact_match(output, example.references)
        labels = BABI_LABELS[int(example.labels["task"].removeprefix("qa"))]
        return named_label(output, example.references[0], example.labels["question"], labels)

    @property
    def max_new_tokens(self) -> int:
        """Enough for a sentence."""
        return 20

    def tokens(self, tokenizer: Tokenizer) -> int:
        """See `TextQuestions.tokens`."""
        return len(self.task) * sum(self.length)


QUESTIONS = BabilongQuestions
