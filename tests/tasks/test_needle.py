"""Needles: how many, of what kind, where; the answer is said in the needles and nowhere else."""

import re
import uuid
from pathlib import Path

import numpy as np
import pytest

from rmat.data.tokenizer import byte_tokenizer
from rmat.tasks.haystack import NOISE_LINE
from rmat.tasks.needle import NEEDLE_TASKS, NeedleTask
from rmat.tasks.task import Example
from rmat.tasks.words import ADJECTIVES, NOUNS
from tests.makers.sources import TOKENIZERS, length_of, write_books

BYTES = byte_tokenizer()
NEEDLE = re.compile(r"\nOne of the special magic (numbers|uuids) for (\S+) is: (\S+)\.")
SINGLE = ("single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3")


@pytest.fixture
def books(tmp_path: Path) -> str:
    return str(write_books(tmp_path))


def example(name: str, books: str, seed: int = 0, length: int = 2500) -> Example:
    return NeedleTask(name, books).example(np.random.default_rng(seed), length, BYTES)


def text_of(made: Example) -> tuple[str, str]:
    """What stands before the question, and the question."""
    *pieces, question = made.pieces
    return "".join(pieces), question


def test_there_are_more_than_ten_thousand_keys() -> None:
    assert len(set(ADJECTIVES)) == len(ADJECTIVES) >= 100 and len(set(NOUNS)) == len(NOUNS) >= 100
    assert all(word.isalpha() and word.islower() for word in (*ADJECTIVES, *NOUNS))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("task", NEEDLE_TASKS)
def test_fills_the_length_closely_and_never_exceeds_it(task: str, name: str, books: str) -> None:
    tokenizer = TOKENIZERS[name]()
    for seed in range(8):
        for length in (900, 2001):
            made = NeedleTask(task, books).example(np.random.default_rng(seed), length, tokenizer)
            # A word of the needles' haystack may be a UUID of 37 bytes.
            assert length - 45 <= length_of(made, tokenizer) <= length


@pytest.mark.parametrize(
    ("task", "keys", "needles", "kind"),
    [
        ("single_1", 1, 1, "numbers"),
        ("single_2", 1, 1, "numbers"),
        ("single_3", 1, 1, "uuids"),
        ("multikey_1", 4, 4, "numbers"),
        ("multivalue", 1, 4, "numbers"),
        ("multiquery", 4, 4, "numbers"),
    ],
)
def test_needles_of_a_task(task: str, keys: int, needles: int, kind: str, books: str) -> None:
    for seed in range(30):
        made = example(task, books, seed)
        text, question = text_of(made)
        found = NEEDLE.findall(text)
        assert len(found) == needles and len({key for _, key, _ in found}) == keys
        assert {of for of, _, _ in found} == {kind} and len({value for *_, value in found}) == needles
        assert all(value.isdecimal() and len(value) == 7 for *_, value in found) or kind == "uuids"
        asked = [value for _, key, value in found if key in question]
        assert sorted(asked) == sorted(made.references)
        assert made.answer == " " + ", ".join(made.references)
        assert question.endswith((" is", " are")) and not any(value in question for value in asked)
        for _, key, value in found:
            assert text.count(value) == 1 and text.count(key) == (4 if task == "multivalue" else 1)


@pytest.mark.parametrize("task", ["multikey_2", "multikey_3"])
def test_haystack_of_needles_is_all_distractors_but_one(task: str, books: str) -> None:
    for seed in range(30):
        made = example(task, books, seed)
        text, question = text_of(made)
        found = NEEDLE.findall(text)
        assert len(NEEDLE.sub("", text)) < 100, "but for the last, which is cut, nothing else is there"
        right = [(key, value) for _, key, value in found if key in question]
        assert len(right) == 1 and (right[0][1],) == made.references and len(found) > 10
        assert text.count(right[0][0]) == text.count(right[0][1]) == 1
        if task == "multikey_3":
            assert all(uuid.UUID(word).version == 4 for _, *words in found for word in words)
        else:
            assert all(len(key.split("-")) == 2 for _, key, _ in found)


