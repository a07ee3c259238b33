"""`memory="shuffled"`: every row reads the bank of another document, and nothing that it hears comes from
itself.

Under "shuffled" row b reads the bank of row b - 1, the first row that of the last. Rows in a ring would hear
of
themselves: each layer hands on what its bank has heard, so that content goes one row further from layer to
layer (and from segment to segment where blocks write from their output). The ring is therefore cut: in front
of the rows that are scored stand a row that never reads anything, whose bank stays empty, and behind it a
donor, a document of which no copy stands below. The first scored row reads the donor's bank, each other one
that of the row before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from rmat.model.language_model import MemoryMode

FRONT = 2
"""Rows in front of those that are scored: the one that reads nothing, and the donor."""

T = TypeVar("T")


def front_rows(memory: MemoryMode) -> int:
    """Rows that stand in front of the scored ones."""
    return FRONT if memory == "shuffled" else 0


def behind(donor: Iterable[int] | None, rows: Sequence[Iterable[int]]) -> list[Iterable[int]]:
    """The rows of a call: `rows` alone, or behind a donor and the row that reads nothing."""
    return list(rows) if donor is None else [(), donor, *rows]


def groups(items: Sequence[T], count: int, memory: MemoryMode, what: str) -> list[tuple[T | None, list[T]]]:
    """`items` in `count` groups of equal size up to one, in order; with "shuffled" at least two of them, each
    with a donor from another group.

    Raises ValueError if "shuffled" is asked for with one item; `what` names the items.
    """
    if memory != "shuffled":
        return [
            (None, [items[place] for place in part]) for part in np.array_split(np.arange(len(items)), count)
        ]
    require_another(len(items), what)
    found = [
        [items[place] for place in part]
        for part in np.array_split(np.arange(len(items)), min(max(2, count), len(items)))
    ]
    return [(found[(number + 1) % len(found)][0], group) for number, group in enumerate(found)]


def require_another(count: int, what: str) -> None:
    """Raise ValueError if there is no other document whose bank could be read; `what` names the documents."""
    if count < 2:
        raise ValueError(
            f'memory="shuffled" needs at least two {what}: a single one has no other to read from'
        )
