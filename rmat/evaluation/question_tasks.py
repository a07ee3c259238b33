"""Pass key, needles, BABILong and facts of dialogues asked of a model: accuracy by task, length, depth or turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

import numpy as np

from rmat.data.sources import STDLIB
from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.asking import QuestionResult, Questions, ask
from rmat.evaluation.scoring import (
    BABI_LABELS,
    contains_word,
    exact_match,
    named_label,
    share_of_references,
)
from rmat.generation.reader import Advance
from rmat.model import LanguageModel
from rmat.model.language_model import MemoryMode
from rmat.tasks.babilong import BabilongTask
from rmat.tasks.facts import FactsTask
from rmat.tasks.haystack import NOISE, Split
from rmat.tasks.needle import NEEDLE_TASKS, NeedleTask
from rmat.tasks.passkey import PasskeyTask
from rmat.tasks.talk import TALK
from rmat.tasks.task import Example, TextTask


def passkey(
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    lengths: Sequence[int],
    depths: Sequence[float] = (0.0, 0.5, 1.0),
    samples: int = 100,
    filler: Sequence[str] = (NOISE,),
    digits: int = 5,
    split: Split = "test",
    seed: int = 0,
    batch_size: int = 8,
    piece: int = 4096,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> QuestionResult:
    """Pass key by length and depth, exact match. Arguments: see `PasskeyTask` and `ask`.

    Raises ValueError for a length that is too short, settings out of range, or less than one sample.
    """
    cells = (
        Questions(
            task="passkey",
            length=length,
            depth=depth,
            examples=_examples(
                PasskeyTask(filler=tuple(filler), split=split, depth=depth, digits=digits),
                samples,
                seed,
                length,
                tokenizer,
            ),
        )
        for length in lengths
        for depth in depths
    )
    return ask(
        model,
        tokenizer,
        cells,
        score=lambda output, example: exact_match(output, example.references),
        max_new_tokens=digits + 8,
        seed=seed,
        batch_size=batch_size,
        piece=piece,
        memory=memory,
        advance=advance,
    )


def needle(
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    lengths: Sequence[int],
    tasks: Sequence[str] = NEEDLE_TASKS,
    samples: int = 100,
    haystack: str = STDLIB,
    split: Split = "test",
    seed: int = 0,
    batch_size: int = 8,
    piece: int = 4096,
    max_new_tokens: int = 160,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> QuestionResult:
    """Needles by task and length, share of the references found. Arguments: see `NeedleTask` and `ask`.

    Raises ValueError for a length that is too short, settings out of range, or less than one sample.
    """
    cells = (
        Questions(
            task=task,
            length=length,
            depth=None,
            examples=_examples(
                NeedleTask(task=task, haystack=haystack, split=split), samples, seed, length, tokenizer
            ),
        )
        for length in lengths
        for task in tasks
    )
    return ask(
        model,
        tokenizer,
        cells,
        score=lambda output, example: share_of_references(output, example.references),
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        piece=piece,
        memory=memory,
        advance=advance,
    )


def babilong(
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    facts: str,
    lengths: Sequence[int],
    tasks: Sequence[int] = (1, 2, 3, 4, 5),
    samples: int = 100,
    filler: str = STDLIB,
    split: Split = "test",
    scorer: Literal["exact", "labels"] = "exact",
    seed: int = 0,
    batch_size: int = 8,
    piece: int = 4096,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> QuestionResult:
    """BABILong by task and length. Arguments: see `BabilongTask` and `ask`.

    Every sample is asked at most once in a cell, so that a cell has fewer than `samples` where the file has.

    Args:
        scorer: "exact" match, for models that were trained on the task, or "labels" (`named_label`), for others.

    Raises ValueError for a length that is too short, settings out of range, or less than one sample.
    """
    if scorer not in ("exact", "labels"):
        raise ValueError(f"scorer={scorer!r} is not possible: choose exact or labels")
    unlabelled = [task for task in tasks if task not in BABI_LABELS]
    if scorer == "labels" and unlabelled:
        raise ValueError(f"scorer='labels' has no labels for task {unlabelled[0]}: choose exact")
    _check(samples)
    chosen = BabilongTask(facts=facts, filler=filler, tasks=tuple(tasks), split=split)

    def examples(task: int, length: int) -> list[Example]:
        fitting = chosen.fitting(task, length, tokenizer)
        order = np.random.default_rng([seed, task]).permutation(len(fitting))[:samples]
        randoms = (np.random.default_rng([seed, task, int(index)]) for index in order)
        return [
            chosen.ask(fitting[index], random, length, tokenizer)
            for index, random in zip(order, randoms, strict=True)
        ]

    def score(output: str, example: Example) -> float:
        if scorer == "exact":
            return exact_match(output, example.references)
        labels = BABI_LABELS[int(example.labels["task"].removeprefix("qa"))]
        return named_label(output, example.references[0], example.labels["question"], labels)

    cells = (
        Questions(task=f"qa{task}", length=length, depth=None, examples=examples(task, length))
        for length in lengths
        for task in tasks
    )
    return ask(
        model,
        tokenizer,
        cells,
        score=score,
        max_new_tokens=20,
        seed=seed,
        batch_size=batch_size,
        piece=piece,
        memory=memory,
        advance=advance,
    )


def facts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    turns: Sequence[int] = (10, 100, 1000),
    fillers: Sequence[str] = (TALK,),
    samples: int = 100,
    facts: int = 4,
    changes: float = 0.0,
    split: Split = "test",
    seed: int = 0,
    batch_size: int = 8,
    piece: int = 4096,
    max_new_tokens: int = 48,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> QuestionResult:
    """Facts of a dialogue by filler and turns since they were stated; right is an answer with the value in it.

    A cell's task is "facts in" and the name of its filler. Other arguments: see `FactsTask` and `ask`.

    Raises ValueError for settings out of range, or less than one sample.
    """
    _check(samples)
    cells = (
        Questions(
            task=f"facts in {PurePath(filler).name}",
            length=None,
            depth=None,
            turns=count,
            examples=[
                FactsTask(filler=(filler,), split=split, facts=facts, changes=changes).after(
                    np.random.default_rng([seed, index]), count
                )
                for index in range(samples)
            ],
        )
        for filler in fillers
        for count in turns
    )
    return ask(
        model,
        tokenizer,
        cells,
        score=lambda output, example: contains_word(output, example.references),
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        piece=piece,
        memory=memory,
        advance=advance,
    )


def _examples(task: TextTask, samples: int, seed: int, length: int, tokenizer: Tokenizer) -> list[Example]:
    """Examples each drawn from a seed of its own, so that more samples leave the first ones as they are."""
    _check(samples)
    return [task.example(np.random.default_rng([seed, index]), length, tokenizer) for index in range(samples)]


def _check(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples={samples}: ask at least one")
