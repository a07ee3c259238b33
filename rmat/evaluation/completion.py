"""Completion of held-out code: is the next line exactly right, and what do suffix, repository and memory give
to it?

Every line is asked for under each of these conditions, so that differences are paired:

    prompt   prefix: what stands before the line | fim: also what stands behind it, in the form of training
    context  nothing else | before it, files of the same folder that the model was trained on
    memory   from the first token of the context on: on | zeroed (every read finds it empty) | shuffled (it
             holds another file, read under the same condition; left out where there is one file only)

A line is written greedily up to its newline. Its prefix ends with a newline, so indentation is asked for too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, product
from operator import index
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.intervals import Interval, bootstrap_ratio, paired_bootstrap_ratio, wilson
from rmat.evaluation.next_line import CodeFile
from rmat.evaluation.shuffling import behind, front_rows
from rmat.generation.cursor import CursorPrompt, CursorRow, cursor_prompt, file_header
from rmat.generation.reader import Advance, read, scan
from rmat.generation.sampling import SamplingConfig
from rmat.machine import shared
from rmat.model import LanguageModel, StreamState
from rmat.model.language_model import MemoryMode

SHOWN = 5
"""Lines kept for inspection with every answer."""


class Condition(NamedTuple):
    """How lines are asked for."""

    prompt: Literal["prefix", "fim"]
    context: bool
    memory: MemoryMode


ASPECTS: tuple[tuple[str, Any, Any], ...] = (
    ("prompt", "fim", "prefix"),
    ("context", True, False),
    ("memory", "on", "zeroed"),
    ("memory", "on", "shuffled"),
)
"""What conditions differ in, with two values: their difference is the first minus the second."""


def completion(
    model: LanguageModel,
    tokenizer: Tokenizer,
    files: Sequence[CodeFile],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 8,
    seed: int = 0,
    advance: Advance | None = None,
) -> CompletionResult:
    """Ask for the lines of held-out files under every condition, and score what is written.

    A model without memory is asked with the memory on only. An answer does not depend on its neighbours nor
    on `batch_size`.

    Args:
        model: stays on its device; it reads without dropout and is then in the mode it was in.
        tokenizer: the one the model was trained with.
        files: what to ask, from `choose_files`.
        max_new_tokens: most tokens of a line.
        batch_size: lines side by side, each under all conditions of one use of the memory; more where a file
            has more lines.
        seed: seed of the bootstrap.
        advance: called with the number of tokens read since the last call.

    Raises ValueError for a tokenizer of another size than the model's vocabulary, no files, or a count below
    one.
    """
    tokenizer.require_vocab_size(model.config.vocab_size)
    if min(max_new_tokens, batch_size) < 1 or not files:
        raise ValueError(
            f"{len(files)} files, max_new_tokens={max_new_tokens}, batch_size={batch_size}: "
            "give at least one each"
        )
    conditions = conditions_of(model, files)

    def answered(asking: tuple[MemoryMode, list[int]]) -> list[tuple[Condition, list[str], int]]:
        """By condition of one use of the memory: the lines of a batch of files, and tokens before them."""
        memory, places = asking
        asked = [condition for condition in conditions if condition.memory == memory]
        batch, donors = [files[place] for place in places], [donor_of(files, place) for place in places]
        lines = [number for number, file in enumerate(batch) for _ in file.lines]
        before = {c: [context_ids(tokenizer, file, c) for file in batch] for c in (False, True)}
        states = {
            c: scan(
                model,
                _grouped(ids, [context_ids(tokenizer, donor, c) for donor in donors], memory),
                size=_piece(model, memory),
                memory=memory,
                advance=advance,
            )
            for c, ids in before.items()
        }
        prompts = [prompts_of(tokenizer, batch, condition) for condition in asked]
        beside = [
            prompts_of(tokenizer, [donors[number]], condition)[0].ids
            for condition in asked
            for number in lines
        ]
        found = _write(
            model,
            tokenizer,
            list(chain.from_iterable(prompts)),
            beside,
            StreamState.concat([states[c.context].select(_rows_of(lines, memory)) for c in asked]),
            memory,
            max_new_tokens,
            advance,
        )
        return [
            (
                condition,
                found[number * len(lines) : (number + 1) * len(lines)],
                sum(len(before[condition.context][line]) for line in lines)
                + sum(len(prompt.ids) for prompt in prompts[number]),
            )
            for number, condition in enumerate(asked)
        ]

    answers: dict[Condition, list[str]] = {condition: [] for condition in conditions}
    tokens = dict.fromkeys(conditions, 0)
    uses = dict.fromkeys(condition.memory for condition in conditions)
    parts = ((memory, places) for memory in uses for places in _batches(files, batch_size))
    for found in shared(parts, answered):
        for condition, texts, n_read in found:
            answers[condition] += texts
            tokens[condition] += n_read
    return CompletionResult(
        files=tuple(files),
        answers={condition: tuple(found) for condition, found in answers.items()},
        tokens=tokens,
        state_bytes=model.initial_state(batch_size=1).nbytes,
        seed=index(seed),
    )


def _write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[CursorPrompt],
    beside: Sequence[list[int]],
    state: StreamState,
    memory: MemoryMode,
    max_new_tokens: int,
    advance: Advance | None,
) -> list[str]:
    """The line that is written behind each prompt; `beside` are the donors' prompts."""
    written = [
        CursorRow(
            tokenizer,
            removed=prompt.removed,
            line="",
            lines=1,
            max_new_tokens=max_new_tokens,
            sampling=SamplingConfig(temperature=0.0),
            stop=(),
        )
        for prompt in prompts
    ]
    texts = [""] * len(written)
    live = list(range(len(written)))
    last = slice(front_rows(memory), None, 1 + front_rows(memory))
    rows = _grouped([prompt.ids for prompt in prompts], beside, memory)
    size = _piece(model, memory)
    logits_BV, state = read(model, rows, state, size=size, memory=memory, advance=advance)
    while live:
        places, tokens = [], []
        for place, (number, logits) in enumerate(zip(live, logits_BV[last], strict=True)):
            token = written[number].draw(logits)
            if token is not None:
                texts[number] += written[number].show(token)
            if token is not None and written[number].finish is None:
                places.append(place)
                tokens.append([token])
        if len(places) < len(live):  # lines that are complete cost no more
            live, state = [live[place] for place in places], state.select(_rows_of(places, memory))
        if live:
            rows = _grouped(tokens, [[]] * len(tokens), memory)
            logits_BV, state = read(model, rows, state, memory=memory, advance=advance)
    return [(text + row.rest()).partition("\n")[0] for text, row in zip(texts, written, strict=True)]


