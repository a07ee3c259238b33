"""Questions at the end of texts of any length: answers written greedily, accuracy cell by cell of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import index
from typing import Any

import numpy as np
from torch import Tensor

from rmat.data.documents import Part, Special
from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.intervals import bootstrap_ratio, wilson
from rmat.evaluation.shuffling import behind, front_rows, groups, require_another
from rmat.generation.reader import Advance, read
from rmat.machine import shared, team
from rmat.model import LanguageModel, StreamState
from rmat.model.language_model import MemoryMode
from rmat.tasks.task import Example, TextQuestions, encode_parts, texts_of

SHOWN_EXAMPLES = 5
"""Examples kept for inspection."""

SHOWN_CHARACTERS = 300
"""So much of a prompt's end is kept."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Accuracy in one cell of a table."""

    task: str
    """As in `QuestionCell`."""
    length: int
    """As in `QuestionCell`; where that is None the tokens of a prompt, on average."""
    depth: float | None
    """As in `QuestionCell`."""
    scores: tuple[float, ...]
    """Of each sample, 0 to 1."""
    turns: int | None = None
    """As in `QuestionCell`."""

    @property
    def place(self) -> dict[str, Any]:
        """JSON-able: task, turns (if it has any), length, depth."""
        turns = {} if self.turns is None else {"turns": self.turns}
        return {"task": self.task, **turns, "length": self.length, "depth": self.depth}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: task, turns (if it has any), length, depth, samples, accuracy, and its 95 % bounds low
        and high.

        Bounds are Wilson's where every score is 0 or 1, else bootstrapped (None for a single sample).
        """
        whole = all(score in (0.0, 1.0) for score in self.scores)
        found = (
            wilson(int(sum(self.scores)), len(self.scores))
            if whole
            else bootstrap_ratio(self.scores, np.ones(len(self.scores)))
        )
        return {**self.place, "samples": len(self.scores), **found.to_dict("accuracy")}


@dataclass(frozen=True, kw_only=True)
class QuestionResult:
    """Result of `ask`."""

    cells: tuple[Cell, ...]
    """In the order in which they were asked."""
    state_bytes: int
    """Size of the streaming state of one row."""
    memory: MemoryMode
    """How the memory was used."""
    seed: int
    """Seed of the samples."""
    examples: tuple[dict[str, Any], ...]
    """The first samples of the first cells: place of the cell, end of the prompt, reference, output and
    score."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: cells, state_bytes, memory, seed, examples."""
        return {
            "cells": [cell.to_dict() for cell in self.cells],
            "state_bytes": self.state_bytes,
            "memory": self.memory,
            "seed": self.seed,
            "examples": list(self.examples),
        }


