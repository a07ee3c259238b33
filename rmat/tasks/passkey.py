"""The pass key: a random number stated once in filler and asked for at the end (after Mohtashami and Jaggi, 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rmat.data.tokenizer import Tokenizer
from rmat.tasks.haystack import (
    NOISE,
    Replay,
    Split,
    hide,
    load_filler,
    room_for,
    sample_texts,
    without,
)
from rmat.tasks.task import Example, TextTask

NEAR = 0.01
"""A needle at a depth stands within this share of the filler around it, so that start and end are no fixed places."""

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
