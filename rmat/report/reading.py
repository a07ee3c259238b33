"""What a report reads: a file, held-out text of a corpus, or rows of a synthetic task."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rmat.data.config import DataConfig
from rmat.data.corpus import load_corpus
from rmat.data.documents import encode_documents
from rmat.data.sources import Source
from rmat.data.tokenizer import Tokenizer
from rmat.tasks.haystack import Split
from rmat.tasks.registry import is_task, parse_task
from rmat.tasks.task import NumberedTask, Row

SEED = 0
"""Of the rows of tasks."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Documents to be read, each by itself."""

    name: str
    """What it is, in words."""
    names: tuple[str, ...]
    documents: tuple[Ids, ...]
    targets: tuple[Ids, ...] | None = None
    """Of each token, what a task asks for after it, -100 for nothing; None: every token is followed by the
    next."""
    separator: str = ""
    """What stands between tokens where they are shown."""

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self.documents))


def read_file(path: str, tokenizer: Tokenizer, max_tokens: int) -> Reading:
    """The documents of a text file or of a file of records. Raises ValueError if it cannot be read as
    text."""
    if not Path(path).is_file():
        raise ValueError(f"no file at {path!r}: give a text file, or --data for a folder, glob or corpus")

    def documents() -> Iterable[tuple[str, Ids]]:
        for _, document in Source(path):
            yield document.name, encode_documents(tokenizer, [document])[0].tokens.astype(np.int64)

    return _reading(path, documents(), max_tokens)


def read_data(
    data: DataConfig, split: Split, tokenizer: Tokenizer, folder: Path, max_tokens: int, *, own: bool
) -> Reading:
    """Held-out documents of a corpus, or rows of tasks.

    Args:
        split: "train", "valid" or "test". tokenizer: the model's, which lies in `folder`.
        own: whether the model was trained on this very data, whose tokens are then in the cache.
    """
    name = f"{', '.join(data.specs)}, {split} split"
    if any(map(is_task, data.specs)):
        return _task_rows(data, split, tokenizer, max_tokens, name)
    corpus = load_corpus(data) if own else None
    if corpus is None or corpus.tokenizer.fingerprint != tokenizer.fingerprint:
        corpus = load_corpus(replace(data, tokenizer=str(folder)))
    store = getattr(corpus, split)
    return _reading(name, ((store.name(i), store[i]) for i in range(len(store))), max_tokens)


def _task_rows(data: DataConfig, split: Split, tokenizer: Tokenizer, max_tokens: int, name: str) -> Reading:
    """Rows of each SPEC in turn, of the task's own length or as long as all that is to be read."""
    if not all(map(is_task, data.specs)):
        raise ValueError(
            f"--data mixes synthetic tasks with text ({', '.join(data.specs)}): give one kind at a time"
        )
    members = [member for spec in data.specs for member in parse_task(spec, split)]
    numbered = isinstance(members[0].task, NumberedTask)
    for member in members:
        task = member.task
        if isinstance(task, NumberedTask) and task.vocab_size > tokenizer.vocab_size:
            raise ValueError(
                f"{', '.join(data.specs)} has {task.vocab_size} numbered tokens, the model's vocabulary "
                f"{tokenizer.vocab_size} entries: give a model that was trained on this task"
            )
    random, left = np.random.default_rng(SEED), max_tokens
    rows: list[Row] = []
    for member in itertools.cycle(members):
        row = member.task.row(random, member.length or max_tokens // len(members), tokenizer)
        if rows and len(row.tokens) > left:
            break
        rows.append(row)
        left -= len(row.tokens)
    return Reading(
        name=name,
        names=tuple(f"row {k + 1}" for k in range(len(rows))),
        documents=tuple(row.tokens for row in rows),
        targets=tuple(row.targets for row in rows),
        separator=" " if numbered else "",
    )


def _reading(name: str, documents: Iterable[tuple[str, Ids]], max_tokens: int) -> Reading:
    """The first documents, the last one cut at `max_tokens` in all."""
    names: list[str] = []
    kept: list[Ids] = []
    left = max_tokens
    for document_name, ids in documents:
        if left < 2:
            break
        if len(ids) > 1:
            names.append(document_name)
            kept.append(ids[:left])
            left -= len(kept[-1])
    if not kept:
        raise ValueError(f"there is no text in {name}: give another file, other data or another --split")
    return Reading(name=name, names=tuple(names), documents=tuple(kept))