def _piece(model: LanguageModel, memory: MemoryMode) -> int | None:
    """Tokens of a row read in one call. With "shuffled" where a call ends decides which of its donor's states
    a row meets, so that may not depend on how many rows there are."""
    return min(model.config.segment_len, 64) if memory == "shuffled" else None


def _grouped(
    rows: Sequence[list[int]], donors: Sequence[list[int]], memory: MemoryMode
) -> list[Iterable[int]]:
    """The rows of a call: with "shuffled" each of `rows` behind a donor of its own and a row that reads
    nothing."""
    pairs = zip(rows, donors, strict=True)
    return [row for own, donor in pairs for row in behind(donor if front_rows(memory) else None, [own])]


def _rows_of(places: Sequence[int], memory: MemoryMode) -> list[int]:
    """Numbers of the rows that `_grouped` makes of those at some places."""
    size = 1 + front_rows(memory)
    return [size * place + row for place in places for row in range(size)]


def donor_of(files: Sequence[CodeFile], place: int) -> CodeFile:
    """Whose memory a file is given with "shuffled": the next file that shares no context with it, else the
    next one; where there is one file only, itself."""
    others = [*files[place + 1 :], *files[: place + 1]]
    own = {name for name, _ in files[place].context}
    return next((one for one in others if own.isdisjoint(name for name, _ in one.context)), others[0])


