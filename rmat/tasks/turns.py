"""Endless filler for dialogues: turns of other dialogues in order, or sentences of text said in turns; and
passages woven into it, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from rmat.data.documents import ROLES, Document, Special, Turn
from rmat.data.sources import split_documents
from rmat.data.tokenizer import Tokenizer
from rmat.tasks.haystack import (
    HELD_CHARACTERS,
    LONGEST_SENTENCE,
    NOISE,
    Filler,
    Split,
    count_tokens,
    fill,
    load_filler,
)
from rmat.tasks.talk import TALK, Exchange, Talk


class TurnFiller(Protocol):
    """A source of turns."""

    def exchanges(self, random: np.random.Generator) -> Iterator[Exchange]:
        """Exchanges without end. The same numbers make the same ones."""
        ...


class Dialogues:
    """A random dialogue from a random turn on, then another one; turns of over `LONGEST_SENTENCE` characters
    are left out.

    Args:
        documents: dialogues, held as they are; those without turns are left out.
        name: what they are, for the error.

    Raises ValueError if no dialogue is left.
    """

    def __init__(self, documents: Iterable[Document], name: str) -> None:
        self._dialogues: list[list[Turn]] = []
        held = 0
        for document in documents:
            turns = [turn for turn in _turns(document) if len(turn[1]) <= LONGEST_SENTENCE]
            if turns:
                self._dialogues.append(turns)
                held += sum(len(text) for _, text in turns)
            if held >= HELD_CHARACTERS:
                break
        if not self._dialogues:
            raise ValueError(f"no dialogue in {name}; give a SPEC with records that have turns")

    def exchanges(self, random: np.random.Generator) -> Iterator[Exchange]:
        """See `TurnFiller`."""
        while True:
            turns = self._dialogues[random.integers(len(self._dialogues))]
            place = int(random.integers(len(turns)))
            while place < len(turns):
                roles = [role for role, _ in turns[place : place + 2]]
                size = 2 if roles == ["user", "assistant"] else 1
                yield tuple(turns[place : place + size])
                place += size


class Said:
    """Sentences of a filler, said by the user and the assistant in turns."""

    def __init__(self, filler: Filler) -> None:
        self._filler = filler

    def exchanges(self, random: np.random.Generator) -> Iterator[Exchange]:
        """See `TurnFiller`."""
        sentences = self._filler.sentences(random)
        for said, replied in zip(sentences, sentences, strict=False):
            yield ("user", said.strip()), ("assistant", replied.strip())


@lru_cache(maxsize=8)
def load_turns(spec: str, split: Split) -> TurnFiller:
    """The filler of a SPEC: `talk`, `noise`, the dialogues it has in `split`, or if it has none the
    sentences.

    It is read once and kept. Raises ValueError for a SPEC that cannot be read or has nothing in the split.
    """
    if spec == TALK:
        return Talk()
    if spec != NOISE and any(_is_dialogue(document) for _, document in split_documents(spec)):
        chosen = (document for name, document in split_documents(spec) if name == split)
        return Dialogues(chosen, f"the {split} part of {spec!r}")
    return Said(load_filler(spec, split))


@dataclass(frozen=True)
class Passage:
    """Turns that stand together, and whether the last one is an answer to be scored."""

    turns: Exchange
    scored: bool = False


class InTokens:
    """Filler measured in tokens; a text is cut behind a word."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def size(self, exchange: Exchange) -> int:
        """Tokens of all turns, with those that open and close them."""
        return count_tokens(self._tokenizer, *(text for _, text in exchange)) + 2 * len(exchange)

    def __call__(self, exchange: Exchange, room: int) -> tuple[Exchange, int]:
        """What of it fits, and its tokens."""
        kept: list[Turn] = []
        left = room
        for role, text in exchange:
            size = self.size(((role, text),))
            if size > left:
                cut = next(fill((text,), left - 2, self._tokenizer), None)
                if cut:
                    kept.append((role, cut[0]))
                    left -= cut[1] + 2
                break
            kept.append((role, text))
            left -= size
        return tuple(kept), room - left


def in_turns(exchange: Exchange, room: int) -> tuple[Exchange, int]:
    """Filler measured in turns: the first so many."""
    return exchange[:room], min(room, len(exchange))


def weave(
    scenes: Sequence[tuple[float, Passage]],
    exchanges: Iterable[Exchange],
    budget: int,
    fit: Callable[[Exchange, int], tuple[Exchange, int]],
) -> Iterator[Passage]:
    """Filler as long as `budget`, in whatever `fit` measures, with scenes in it at their shares, which
    rise."""
    used = number = 0
    for exchange in exchanges:
        kept, size = fit(exchange, budget - used)
        while number < len(scenes) and scenes[number][0] * budget < used + size / 2:
            yield scenes[number][1]
            number += 1
        if kept:
            yield Passage(kept)
        used += size
        if kept != exchange:
            break
    yield from (scene for _, scene in scenes[number:])


def _is_dialogue(document: Document) -> bool:
    return next(_turns(document), None) is not None


def _turns(document: Document) -> Iterator[Turn]:
    """(role, text) of what stands behind a role's token, if it is text."""
    for before, part in zip(document.parts, document.parts[1:], strict=False):
        if isinstance(before, Special) and before.name in ROLES and isinstance(part, str) and part.strip():
            yield before.name, part
