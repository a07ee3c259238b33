"""Synthetic tasks in the place of a corpus: the same answers to what a training run asks of its data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import numpy as np

from rmat.data.config import DataConfig
from rmat.data.corpus import Corpus, Reading, Scorer, load_corpus
from rmat.data.lanes import Batch
from rmat.data.streaming import load_stream
from rmat.data.tokenizer import Tokenizer, load_tokenizer, train_bpe
from rmat.tasks.haystack import Split
from rmat.tasks.lanes import TaskLanes
from rmat.tasks.numbered import numbered_tokenizer
from rmat.tasks.registry import is_task, parse_task
from rmat.tasks.task import Member, NumberedTask, Row, TextTask

VALIDATION_SEED = 2**64 - 1
"""Rows to validate on are drawn from this seed: the same for every run, and of no training seed's numbers."""

READING_SEED = 0
"""Of the rows that a report shows."""

TOKENIZER_TEXTS = 8 * 2**20
"""Characters of a task's text that a BPE vocabulary is trained on."""


@dataclass(frozen=True)
class HeldOutRows:
    """Rows to validate on."""

    lanes: TaskLanes
    """Where they come from."""

    def batches(self, count: int) -> Iterator[Batch]:
        """The first `count` batches, the same each time."""
        return (batch for batch, _ in itertools.islice(self.lanes.batches(), count))

    def score(self, scorer: Scorer) -> dict[str, float]:
        """The scores of its rows."""
        return scorer.rows(self)


