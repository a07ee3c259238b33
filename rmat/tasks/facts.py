"""Facts that a user states in a long dialogue and asks for much later.

    <|user|>My dog is called Rex.<|turn_end|><|assistant|>Noted.<|turn_end|> ... filler, turn by turn ...
    <|user|>What is my dog called?<|turn_end|><|assistant|>Your dog is called Rex.<|turn_end|>

What must be kept looks like what must not: the filler `talk` is full of facts of the same kinds about other
people.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import PurePath
from typing import Literal

import numpy as np

from rmat.data.documents import Part, Special, Turn, dialogue_document
from rmat.data.lanes import IGNORED
from rmat.data.tokenizer import Tokenizer
from rmat.tasks.haystack import Replay, Split
from rmat.tasks.talk import ACKNOWLEDGED, CORRECTIONS, KINDS, TALK, Exchange, Kind, pick
from rmat.tasks.task import (
    Example,
    Member,
    QuestionCell,
    Row,
    TextQuestions,
    TextTask,
    draw_examples,
    encode_parts,
    last_or_all,
    number,
    option,
    whole,
)
from rmat.tasks.turns import InTokens, Passage, in_turns, load_turns, weave

LEAD_TURNS = 10
"""Where the distance is given, fewer turns than this stand before the first fact, so that it has no fixed
place."""

TRIES = 100
"""Draws of which one must fit a row."""

SAMPLED_DIALOGUES, SAMPLED_TURNS = 3000, 10
"""What a tokenizer is trained on."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A fact of one dialogue."""

    kind: Kind
    values: tuple[str, ...]
    """Its value; where it is corrected later, the old and the new one."""
    stated: tuple[Exchange, ...]
    """The statement of each value and what the assistant says to it."""
    asked: Exchange
    """The question and the right answer."""
    places: tuple[float, ...]
    """Share of the filler before each statement, and if it is asked for on the way before the question."""


Drawn = tuple[str, list[Fact], int]
"""SPEC of the filler, facts, and the seed of the filler. The last question is about the first fact."""