def tokens_to_read(model: LanguageModel, tokenizer: Tokenizer, files: Sequence[CodeFile]) -> int:
    """Tokens of all contexts and prompts that `completion` reads, under every condition."""
    total = 0
    for condition in conditions_of(model, files):
        for place, file in enumerate(files):
            donors = [donor_of(files, place)] if condition.memory == "shuffled" else []
            for one in (file, *donors):
                prompts = prompts_of(tokenizer, [one], condition)
                prompts = prompts if one is file else prompts[:1] * len(file.lines)
                # One reading of the context serves both forms of the prompt.
                context = (
                    len(context_ids(tokenizer, one, condition.context)) if condition.prompt == "fim" else 0
                )
                total += context + sum(len(prompt.ids) for prompt in prompts)
    return total


def conditions_of(model: LanguageModel, files: Sequence[CodeFile]) -> list[Condition]:
    """Every condition under which a model is asked for the lines of files."""
    prompts: tuple[Literal["prefix", "fim"], ...] = ("prefix", "fim")
    memories: tuple[MemoryMode, ...] = ("on",)
    if model.config.has_memory:
        memories = ("on", "zeroed", "shuffled") if len(files) > 1 else ("on", "zeroed")
    return [Condition(*one) for one in product(prompts, (False, True), memories)]


def prompts_of(tokenizer: Tokenizer, files: Sequence[CodeFile], condition: Condition) -> list[CursorPrompt]:
    """What is read for every line of `files`, without the context."""
    mode: Literal["fim", "plain"] = "fim" if condition.prompt == "fim" else "plain"
    return [
        cursor_prompt(tokenizer, line.prefix, line.suffix, file_name=file.name, mode=mode)
        for file in files
        for line in file.lines
    ]


def context_ids(tokenizer: Tokenizer, file: CodeFile, context: bool) -> list[int]:
    """What is read before a file: the document token and, with context, the other files."""
    ids = [tokenizer.special_id("document")]
    for name, text in file.context if context else ():
        ids += [*file_header(tokenizer, name), *tokenizer.encode(text)]
    return ids


def _batches(files: Sequence[CodeFile], batch_size: int) -> Iterator[list[int]]:
    """Places of whole files, so many that they have `batch_size` lines where that can be."""
    batch: list[int] = []
    for place, file in enumerate(files):
        if batch and sum(len(files[one].lines) for one in batch) + len(file.lines) > batch_size:
            yield batch
            batch = []
        batch.append(place)
    yield batch