def ask(
    model: LanguageModel,
    tokenizer: Tokenizer,
    questions: TextQuestions,
    *,
    samples: int = 100,
    seed: int = 0,
    batch_size: int = 8,
    piece: int = 4096,
    max_new_tokens: int | None = None,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> QuestionResult:
    """Ask a model the questions of every cell and score what it says.

    Args:
        questions: what to ask, such as `rmat.tasks.passkey.PasskeyQuestions()`.
        samples: questions in each cell.
        seed: seed of the samples.
        max_new_tokens: most tokens of an answer; None: what the questions need.
        model, tokenizer, batch_size, piece, memory, advance: see `answers`.

    Raises ValueError as `answers` does, for less than one sample, and for what `questions` cannot be asked
    with.
    """
    seed = index(seed)
    if samples < 1:
        raise ValueError(f"samples={samples}: ask at least one")
    found: list[Cell] = []
    shown: list[dict[str, Any]] = []
    for cell in questions.cells(tokenizer, samples, seed):
        read: list[int] = []

        def count(tokens: int, read: list[int] = read) -> None:
            read.append(tokens)
            if advance:
                advance(tokens)

        said = list(
            answers(
                model,
                tokenizer,
                cell.examples,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens or questions.max_new_tokens,
                piece=piece,
                memory=memory,
                advance=count,
            )
        )
        n_read = sum(shared([read] * team(), sum))
        length = round(n_read / len(cell.examples)) if cell.length is None else cell.length
        scores = tuple(
            questions.score(output, example) for output, example in zip(said, cell.examples, strict=True)
        )
        found.append(Cell(task=cell.task, length=length, depth=cell.depth, scores=scores, turns=cell.turns))
        if len(shown) < SHOWN_EXAMPLES:
            shown.append(
                {
                    **found[-1].place,
                    "prompt_end": _end(cell.examples[0].pieces),
                    "reference": cell.examples[0].answer,
                    "output": said[0],
                    "score": scores[0],
                }
            )
    return QuestionResult(
        cells=tuple(found),
        state_bytes=model.initial_state(batch_size=1).nbytes,
        memory=memory,
        seed=seed,
        examples=tuple(shown),
    )


def answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 32,
    piece: int = 4096,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> Iterator[str]:
    """What the model says after each example's prompt, in order, without the token that ends it.

    The document token is put in front of every prompt, as in training. Prompts are read as they are made, so
    memory does not grow with their length. An answer depends neither on its neighbours nor on `batch_size`
    and `piece`, except with memory="shuffled", where a row reads its neighbour's bank.

    Args:
        model: stays on its device; it reads without dropout and is then in the mode it was in.
        tokenizer: the one the model was trained with.
        examples: taken a batch at a time.
        batch_size: prompts read side by side.
        max_new_tokens: most tokens of an answer; it also ends at turn_end or document.
        piece: most tokens of a prompt read in one call.
        memory: "on", or an ablation of the model's memory.
        advance: called with the number of tokens of prompts read since the last call.

    Raises ValueError for a tokenizer of another size than the model's vocabulary, a count below one, numbers
    of the model that are not finite, or memory="shuffled" with a single example.
    """
    tokenizer.require_vocab_size(model.config.vocab_size)
    if min(batch_size, max_new_tokens, piece) < 1:
        raise ValueError(
            f"batch_size={batch_size}, max_new_tokens={max_new_tokens}, piece={piece}: give at least one each"
        )
    if memory == "shuffled":
        require_another(len(examples), "prompts")
    return _answers(model, tokenizer, examples, batch_size, max_new_tokens, piece, memory, advance)


def _answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    batch_size: int,
    max_new_tokens: int,
    piece: int,
    memory: MemoryMode,
    advance: Advance | None,
) -> Iterator[str]:
    front = front_rows(memory)

    def answered(part: tuple[Example | None, list[Example]]) -> list[str]:
        donor, batch = part
        prompts = [prompt_ids(tokenizer, example) for example in batch]
        rows = behind(None if donor is None else prompt_ids(tokenizer, donor), prompts)
        logits_BV, state = read(model, rows, size=piece, memory=memory, advance=advance)
        written = _write(model, tokenizer, logits_BV, state, front, max_new_tokens, memory)
        return list(map(tokenizer.decode, written))

    parts = groups(examples, math.ceil(len(examples) / batch_size), memory, "prompts")
    for texts in shared(parts, answered):
        yield from texts


def prompt_ids(tokenizer: Tokenizer, example: Example) -> Iterator[int]:
    """Tokens of a prompt, the document token first; each piece is encoded by itself."""
    return encode_parts(tokenizer, chain((Special("document"),), example.pieces))


def _write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    logits_BV: Tensor,
    state: StreamState,
    front: int,
    max_new_tokens: int,
    memory: MemoryMode,
) -> list[list[int]]:
    """The likeliest token again and again, until all rows behind the first `front` have ended."""
    ends = {tokenizer.special_id("turn_end"), *tokenizer.ends}
    written: list[list[int]] = [[] for _ in range(len(logits_BV) - front)]
    is_open = [True] * len(written)
    for _ in range(max_new_tokens):
        likeliest = logits_BV.argmax(-1).tolist()[front:]
        is_open = [still and token not in ends for still, token in zip(is_open, likeliest, strict=True)]
        if not any(is_open):
            break
        drawn = [[token] if still else [] for token, still in zip(likeliest, is_open, strict=True)]
        for row, ids in zip(written, drawn, strict=True):
            row += ids
        logits_BV, state = read(model, [[]] * front + drawn, state, memory=memory)
    return written


def _end(parts: Iterable[Part]) -> str:
    """The last characters of a text, holding little of it at once."""
    end = ""
    for piece in texts_of(parts):
        end = (end + piece)[-SHOWN_CHARACTERS:]
    return end
