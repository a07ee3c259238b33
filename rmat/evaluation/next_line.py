"""What is asked in the completion of lines: lines of held-out files, and the training files around them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from rmat.data.repository import nearest_last, within
from rmat.data.store import TokenStore
from rmat.data.tokenizer import Tokenizer
from rmat.generation.completion import File

LEAST_PREFIX = 200
"""A line is asked for only behind so many characters of its file."""

COMMENTS = ("#", "//")
"""What a line of comment begins with."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line that is asked for. The file goes `...prefix, target, suffix...`."""

    number: int
    """Counted from 1."""
    prefix: str
    """What stands before the line, up to a limit of bytes and from the start of a line."""
    target: str
    """The line without its end."""
    suffix: str
    """What stands behind the line, from its end on, up to a limit of bytes."""


@dataclass(frozen=True, kw_only=True)
class CodeFile:
    """A held-out file, the lines of it that are asked for, and training files of its folder."""

    name: str
    lines: tuple[Line, ...]
    context: tuple[File, ...]
    """The nearest last."""


def choose_files(
    train: TokenStore,
    test: TokenStore,
    tokenizer: Tokenizer,
    *,
    samples: int,
    per_file: int = 8,
    max_prompt_bytes: int = 2048,
    max_context_bytes: int = 2**16,
    seed: int = 0,
) -> list[CodeFile]:
    """Lines to ask for: at most `per_file` of each file of `test`, spread over it, until there are `samples`.

    Only files of code count, which open with their name, and whose text is not that of a training file under
    another name. Their context are files of the same folder in `train`, chosen and ordered as `rmat complete
    --context` does, by what the file imports before the first line that is asked for.

    Args:
        train, test: splits of one corpus.
        tokenizer: the one that made the tokens.
        samples: lines to choose; fewer where the files have no more.
        per_file: most lines of a file.
        max_prompt_bytes: most bytes of a line's prefix, and of its suffix.
        max_context_bytes: most bytes of a file's context.
        seed: decides which files and lines.

    Raises ValueError if a count is out of range or no file has a line to ask for.
    """
    for name, value in (("samples", samples), ("per_file", per_file), ("max_prompt_bytes", max_prompt_bytes)):
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
    if max_context_bytes < 0:
        raise ValueError(f"max_context_bytes={max_context_bytes}: give 0 or more")
    random = np.random.default_rng(seed)
    folders: dict[str, list[int]] = defaultdict(list)
    for index in _code(train):
        folders[_folder(train.name(index))].append(index)
    found: list[CodeFile] = []
    left = samples
    for index in random.permutation(np.array(_unknown(test, train), dtype=np.int64)).tolist():
        lines = choose_lines(
            text_of(test, index, tokenizer),
            min(per_file, left),
            max_prompt_bytes=max_prompt_bytes,
            random=random,
        )
        if not lines:
            continue
        name = test.name(index)
        others = {train.name(other): other for other in folders[_folder(name)] if train.name(other) != name}
        order = nearest_last(list(others), name, lines[0].prefix)
        kept = within([train.document_bytes(others[other]) for other in order], max_context_bytes)
        context = tuple((order[place], text_of(train, others[order[place]], tokenizer)) for place in kept)
        found.append(CodeFile(name=name, lines=lines, context=context))
        left -= len(lines)
        if not left:
            break
    if not found:
        raise ValueError(
            "no held-out file of code has a line to ask for: give data with more files, such as python-stdlib"
        )
    return found


def choose_lines(
    text: str, count: int, *, max_prompt_bytes: int, random: np.random.Generator
) -> tuple[Line, ...]:
    """At most `count` lines of a file, one at random from each of as many equal parts.

    Blank lines and comments are not asked for, nor is a line with little before it or nothing behind it.
    """
    lines = text.split("\n")
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)]).tolist()
    last = len(text.rstrip())
    possible = [
        place
        for place, line in enumerate(lines)
        if line.strip()
        and not line.lstrip().startswith(COMMENTS)
        and starts[place] >= LEAST_PREFIX
        and starts[place + 1] < last
    ]
    parts = np.array_split(np.array(possible, dtype=np.int64), count)
    chosen = []
    for place in (int(random.choice(part)) for part in parts if part.size):
        target = lines[place].removesuffix("\r")
        chosen.append(
            Line(
                number=place + 1,
                prefix=_end_of(text[: starts[place]], max_prompt_bytes),
                target=target,
                suffix=_start_of(text[starts[place] + len(target) :], max_prompt_bytes),
            )
        )
    return tuple(chosen)


def text_of(store: TokenStore, index: int, tokenizer: Tokenizer) -> str:
    """The text of a document without its header."""
    return tokenizer.decode(store[index][store.document_header(index) :].tolist())


def _code(store: TokenStore) -> list[int]:
    """Documents that open with a file name."""
    return [index for index in range(len(store)) if store.document_header(index) > 1]


def _unknown(test: TokenStore, train: TokenStore) -> list[int]:
    """Documents of code in `test` whose content no document of `train` has."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(train.lengths.tolist()):
        by_length[length - train.document_header(index)].append(index)
    found = []
    for index in _code(test):
        content = test.view(index)[test.document_header(index) :]
        same = by_length[len(content)]
        if not any(np.array_equal(content, train.view(one)[train.document_header(one) :]) for one in same):
            found.append(index)
    return found


def _folder(name: str) -> str:
    return PurePosixPath(name).parent.as_posix()


def _end_of(text: str, most: int) -> str:
    """The last whole lines of `text` that are at most so many bytes together."""
    raw = text.encode()
    return text if len(raw) <= most else raw[raw.find(b"\n", len(raw) - most - 1) + 1 :].decode()


def _start_of(text: str, most: int) -> str:
    """The first whole lines of `text` that are at most so many bytes together."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: raw.rfind(b"\n", 0, most) + 1].decode()