@dataclass(frozen=True)
class TaskCorpus:
    """A mixture of tasks and the vocabulary it is written in."""

    data: DataConfig
    tokenizer: Tokenizer
    has_valid: ClassVar[bool] = True
    """Rows to validate on are always at hand."""

    def lanes(
        self, batch_size: int, window: int, seed: int, accumulate: int = 1, rows: range | None = None
    ) -> TaskLanes:
        """Training rows without end, of which an update takes `accumulate` batches; of each only `rows`, if
        they are given."""
        members = self._members("train")
        return TaskLanes(members, self.data.specs, self.tokenizer, batch_size, window, seed, accumulate, rows)

    def held_out(self, batch_size: int, window: int) -> HeldOutRows:
        """Rows with facts and filler of the validation split, as long as those of training become."""
        full = [replace(member, shortest=None, grow=0) for member in self._members("valid")]
        return HeldOutRows(
            TaskLanes(full, self.data.specs, self.tokenizer, batch_size, window, VALIDATION_SEED)
        )

    def row_tokens(self, window: int, updates: int) -> float:
        """Tokens of a row, on average over the mixture: rows may have a length of their own, or grow."""
        some = range(0, max(1, updates), max(1, updates // 1000))
        members = self._members("train")
        lengths = [np.mean([member.lengths(window, update) for update in some]) for member in members]
        return float(np.average(lengths, weights=[member.share for member in members]))

    def bits_per_byte(self, nats_per_token: float) -> float | None:
        """None: a task's tokens stand for no text."""
        del nats_per_token
        return None

    def summary(self, tokens: int) -> tuple[str, str]:
        """What is read, and what `tokens` tokens of it are, in words."""
        return f"{', '.join(self.data.specs)}: rows made as they are needed", "rows never seen before"

    @cached_property
    def record(self) -> dict[str, Any]:
        """JSON-able; equal for equal data."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "tasks": list(self.data.specs),
            "vocab_size": self.tokenizer.vocab_size,
        }

    def reading(self, split: str, max_tokens: int) -> Reading:
        """Rows of each SPEC in turn, of the task's own length or as long as all that is to be read."""
        assert split in get_args(Split)
        members = self._members(cast(Split, split))
        random, left = np.random.default_rng(READING_SEED), max_tokens
        rows: list[Row] = []
        for member in itertools.cycle(members):
            row = member.task.row(random, member.length or max_tokens // len(members), self.tokenizer)
            if rows and len(row.tokens) > left:
                break
            rows.append(row)
            left -= len(row.tokens)
        return Reading(
            name=f"{', '.join(self.data.specs)}, {split} split",
            names=tuple(f"row {k + 1}" for k in range(len(rows))),
            documents=tuple(row.tokens for row in rows),
            targets=tuple(row.targets for row in rows),
        )

    def _members(self, split: Split) -> list[Member]:
        weights = self.data.weights or (1.0,) * len(self.data.specs)
        members: list[Member] = []
        for spec, weight in zip(self.data.specs, weights, strict=True):
            parsed = parse_task(spec, split)
            total = sum(member.share for member in parsed)
            members += [replace(member, share=weight * member.share / total) for member in parsed]
        return members


def load_data(data: DataConfig, progress: bool = True, *, tokenizer: Tokenizer | None = None) -> Corpus:
    """The corpus of a configuration, of text or of tasks; `progress` and `tokenizer` as for `load_corpus`.

    Raises ValueError for data that cannot be used.
    """
    if any(map(is_task, data.specs)):
        return load_tasks(data, tokenizer)
    if data.streaming:
        return load_stream(data, progress, tokenizer=tokenizer)
    return load_corpus(data, progress, tokenizer=tokenizer)


def refuse_ambiguous(specs: Iterable[str], out: str | Path | None = None) -> None:
    """Raises ValueError for a SPEC that names a task and a file or folder that is here.

    A run or model may be called after its task: such a folder, and `out`, the one to be written, are no data.
    """
    for spec in specs:
        place = Path(spec)
        if (out is not None and place == Path(out)) or (place / "config.json").exists():
            continue
        if is_task(spec) and place.exists():
            raise ValueError(
                f"{spec!r} is a synthetic task, and {place.absolute()} is there too: write './{spec}' "
                "to read that, "
                f"or '{spec}:' for the task"
            )


def load_tasks(data: DataConfig, tokenizer: Tokenizer | None = None) -> TaskCorpus:
    """The mixture of a configuration whose SPECs are all tasks, written with `tokenizer` if it is given.

    Raises ValueError where tasks are mixed with text, numbered tasks with text tasks, or a setting has no
    meaning.
    """
    other = [spec for spec in data.specs if not is_task(spec)]
    if other:
        raise ValueError(
            f"data.specs mixes synthetic tasks with text ({other[0]!r}): train on one kind at a time"
        )
    if data.fim_rate:
        raise ValueError(
            f"data.fim_rate is {data.fim_rate} but synthetic tasks have no middle to fill: leave it out"
        )
    if data.context_rate:
        raise ValueError(
            f"data.context_rate is {data.context_rate} but synthetic tasks have no folders: leave it out"
        )
    if data.assistant_only_loss:
        raise ValueError(
            "data.assistant_only_loss is true but synthetic tasks say themselves what is scored: leave it out"
        )
    tasks = [member.task for spec in data.specs for member in parse_task(spec, "train")]
    numbered = [task for task in tasks if isinstance(task, NumberedTask)]
    if numbered and len(numbered) < len(tasks):
        raise ValueError(
            "data.specs mixes numbered tasks (recall, mqar) with text tasks: train on one kind at a time"
        )
    if tokenizer is not None:
        largest = max((task.vocab_size for task in numbered), default=0)
        if largest > tokenizer.vocab_size:
            raise ValueError(
                f"{', '.join(data.specs)} has {largest} numbered tokens, the model's vocabulary "
                f"{tokenizer.vocab_size} "
                "entries: give a model that was trained on this task"
            )
        return TaskCorpus(data, tokenizer)
    if numbered:
        if data.tokenizer != DataConfig().tokenizer:
            raise ValueError(
                f"data.tokenizer is {data.tokenizer!r} but {data.specs[0]!r} brings its own vocabulary: "
                "leave it out"
            )
        return TaskCorpus(data, numbered_tokenizer(max(task.vocab_size for task in numbered)))
    if data.bpe_size is None:
        return TaskCorpus(data, load_tokenizer(data.tokenizer))
    texts = itertools.chain.from_iterable(task.texts() for task in tasks if isinstance(task, TextTask))
    return TaskCorpus(data, train_bpe(_first(texts, TOKENIZER_TEXTS), data.bpe_size))


def _first(texts: Iterator[str], characters: int) -> Iterator[str]:
    """Texts until so many characters are given."""
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return