@dataclass(frozen=True, kw_only=True)
class FactsTask(TextTask):
    """The task's settings. Raises ValueError naming setting, value and remedy."""

    filler: tuple[str, ...] = (TALK,)
    """`talk`, `noise` or SPECs of dialogues or text; each dialogue draws one of them."""

    split: Split = "train"
    """The part of the SPECs' documents that is filler."""

    facts: int = 4
    """Most facts of a dialogue; 1 to so many are drawn, each with a place of its own."""

    changes: float = 0.0
    """Share of the facts that are corrected later; the newest value is the right one."""

    questions: Literal["last", "all"] = "last"
    """Whether the facts that the last question does not ask for are asked for on the way, at any place behind
    them."""

    def __post_init__(self) -> None:
        if isinstance(self.filler, str) or not self.filler:
            raise ValueError(f"facts: filler must be one or more SPECs, got {self.filler!r}; write ('talk',)")
        if not 1 <= self.facts <= len(KINDS):
            raise ValueError(f"facts: facts must lie in 1..{len(KINDS)}, got {self.facts}")
        if not 0.0 <= self.changes <= 1.0:
            raise ValueError(f"facts: changes must lie in 0..1, got {self.changes}; 0 corrects no fact")
        if self.questions not in ("last", "all"):
            raise ValueError(f"facts: questions={self.questions!r} is not possible; choose last or all")

    def example(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Example:
        """See `TextTask.example`; facts that do not fit are left out, but for one.

        Labels: task, kind, facts (their number), changed, filler.
        """
        (spec, facts, seed), budget = self._draw_fitting(random, length, tokenizer)
        fit = InTokens(tokenizer)
        return _example(
            spec, facts, lambda: weave(self._scenes(facts), self._filler(spec, facts, seed), budget, fit)
        )

    def row(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Row:
        """The example as one row; every answer and its end token are scored."""
        (spec, facts, seed), budget = self._draw_fitting(random, length, tokenizer)
        woven = weave(self._scenes(facts), self._filler(spec, facts, seed), budget, InTokens(tokenizer))
        tokens, scored = [tokenizer.special_id("document")], [False]
        for passage in chain(woven, (Passage(facts[0].asked, scored=True),)):
            *parts, answer, end = dialogue_document("", passage.turns).parts
            for some, counts in ((parts, False), ((answer, end), passage.scored)):
                ids = list(encode_parts(tokenizer, some))
                tokens += ids
                scored += [counts] * len(ids)
        targets = np.where(scored[1:], tokens[1:], IGNORED)
        return Row(np.array(tokens[:-1], dtype=np.int64), targets.astype(np.int64))

    def after(self, random: np.random.Generator, turns: int) -> Example:
        """The facts one after the other, so many turns of filler, the question; corrections stand in the
        filler.

        Fewer than `LEAD_TURNS` turns of filler come first. Labels as of `example`. Raises ValueError for
        negative `turns`.
        """
        if turns < 0:
            raise ValueError(f"turns={turns} is not possible: give 0 or more")
        spec, facts, seed = self._draw(random)
        lead = int(random.integers(LEAD_TURNS))
        later = [
            (place, Passage(stated))
            for fact in facts
            for place, stated in zip(fact.places[1:], fact.stated[1:], strict=False)
        ]

        def passages() -> Iterator[Passage]:
            filler = self._filler(spec, facts, seed)
            yield from weave((), filler, lead, in_turns)
            yield from (Passage(fact.stated[0]) for fact in facts)
            yield from weave(sorted(later, key=itemgetter(0)), filler, turns, in_turns)

        return _example(spec, facts, passages)

    def dialogue(self, random: np.random.Generator, turns: int) -> list[Turn]:
        """(role, text) of every turn of a dialogue with `turns` turns of filler, the last question and its
        answer too."""
        spec, facts, seed = self._draw(random)
        woven = weave(self._scenes(facts), self._filler(spec, facts, seed), turns, in_turns)
        return [turn for passage in woven for turn in passage.turns] + list(facts[0].asked)

    def texts(self) -> Iterator[str]:
        """See `TextTask.texts`; the dialogues are short, so that every value is common."""
        for seed in range(SAMPLED_DIALOGUES):
            turns = self.dialogue(np.random.default_rng(seed), SAMPLED_TURNS)
            yield "\n".join(text for _, text in turns)

    def _draw(self, random: np.random.Generator) -> Drawn:
        """One to `facts` facts of different kinds."""
        spec = pick(random, self.filler)
        kinds = random.permutation(len(KINDS))[: random.integers(1, self.facts + 1)]
        facts: list[Fact] = []
        taken: set[str] = set()
        for index in kinds:
            on_the_way = self.questions == "all" and bool(facts)
            facts.append(_fact(random, KINDS[index], random.random() < self.changes, on_the_way, taken))
        return spec, facts, int(random.integers(2**63))

    def _scenes(self, facts: Sequence[Fact]) -> list[tuple[float, Passage]]:
        """(share of the filler before it, passage) of all that is said of the facts before the last
        question."""
        scenes = [
            (place, passage)
            for fact in facts
            for place, passage in zip(
                fact.places, (*map(Passage, fact.stated), Passage(fact.asked, scored=True)), strict=False
            )
        ]
        return sorted(scenes, key=itemgetter(0))

    def _draw_fitting(
        self, random: np.random.Generator, length: int, tokenizer: Tokenizer
    ) -> tuple[Drawn, int]:
        """A draw that fits, less facts that do not, and the tokens left for filler. Where the first fact
        alone is too long, another draw is tried."""
        fit = InTokens(tokenizer)
        shortest = []
        for _ in range(TRIES):
            spec, facts, seed = self._draw(random)
            while facts:
                said = [facts[0].asked, *(passage.turns for _, passage in self._scenes(facts))]
                least = 1 + sum(map(fit.size, said))
                if least <= length:
                    return (spec, facts, seed), length - least
                facts = facts[:-1]
            shortest.append(least)
        raise ValueError(
            f"facts does not fit {length} tokens with this tokenizer; the least length is {min(shortest)}"
        )

    def _filler(self, spec: str, facts: Sequence[Fact], seed: int) -> Iterator[Exchange]:
        """Filler that holds no value of the facts and states nothing of their kinds."""
        known = [value for fact in facts for value in fact.values]
        known += [
            statement.partition("{}")[0].strip() for fact in facts for statement in fact.kind.statements
        ]
        mentioned = re.compile(rf"\b(?:{'|'.join(map(re.escape, known))})\b", re.IGNORECASE)
        exchanges = load_turns(spec, self.split).exchanges(np.random.default_rng(seed))
        return (exchange for exchange in exchanges if not any(mentioned.search(text) for _, text in exchange))


def _fact(random: np.random.Generator, kind: Kind, changed: bool, on_the_way: bool, taken: set[str]) -> Fact:
    """A fact with values that are not in `taken`, to which they are added."""
    values: list[str] = []
    while len(values) < 1 + changed:
        value = kind.draw(random)
        if value not in taken:
            values.append(value)
            taken.add(value)
    texts = [pick(random, kind.statements).format(values[0])]
    texts += [pick(random, CORRECTIONS) + _lowered(kind.statements[0].format(new)) for new in values[1:]]
    return Fact(
        kind=kind,
        values=tuple(values),
        stated=tuple((("user", text), ("assistant", pick(random, ACKNOWLEDGED))) for text in texts),
        asked=(("user", pick(random, kind.questions)), ("assistant", kind.answer.format(values[-1]))),
        places=tuple(sorted(random.random(len(values) + on_the_way).tolist())),
    )


def _example(spec: str, facts: Sequence[Fact], passages: Callable[[], Iterator[Passage]]) -> Example:
    """The example of a dialogue whose last question is about the first fact."""
    first = facts[0]
    question, (role, answer) = first.asked

    def pieces() -> Iterator[Part]:
        for passage in chain(passages(), (Passage((question,)),)):
            yield from dialogue_document("", passage.turns).parts
        yield Special(role)

    return Example(
        pieces=Replay(pieces),
        answer=answer,
        references=(first.values[-1],),
        labels={
            "task": "facts",
            "kind": first.kind.name,
            "facts": len(facts),
            "changed": len(first.values) > 1,
            "filler": spec,
        },
    )


def _lowered(statement: str) -> str:
    """The statement as it stands behind a colon."""
    return statement if statement.startswith("I ") else statement[0].lower() + statement[1:]


def contains_word(output: str, references: Sequence[str]) -> float:
    """1 if one of the references stands in the output as a word or words of its own, whatever their case."""
    return float(
        any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", output, re.IGNORECASE) for one in references)
    )


def members(
    *, split: Split, filler: str = "talk", facts: str = "4", changes: str = "0", questions: str = "last"
) -> list[Member]:
    """See `rmat.tasks.registry`."""
    task = FactsTask(
        filler=tuple(filler.split("+")),
        split=split,
        facts=whole("facts", facts, 1),
        changes=number("changes", changes),
        questions=last_or_all(questions),
    )
    return [Member(task=task)]


@dataclass(frozen=True, kw_only=True)
class FactsQuestions(TextQuestions):
    """Facts that a user states in a dialogue and asks for many turns later, for models trained with --data
    facts or on dialogues. Right is an answer that has the value in it."""

    turns: tuple[int, ...] = option((10, 100, 1000), "turns between facts and question", metavar="N")
    filler: tuple[str, ...] = option(
        (TALK,), "what is said in between: talk, noise, dialogues or text", metavar="SPEC"
    )
    facts: int = option(4, "most facts stated", metavar="N")
    changes: float = option(0.0, "share of the facts that are corrected on the way", metavar="SHARE")
    split: Split = "test"

    def cells(self, tokenizer: Tokenizer, samples: int, seed: int) -> Iterator[QuestionCell]:
        """By filler and turns."""
        for filler in self.filler:
            task = FactsTask(filler=(filler,), split=self.split, facts=self.facts, changes=self.changes)
            for turns in self.turns:
                examples = draw_examples(partial(task.after, turns=turns), samples, seed)
                name = f"facts in {PurePath(filler).name}"
                yield QuestionCell(task=name, length=None, depth=None, turns=turns, examples=examples)

    def score(self, output: str, example: Example) -> float:
        """1 for an answer with the newest value in it."""
        return contains_word(output, example.references)

    @property
    def max_new_tokens(self) -> int:
        """Enough for a sentence of bytes."""
        return 48


QUESTIONS = FactsQuestions
