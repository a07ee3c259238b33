"""Facts are stated where they should be, asked for as they should be, and leak nowhere."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rmat.data.documents import Part, Special, dialogue_document
from rmat.data.tokenizer import byte_tokenizer, train_bpe
from rmat.tasks.facts import LEAD_TURNS, FactsTask
from rmat.tasks.talk import ACKNOWLEDGED, CORRECTIONS, KINDS, Kind, Turn
from rmat.tasks.task import Example, encode_parts
from tests.makers.sources import write_books, write_dialogues

BYTES = byte_tokenizer()
TALKS = [text for _, text in FactsTask(questions="all").dialogue(np.random.default_rng(0), 400)]
TOKENIZERS = {"bytes": BYTES, "bpe": train_bpe(TALKS, 400)}

Stated = tuple[int, Kind, str]
"""Number of a turn, the kind of fact it states about the user, the value."""


_STATED = [
    (kind, re.compile(rf"(?:[\w ]+: )?{re.escape(before)}([\w ]+){re.escape(after)}", re.IGNORECASE))
    for kind in KINDS
    for before, after in (statement.split("{}") for statement in kind.statements)
]


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def turns_of(example: Example) -> list[Turn]:
    """(role, text) of a prompt's turns, which stand between their tokens; at its end the assistant is to
    speak."""
    parts: list[Part] = list(example.pieces)
    texts = [part for part in parts if isinstance(part, str)]
    roles = [part.name for part in parts[:-1:3] if isinstance(part, Special)]
    turns = list(zip(roles, texts, strict=True))
    assert parts == [*dialogue_document("", turns).parts, Special("assistant")]
    return turns


def statements(turns: list[Turn]) -> list[Stated]:
    """What the user states about themselves, corrections too."""
    return [
        (number, kind, found[1])
        for number, (role, text) in enumerate(turns)
        for kind, known in _STATED
        if role == "user" and (found := known.fullmatch(text))
    ]


def questions(turns: list[Turn]) -> list[tuple[int, Kind]]:
    return [(n, kind) for n, (_, text) in enumerate(turns) for kind in KINDS if text in kind.questions]


def examples(task: FactsTask, count: int, length: int = 2000) -> list[Example]:
    return [task.example(random(seed), length, BYTES) for seed in range(count)]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [150, 333, 2000])
def test_fills_the_length_closely_and_never_exceeds_it(name: str, length: int, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]
    task = FactsTask(filler=("talk", "noise", str(write_books(tmp_path))), changes=0.3, questions="all")
    for seed in range(30):
        made = task.example(random(seed), length, tokenizer)
        tokens = 2 + len(list(encode_parts(tokenizer, (*made.pieces, made.answer))))
        assert length - 20 <= tokens <= length


@pytest.mark.parametrize("changes", [0.0, 0.5])
def test_the_last_question_is_about_a_stated_fact_and_the_newest_value_is_right(changes: float) -> None:
    for made in examples(FactsTask(changes=changes), 100):
        turns = turns_of(made)
        stated = statements(turns)
        (last,) = questions(turns)
        assert last[0] == len(turns) - 1 and last[1].name == made.labels["kind"]
        values = [value for _, kind, value in stated if kind is last[1]]
        assert made.references == (values[-1],) and len(values) == 1 + made.labels["changed"]
        assert made.answer == last[1].answer.format(values[-1])
        assert all(turns[number + 1][1] in ACKNOWLEDGED for number, _, _ in stated)
        assert all(turns[number + 1][0] == "assistant" for number, _, _ in stated)
        assert len({kind.name for _, kind, _ in stated}) == made.labels["facts"]
        assert len({value for _, _, value in stated}) == len(stated), "no value stands for two facts"


def test_one_to_four_facts_of_any_kind_anywhere() -> None:
    made = examples(FactsTask(), 400)
    counts = Counter(one.labels["facts"] for one in made)
    assert counts.keys() == {1, 2, 3, 4} and min(counts.values()) > 70
    kinds = Counter(one.labels["kind"] for one in made)
    assert len(kinds) == len(KINDS) and max(kinds.values()) < 2.5 * 400 / len(KINDS)
    places, first = [], []
    for one in made:
        turns = turns_of(one)
        stated = [kind.name == one.labels["kind"] for _, kind, _ in statements(turns)]
        places.append(statements(turns)[stated.index(True)][0] / len(turns))
        if len(stated) > 1:
            first.append(stated[0])
    assert 0.28 < np.mean(first) < 0.44, (
        "the fact asked for is stated first as often as any: (1/2 + 1/3 + 1/4) / 3"
    )
    shares, _ = np.histogram(places, bins=4, range=(0, 1))
    assert shares.min() > 70


def test_values_occur_in_their_statements_alone(tmp_path: Path) -> None:
    """Also where the filler is full of them: 41 colors in talk of 200 turns."""
    for seed in range(60):
        made = FactsTask(facts=8).example(random(seed), 8000, BYTES)
        turns = turns_of(made)
        for number, _, value in statements(turns):
            elsewhere = " ".join(text for n, (_, text) in enumerate(turns) if n != number)
            assert not re.search(rf"\b{value}\b", elsewhere, re.IGNORECASE)


def test_filler_that_tells_of_the_user_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    path.write_text("I live in Nowhere. My dog is called Nobody. We talk of much else. " * 400)
    task = FactsTask(filler=(str(path),))
    for seed in range(40):
        made = task.after(random(seed), 60)
        turns = turns_of(made)
        kinds = {kind.name for _, kind, value in statements(turns) if value not in ("Nowhere", "Nobody")}
        text = " ".join(text for _, text in turns)
        assert ("Nowhere" in text) == ("home" not in kinds) and ("Nobody" in text) == ("dog" not in kinds)


@pytest.mark.parametrize("count", [0, 1, 10, 101])
def test_the_distance_is_so_many_turns(count: int) -> None:
    leads = set()
    for seed in range(60):
        turns = turns_of(FactsTask().after(random(seed), count))
        stated = [number for number, _, _ in statements(turns)]
        assert stated == list(range(stated[0], stated[0] + 2 * len(stated), 2)), "one after the other"
        assert len(turns) - 1 - (stated[-1] + 2) == count
        leads.add(stated[0])
    assert leads == set(range(LEAD_TURNS))


def test_corrections_stand_between_the_facts_and_the_question() -> None:
    changed, places = [], []
    for seed in range(200):
        made = FactsTask(facts=1, changes=0.25).after(random(seed), 100)
        stated = statements(turns_of(made))
        changed.append(made.labels["changed"])
        assert len(stated) == 1 + changed[-1]
        if changed[-1]:
            told = turns_of(made)[stated[1][0]][1]
            assert told.startswith(CORRECTIONS)
            places.append(stated[1][0] - stated[0][0])
    assert 0.15 < np.mean(changed) < 0.35
    assert min(places) < 25 and max(places) > 75, "anywhere in the filler"


def test_all_questions_ask_for_each_fact_once_behind_its_newest_statement() -> None:
    for made in examples(FactsTask(questions="all", changes=0.3), 60):
        turns = turns_of(made)
        newest = {kind.name: (number, value) for number, kind, value in statements(turns)}
        asked = questions(turns)
        assert Counter(kind.name for _, kind in asked) == dict.fromkeys(newest, 1)
        for number, kind in asked[:-1]:
            assert newest[kind.name][0] < number
            assert turns[number + 1] == ("assistant", kind.answer.format(newest[kind.name][1]))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("asked", ["last", "all"])
def test_a_row_is_the_example_and_scores_the_answers_alone(name: str, asked: str) -> None:
    tokenizer = TOKENIZERS[name]
    task = FactsTask(questions=asked)
    for seed in range(20):
        made, row = (make(random(seed), 400, tokenizer) for make in (task.example, task.row))
        ids = list(encode_parts(tokenizer, (Special("document"), *made.pieces, made.answer)))
        assert row.tokens.tolist() == ids and row.tokens.dtype == row.targets.dtype == np.int64
        turns = turns_of(made)
        answers = [turns[number + 1][1] for number, _ in questions(turns)[:-1]] + [made.answer]
        tails = [
            tail for answer in answers for tail in encode_parts(tokenizer, (answer, Special("turn_end")))
        ]
        assert row.targets[row.targets >= 0].tolist() == tails
        places = (row.targets >= 0).nonzero()[0]
        inner = places[places + 1 < len(ids)]
        assert (row.targets[inner] == row.tokens[inner + 1]).all(), "each target is the token that follows"


def test_facts_that_do_not_fit_are_left_out() -> None:
    task = FactsTask(facts=8)
    many, few = (
        Counter(task.example(random(seed), length, BYTES).labels["facts"] for seed in range(60))
        for length in (4000, 200)
    )
    assert max(many) == 8 and max(few) < 4
    with pytest.raises(
        ValueError, match=r"facts does not fit 60 tokens with this tokenizer; the least length is \d+"
    ):
        task.row(random(0), 60, BYTES)


def test_filler_comes_from_its_split_and_sources_are_drawn_evenly(tmp_path: Path) -> None:
    talks = str(write_dialogues(tmp_path / "talks"))
    made = examples(FactsTask(filler=("talk", talks), split="valid"), 200, 600)
    assert 70 < sum(one.labels["filler"] == talks for one in made) < 130
    for one in made:
        text = " ".join(text for _, text in turns_of(one))
        assert ("valid 0" in text or "valid 1" in text or "valid 2" in text) == (
            one.labels["filler"] == talks
        )
        assert not re.search(r"(train|test) \d", text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_same_numbers_same_example(name: str) -> None:
    task = FactsTask(changes=0.5, questions="all")
    one, again, other = (task.example(random(seed), 900, TOKENIZERS[name]) for seed in (1, 1, 2))
    assert list(one.pieces) == list(again.pieces) != list(other.pieces)
    assert list(one.pieces) == list(one.pieces), "a prompt can be read again"
    far = [list(task.after(random(seed), 30).pieces) for seed in (1, 1, 2)]
    assert far[0] == far[1] != far[2]


def test_a_dialogue_is_whole_and_holds_every_question() -> None:
    for seed in range(40):
        turns = FactsTask(questions="all").dialogue(random(seed), 50)
        asked = questions(turns)
        stated = statements(turns)
        assert len(asked) == len(stated) and asked[-1][0] == len(turns) - 2
        assert len(turns) == 50 + 2 * len(stated) + 2 * len(asked)
        kind = asked[-1][1]
        assert turns[-1] == ("assistant", kind.answer.format({k.name: v for _, k, v in stated}[kind.name]))


def test_texts_for_a_tokenizer_have_every_kind() -> None:
    text = "\n".join(text for text, _ in zip(FactsTask().texts(), range(300), strict=False))
    assert all(kind.statements[0].split("{}")[0] in text for kind in KINDS)
    assert "<|" not in text and "Your dog is called" in text


def test_bad_settings_are_refused() -> None:
    for settings, sentence in (
        ({"filler": "talk"}, r"filler must be one or more SPECs, got 'talk'; write \('talk',\)"),
        ({"facts": 0}, "facts must lie in 1..16, got 0"),
        ({"facts": 17}, "facts must lie in 1..16, got 17"),
        ({"changes": 1.5}, r"changes must lie in 0..1, got 1.5; 0 corrects no fact"),
        ({"questions": "some"}, "questions='some' is not possible; choose last or all"),
    ):
        with pytest.raises(ValueError, match=sentence):
            FactsTask(**settings)
    with pytest.raises(ValueError, match="turns=-1 is not possible: give 0 or more"):
        FactsTask().after(random(0), -1)
    with pytest.raises(ValueError, match="nowhere"):
        list(FactsTask(filler=("nowhere",)).after(random(0), 3).pieces)
