"""Needles in a haystack: eight retrieval tasks and variable tracking in the manner of RULER (arXiv
2404.06654).

    single_1      noise         one key, one number
    single_2      text          one key, one number
    single_3      text          one key, one UUID
    multikey_1    text          four keys, one asked for
    multikey_2    needles       among as many keys as fit, one asked for
    multikey_3    needles       the same with UUIDs for keys and values
    multivalue    text          one key with four numbers, all asked for
    multiquery    text          four keys, all asked for
    tracking      noise         a variable and four that were set to it one from the other: which hold its
        value?

Unlike there, no instruction stands before the text, and `tracking` has no solved example: a model that was
trained on the task knows its form.
"""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from rmat.data.sources import STDLIB
from rmat.data.tokenizer import Tokenizer
from rmat.tasks.haystack import NOISE, Replay, Split, hide, load_filler, room_for, sample_texts, without
from rmat.tasks.task import Example, Member, QuestionCell, TextQuestions, TextTask, draw_examples, option
from rmat.tasks.words import ADJECTIVES, NOUNS

HOPS = 4
"""Assignments of `tracking` after the first."""

DEPTHS = 40
"""Needles in text stand at distinct ones of so many evenly spaced shares of it."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    haystack: Literal["noise", "text", "needles"] = "text"
    keys: int = 1
    values: int = 1
    queries: int = 1
    uuid_keys: bool = False
    uuid_values: bool = False


_KINDS = {
    "single_1": _Kind(haystack="noise"),
    "single_2": _Kind(),
    "single_3": _Kind(uuid_values=True),
    "multikey_1": _Kind(keys=4),
    "multikey_2": _Kind(haystack="needles"),
    "multikey_3": _Kind(haystack="needles", uuid_keys=True, uuid_values=True),
    "multivalue": _Kind(values=4),
    "multiquery": _Kind(keys=4, queries=4),
}

_CONTROL = re.compile(r"[\x00-\x1f]")

NEEDLE_TASKS = (*_KINDS, "tracking")
"""Names of the tasks."""


@dataclass(frozen=True)
class NeedleTask(TextTask):
    """The task's settings. Raises ValueError naming setting, value and remedy."""

    task: str = "single_1"
    """One of `NEEDLE_TASKS`."""

    haystack: str = STDLIB
    """SPEC of the text, for the tasks that have one."""

    split: Split = "train"
    """The part of the SPEC's documents that is haystack."""

    def __post_init__(self) -> None:
        if self.task not in NEEDLE_TASKS:
            raise ValueError(
                f"needle: task={self.task!r} is not possible; choose one of {', '.join(NEEDLE_TASKS)}"
            )

    def example(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Example:
        """See `TextTask.example`. Labels: task, and depth (the needle's share) where there is one needle to
        find."""
        if self.task == "tracking":
            return self._tracking(random, length, tokenizer)
        kind = _KINDS[self.task]
        keys = _distinct(random, kind.keys, kind.uuid_keys)
        values = _distinct(random, kind.keys * kind.values, kind.uuid_values, numbers=True)
        needles = [
            _needle(keys[index // kind.values], value, kind.uuid_values) for index, value in enumerate(values)
        ]
        shares = self._shares(random, len(needles), kind.haystack)
        # The needles stand in random order, so the first key is as good as any.
        wanted = range(kind.queries)
        references = tuple(
            values[key * kind.values + index] for key in wanted for index in range(kind.values)
        )
        # One key's values are named in the order of the text, several keys' in the order of the question.
        order = sorted(shares) if kind.values > 1 else shares
        question = _question([keys[key] for key in wanted], kind)
        labels = {"task": self.task, "depth": order[wanted[0]] if len(references) == 1 else None}
        statements = sorted(zip(order, needles, strict=True))
        hidden = (*keys, *values)
        return self._ask(statements, question, references, labels, hidden, random, length, tokenizer)

    def texts(self) -> Iterator[str]:
        """See `TextTask.texts`."""
        return sample_texts(self)

    def _tracking(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Example:
        names: list[str] = []
        while len(names) <= HOPS:
            name = "".join(chr(ord("A") + letter) for letter in random.integers(26, size=5))
            if name not in names:
                names.append(name)
        value = str(random.integers(10_000, 100_000))
        lines = [f"\nVAR {names[0]} = {value}."]
        lines += [f"\nVAR {name} = VAR {source}." for source, name in itertools.pairwise(names)]
        statements = list(zip(sorted(random.random(len(lines)).tolist()), lines, strict=True))
        question = f"\nWhich variables hold the value {value}? The variables that hold it are"
        labels: dict[str, Any] = {"task": "tracking", "depth": None}
        hidden = (*names, value)
        return self._ask(statements, question, tuple(names), labels, hidden, random, length, tokenizer)

    def _shares(self, random: np.random.Generator, count: int, haystack: str) -> list[float]:
        if haystack == "text":
            shares: list[float] = (random.choice(DEPTHS, size=count, replace=False) / (DEPTHS - 1)).tolist()
            return shares
        return [random.random() for _ in range(count)]

    def _ask(
        self,
        statements: Sequence[tuple[float, str]],
        question: str,
        references: tuple[str, ...],
        labels: dict[str, Any],
        hidden: tuple[str, ...],
        random: np.random.Generator,
        length: int,
        tokenizer: Tokenizer,
    ) -> Example:
        """The example of these statements; `hidden` occurs nowhere else."""
        answer = " " + ", ".join(references)
        parts = (*(text for _, text in statements), question, answer)
        budget = room_for(length, parts, tokenizer, f"needle:{self.task}")
        seed = int(random.integers(2**63))
        kind = _KINDS.get(self.task, _Kind(haystack="noise"))
        filler = None
        if kind.haystack != "needles":
            filler = load_filler(self.haystack if kind.haystack == "text" else NOISE, self.split)

        def pieces() -> Iterator[str]:
            again = np.random.default_rng(seed)
            sentences = filler.sentences(again) if filler else _distractors(again, kind)
            yield from (text for _, text in hide(statements, without(hidden, sentences), budget, tokenizer))
            yield question

        return Example(pieces=Replay(pieces), answer=answer, references=references, labels=labels)


def _needle(key: str, value: str, is_uuid: bool) -> str:
    return f"\nOne of the special magic {'uuids' if is_uuid else 'numbers'} for {key} is: {value}."


def _question(keys: list[str], kind: _Kind) -> str:
    named = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    what = "uuid" if kind.uuid_values else "number"
    several, be = ("", "is") if kind.values * kind.queries == 1 else ("s", "are")
    things = f"special magic {what}{several} for {named}"
    return f"\nWhat {be} the {things}? The {things} mentioned in the provided text {be}"


def _distractors(random: np.random.Generator, kind: _Kind) -> Iterator[str]:
    """Needles of random keys and values without end."""
    while True:
        yield _needle(
            _word(random, kind.uuid_keys, False), _word(random, kind.uuid_values, True), kind.uuid_values
        )


def _distinct(random: np.random.Generator, count: int, is_uuid: bool, numbers: bool = False) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        word = _word(random, is_uuid, numbers)
        if word not in words:
            words.append(word)
    return words


def _word(random: np.random.Generator, is_uuid: bool, is_number: bool) -> str:
    """A UUID, a number of seven digits, or an adjective and a noun."""
    if is_uuid:
        return str(uuid.UUID(bytes=random.bytes(16), version=4))
    if is_number:
        return str(random.integers(1_000_000, 10_000_000))
    return f"{ADJECTIVES[random.integers(len(ADJECTIVES))]}-{NOUNS[random.integers(len(NOUNS))]}"


def share_of_references(output: str, references: Sequence[str]) -> float:
    """Share of the references that occur in the output, whatever their case (RULER's score).

    Raises ValueError if there is no reference.
    """
    if not references:
        raise ValueError("references is empty: give at least one string to look for")
    text = _CONTROL.sub("\n", output).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def members(*, split: Split, tasks: str = "single_1", haystack: str = STDLIB) -> list[Member]:
    """See `rmat.tasks.registry`."""
    return [Member(task=NeedleTask(task=task, haystack=haystack, split=split)) for task in tasks.split("+")]


@dataclass(frozen=True, kw_only=True)
class NeedleQuestions(TextQuestions):
    """RULER-style needles in a haystack, and variable tracking (4 hops)."""

    length: tuple[int, ...] = option((2048,), "tokens of prompt and answer", metavar="TOKENS")
    task: tuple[str, ...] = option(NEEDLE_TASKS, "name of a task", metavar="NAME", shown="all nine")
    haystack: str = option(STDLIB, "text around", metavar="SPEC")
    split: Split = "test"

    def cells(self, tokenizer: Tokenizer, samples: int, seed: int) -> Iterator[QuestionCell]:
        """By length and task."""
        for length in self.length:
            for name in self.task:
                task = NeedleTask(task=name, haystack=self.haystack, split=self.split)
                examples = draw_examples(
                    partial(task.example, length=length, tokenizer=tokenizer), samples, seed
                )
                yield QuestionCell(task=name, length=length, depth=None, examples=examples)

    def score(self, output: str, example: Example) -> float:
        """Share of the references found."""
        return share_of_references(output, example.references)

    @property
    def max_new_tokens(self) -> int:
        """Enough for five UUIDs of bytes."""
        return 160

    def tokens(self, tokenizer: Tokenizer) -> int:
        """See `TextQuestions.tokens`."""
        return len(self.task) * sum(self.length)


QUESTIONS = NeedleQuestions