@pytest.mark.parametrize("task", ["multikey_1", "multikey_2", "multiquery"])
def test_keys_stay_unique_where_words_are_few(task: str, books: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmat.tasks.needle.ADJECTIVES", ("red", "big", "wet"))
    monkeypatch.setattr("rmat.tasks.needle.NOUNS", ("hat", "cup"))
    for seed in range(20):
        made = example(task, books, seed)
        text, question = text_of(made)
        asked = re.findall(r"\w+-\w+", question.partition("?")[0])
        assert len(set(asked)) == len(asked) == len(made.references)
        assert all(text.count(key) == 1 for key in asked)


def test_haystacks_are_noise_or_text(books: str) -> None:
    for task in ("single_1", "single_2", "tracking", "multivalue"):
        text, _ = text_of(example(task, books))
        assert ("Train" in text) == (task in ("single_2", "multivalue"))
        assert (NOISE_LINE[1] in text) == (task in ("single_1", "tracking"))
    other, _ = text_of(NeedleTask("single_2", books, "test").example(np.random.default_rng(0), 2500, BYTES))
    assert "Test" in other and "Train" not in other


@pytest.mark.parametrize("task", SINGLE)
def test_the_asked_needle_stands_anywhere_and_the_label_says_where(task: str, books: str) -> None:
    depths = []
    for seed in range(200):
        made = example(task, books, seed, 4000)
        text, _ = text_of(made)
        place = text.index(f"{made.references[0]}.") / len(text)
        assert abs(place - made.labels["depth"]) < 0.12
        depths.append(made.labels["depth"])
    counts, _ = np.histogram(depths, bins=4, range=(0, 1))
    assert counts.min() > 25


def test_needles_in_text_stand_at_distinct_ones_of_forty_depths(books: str) -> None:
    depths = {example("single_2", books, seed, 1000).labels["depth"] for seed in range(400)}
    assert len(depths) == 40 and min(depths) == 0.0 and max(depths) == 1.0


def test_answers_of_several_values_come_in_the_order_of_the_text(books: str) -> None:
    for seed in range(20):
        made = example("multivalue", books, seed)
        text, _ = text_of(made)
        places = [text.index(value) for value in made.references]
        assert places == sorted(places)


def test_answers_of_several_keys_come_in_the_order_of_the_question(books: str) -> None:
    orders = set()
    for seed in range(30):
        made = example("multiquery", books, seed)
        text, question = text_of(made)
        found = {value: key for _, key, value in NEEDLE.findall(text)}
        places = [question.index(found[value]) for value in made.references]
        assert places == sorted(places)
        orders.add(tuple(np.argsort([text.index(value) for value in made.references])))
    assert len(orders) > 8, "the question's order is not the text's"


def test_tracking_is_one_chain_of_four_hops_in_order(books: str) -> None:
    places = []
    for seed in range(30):
        made = example("tracking", books, seed)
        text, question = text_of(made)
        lines = re.findall(r"\nVAR ([A-Z]{5}) = (VAR [A-Z]{5}|\d{5})\.", text)
        assert len(lines) == 5 and tuple(name for name, _ in lines) == made.references
        assert len(set(made.references)) == 5
        value, *sources = (source for _, source in lines)
        assert sources == [f"VAR {name}" for name in made.references[:-1]]
        assert value in question and text.count(value) == 1
        assert not any(name in question for name in made.references)
        places += [text.index(f"VAR {name} =") / len(text) for name in made.references]
    counts, _ = np.histogram(places, bins=3, range=(0, 1))
    assert counts.min() > 0.22 * len(places)


@pytest.mark.parametrize("task", NEEDLE_TASKS)
def test_same_numbers_same_example(task: str, books: str) -> None:
    one, again, other = (example(task, books, seed) for seed in (1, 1, 2))
    assert (list(one.pieces), one.references) == (list(again.pieces), again.references)
    assert list(one.pieces) != list(other.pieces) and one.references != other.references
    row = NeedleTask(task, books).row(np.random.default_rng(1), 2500, BYTES)
    assert BYTES.decode(row.targets[row.targets >= 0].tolist()) == one.answer


def test_bad_settings_are_refused(books: str) -> None:
    with pytest.raises(ValueError, match="task='single' is not possible; choose one of single_1, single_2"):
        NeedleTask("single")
    with pytest.raises(ValueError, match=r"needle:multiquery does not fit 100 tokens .* least length is"):
        example("multiquery", books, 0, 100)


def test_texts_show_the_task(books: str) -> None:
    assert NEEDLE.search(next(iter(NeedleTask("single_2", books).texts())))
