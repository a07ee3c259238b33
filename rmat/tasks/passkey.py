"""The pass key: a random number stated once in filler and asked for at the end (after Mohtashami and Jaggi,
2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from rmat.data.tokenizer import Tokenizer
from rmat.tasks.haystack import NOISE, Replay, Split, hide, load_filler, room_for, sample_texts, without
from rmat.tasks.task import (
    Example,
    Member,
    QuestionCell,
    TextQuestions,
    TextTask,
    draw_examples,
    exact_match,
    option,
    whole,
)

NEAR = 0.01
"""A needle at a depth stands within this share of the filler around it, so that start and end are no fixed
places."""

QUESTION = "\nWhat is the pass key? The pass key is"


@dataclass(frozen=True)
class PasskeyTask(TextTask):
    """The task's settings. Raises ValueError naming setting, value and remedy."""

    filler: tuple[str, ...] = (NOISE,)
    """`noise` or SPECs of text; each example draws one of them."""

    split: Split = "train"
    """The part of the SPECs' documents that is filler."""

    depth: float | None = None
    """Share of the filler before the number, give or take `NEAR`; None draws it uniformly."""

    digits: int = 5
    """Digits of the number."""

    def __post_init__(self) -> None:
        if isinstance(self.filler, str) or not self.filler:
            raise ValueError(
                f"passkey: filler must be one or more SPECs, got {self.filler!r}; write ('noise',)"
            )
        if self.depth is not None and not 0.0 <= self.depth <= 1.0:
            raise ValueError(f"passkey: depth must lie in 0..1, got {self.depth}; 0 is the start, 1 the end")
        if not 1 <= self.digits <= 18:
            raise ValueError(f"passkey: digits must lie in 1..18, got {self.digits}")

    def example(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Example:
        """See `TextTask.example`. Labels: task, depth (the share drawn) and filler."""
        number = str(random.integers(10 ** (self.digits - 1), 10**self.digits))
        spec = self.filler[random.integers(len(self.filler))]
        share = random.random()
        if self.depth is not None:
            share = min(max(self.depth + NEAR * (2 * share - 1), 0.0), 1.0)
        seed = int(random.integers(2**63))
        needle = f"\nThe pass key is {number}. Remember it. {number} is the pass key."
        answer = f" {number}"
        budget = room_for(length, (needle, QUESTION, answer), tokenizer, "passkey")
        filler = load_filler(spec, self.split)

        def pieces() -> Iterator[str]:
            sentences = without((number,), filler.sentences(np.random.default_rng(seed)))
            yield from (text for _, text in hide([(share, needle)], sentences, budget, tokenizer))
            yield QUESTION

        return Example(
            pieces=Replay(pieces),
            answer=answer,
            references=(number,),
            labels={"task": "passkey", "depth": share, "filler": spec},
        )

    def texts(self) -> Iterator[str]:
        """See `TextTask.texts`."""
        return sample_texts(self)


def members(*, split: Split, filler: str = "noise", digits: str = "5") -> list[Member]:
    """See `rmat.tasks.registry`."""
    task = PasskeyTask(filler=tuple(filler.split("+")), split=split, digits=whole("digits", digits, 1))
    return [Member(task=task)]


@dataclass(frozen=True, kw_only=True)
class PasskeyQuestions(TextQuestions):
    """A random number stated once in filler and asked for at the end, for models trained with --data
    passkey."""

    length: tuple[int, ...] = option((1280,), "tokens of prompt and answer", metavar="TOKENS")
    depth: tuple[float, ...] = option(
        (0.0, 0.5, 1.0), "where the number stands, 0 start to 1 end", metavar="SHARE"
    )
    filler: tuple[str, ...] = option((NOISE,), "noise, or text", metavar="SPEC")
    digits: int = option(5, "digits of the number")
    split: Split = "test"

    def cells(self, tokenizer: Tokenizer, samples: int, seed: int) -> Iterator[QuestionCell]:
        """By length and depth."""
        for length in self.length:
            for depth in self.depth:
                task = PasskeyTask(filler=self.filler, split=self.split, depth=depth, digits=self.digits)
                examples = draw_examples(
                    partial(task.example, length=length, tokenizer=tokenizer), samples, seed
                )
                yield QuestionCell(task="passkey", length=length, depth=depth, examples=examples)

    def score(self, output: str, example: Example) -> float:
        """1 for the number alone."""
        return exact_match(output, example.references)

    @property
    def max_new_tokens(self) -> int:
        """Enough to see that an answer goes on."""
        return self.digits + 8

    def tokens(self, tokenizer: Tokenizer) -> int:
        """See `TextQuestions.tokens`."""
        return len(self.depth) * sum(self.length)


QUESTIONS = PasskeyQuestions