@dataclass(frozen=True, kw_only=True)
class CompletionResult:
    """Result of `completion`. Arrays hold one entry a line, so that conditions can be paired."""

    files: tuple[CodeFile, ...]
    """What was asked."""
    answers: dict[Condition, tuple[str, ...]] = field(repr=False)
    """By condition: the line that was written for each that was asked for, in the order of the files."""
    tokens: dict[Condition, int]
    """By condition: tokens read before the lines, over all lines."""
    state_bytes: int
    """Size of the streaming state of one row."""
    seed: int
    """Seed of the bootstrap."""

    @property
    def targets(self) -> list[str]:
        """The lines that were asked for."""
        return [line.target for file in self.files for line in file.lines]

    @cached_property
    def scores(self) -> dict[Condition, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """By condition: (lines,) 1 where the line is exactly right, else 0; (lines,) edit similarity, 0 to
        1."""
        found = {}
        for condition, answers in self.answers.items():
            pairs = list(zip(answers, self.targets, strict=True))
            right = np.array([is_right(*pair) for pair in pairs], dtype=np.float64)
            found[condition] = right, np.array([similarity(*pair) for pair in pairs])
        return found

    def accuracy(self, condition: Condition) -> Interval:
        """Share of lines that are exactly right. The wider of two intervals: over files, whose lines are not
        independent of each other, and Wilson's, because no share is certain to be 0 or 1."""
        right = self.scores[condition][0]
        files, lines = self._interval(right), wilson(int(right.sum()), len(right))
        assert lines.low is not None and lines.high is not None
        low = lines.low if files.low is None else min(files.low, lines.low)
        high = lines.high if files.high is None else max(files.high, lines.high)
        return Interval(value=files.value, low=low, high=high)

    def minus(self, condition: Condition, other: Condition) -> tuple[Interval, Interval]:
        """Accuracy and edit similarity of one condition minus those of another, paired over files."""
        lines = self._per_file(np.ones(len(self.targets)))
        right, alike = (
            paired_bootstrap_ratio(self._per_file(ours), self._per_file(theirs), lines, seed=self.seed)
            for ours, theirs in zip(self.scores[condition], self.scores[other], strict=True)
        )
        return right, alike

    def _interval(self, values: NDArray[np.float64]) -> Interval:
        return bootstrap_ratio(self._per_file(values), self._per_file(np.ones(len(values))), seed=self.seed)

    def _per_file(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the lines of each file."""
        return np.add.reduceat(values, np.cumsum([0, *(len(file.lines) for file in self.files)])[:-1])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: `cells` (a condition each), `differences` (two conditions that differ in one aspect),
        `samples`, `files`, `context_bytes` (mean over files), `state_bytes`, `seed`, `examples`."""
        lines = [(file, line) for file in self.files for line in file.lines]
        context = [sum(len(text.encode()) for _, text in file.context) for file in self.files]
        return {
            "task": "completion",
            "cells": [self._cell(condition) for condition in self.answers],
            "differences": list(self._differences()),
            "samples": len(lines),
            "files": len(self.files),
            "context_bytes": float(np.mean(context)),
            "state_bytes": self.state_bytes,
            "seed": self.seed,
            "examples": [
                {
                    "file": file.name,
                    "line": line.number,
                    "target": line.target,
                    "answers": {
                        name_of(condition): answers[place] for condition, answers in self.answers.items()
                    },
                }
                for place, (file, line) in enumerate(lines[:SHOWN])
            ],
        }

    def _cell(self, condition: Condition) -> dict[str, Any]:
        return {
            "task": f"{condition.prompt}, memory {condition.memory}",
            **condition._asdict(),
            "length": round(self.tokens[condition] / len(self.targets)),
            "depth": None,
            "samples": len(self.targets),
            **_scores(self.accuracy(condition), self._interval(self.scores[condition][1])),
        }

    def _differences(self) -> Iterator[dict[str, Any]]:
        for condition in self.answers:
            for aspect, value, other in ASPECTS:
                against = condition._replace(**{aspect: other})
                if getattr(condition, aspect) == value and against in self.answers:
                    names = {"aspect": aspect, "of": name_of(condition), "minus": name_of(against)}
                    yield {**names, **_scores(*self.minus(condition, against))}


def _scores(right: Interval, alike: Interval) -> dict[str, float | None]:
    similarity = {"similarity": alike.value, "similarity_low": alike.low, "similarity_high": alike.high}
    return right.to_dict("accuracy") | similarity


def name_of(condition: Condition) -> str:
    """A condition in words."""
    return f"{condition.prompt}{', context' if condition.context else ''}, memory {condition.memory}"


def is_right(answer: str, target: str) -> bool:
    """Whether two lines are the same but for blanks at their ends; indentation counts."""
    return answer.rstrip() == target.rstrip()


def similarity(answer: str, target: str) -> float:
    """How alike two lines are, 0 to 1, blanks at their ends aside: twice the length of their longest common
    subsequence over their lengths together, which is the edit similarity of CodeXGLUE (arXiv 2102.04664)."""
    one, two = answer.rstrip(), target.rstrip()
    if not one and not two:
        return 1.0
    row = [0] * (len(two) + 1)
    for mine in one:
        before = row
        row = [0]
        for place, other in enumerate(two):
            row.append(before[place] + 1 if mine == other else max(before[place + 1], row[-1]))
    return 2 * row[-1] / (len(one) + len(two))
