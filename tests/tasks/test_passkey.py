"""The pass key stands once, where it should, and rows fit."""

import re
from pathlib import Path

import numpy as np
import pytest

from rmat.data.tokenizer import byte_tokenizer
from rmat.tasks.passkey import NEAR, QUESTION, PasskeyTask
from rmat.tasks.task import Example
from tests.makers.sources import TOKENIZERS, length_of, write_books

BYTES = byte_tokenizer()


def example(task: PasskeyTask, seed: int, length: int = 400) -> Example:
    return task.example(np.random.default_rng(seed), length, BYTES)


def needle_of(text: str) -> re.Match[str]:
    found = list(re.finditer(r"\nThe pass key is (\d+)\. Remember it\. (\d+) is the pass key\.", text))
    assert len(found) == 1 and found[0][1] == found[0][2]
    return found[0]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [160, 333, 1000, 5000])
def test_fills_the_length_closely_and_never_exceeds_it(name: str, length: int, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    task = PasskeyTask(filler=("noise", str(write_books(tmp_path))))
    for seed in range(20):
        made = task.example(np.random.default_rng(seed), length, tokenizer)
        assert length - 20 <= length_of(made, tokenizer) <= length


def test_number_occurs_in_the_needle_alone() -> None:
    # With two digits the filler below would have nearly every number.
    for seed in range(200):
        made = example(PasskeyTask(digits=2), seed)
        text = "".join(made.pieces)
        number = needle_of(text)[1]
        assert text.count(number) == 2 and made.answer == f" {number}" and made.references == (number,)
        assert text.endswith(QUESTION)


def test_filler_with_the_number_is_left_out(tmp_path: Path) -> None:
    task = PasskeyTask(filler=(str(write_books(tmp_path)),), digits=1)
    for seed in range(50):
        made = example(task, seed, 2000)
        text = "".join(made.pieces)
        assert text.count(made.references[0]) == 2
        assert len(re.findall(r"Train\d", text)) > 10


def test_numbers_have_the_digits_asked_for_and_are_uniform() -> None:
    numbers = [int(example(PasskeyTask(), seed, 160).references[0]) for seed in range(1000)]
    assert 10_000 <= min(numbers) < 11_000 and 99_000 < max(numbers) < 100_000
    assert abs(np.mean(numbers) - 55_000) < 3 * 26_000 / 1000**0.5
    assert len(example(PasskeyTask(digits=9), 0).references[0]) == 9


def test_random_depths_are_uniform_and_true() -> None:
    labels, true = [], []
    for seed in range(400):
        made = example(PasskeyTask(), seed, 3000)
        text = "".join(made.pieces)
        labels.append(made.labels["depth"])
        true.append(needle_of(text).start() / (len(text) - len(QUESTION)))
    assert np.abs(np.array(labels) - true).max() < 0.03
    counts, _ = np.histogram(true, bins=4, range=(0, 1))
    assert counts.min() > 70


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_depth_is_near_that_share(depth: float) -> None:
    places = []
    for seed in range(30):
        text = "".join(example(PasskeyTask(depth=depth), seed, 20_000).pieces)
        found = needle_of(text)
        places.append(found.start() / (len(text) - len(QUESTION) - len(found[0])))
    assert max(abs(place - depth) for place in places) < NEAR + 0.003
    assert len(set(places)) > 5, "not always the same place"


def test_needle_stands_between_sentences() -> None:
    for seed in range(50):
        text = "".join(example(PasskeyTask(), seed, 600).pieces)
        found = needle_of(text)
        before, after = text[: found.start()], text[found.end() : -len(QUESTION)]
        assert not before or before.endswith(".") or not after
        assert not after or after[0] in " \n"


def test_sources_are_drawn_evenly(tmp_path: Path) -> None:
    books = str(write_books(tmp_path))
    task = PasskeyTask(filler=("noise", books))
    made = [example(task, seed) for seed in range(200)]
    assert 70 < sum(one.labels["filler"] == books for one in made) < 130
    for one in made:
        assert ("Train" in "".join(one.pieces)) == (one.labels["filler"] == books)


def test_split_reaches_the_filler(tmp_path: Path) -> None:
    books = str(write_books(tmp_path))
    for split, other in (("train", "Test"), ("test", "Train")):
        text = "".join(example(PasskeyTask(filler=(books,), split=split), 0, 9000).pieces)
        assert split.capitalize() in text and other not in text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_same_numbers_same_example_and_row(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    task = PasskeyTask()
    one, again, other = (task.example(np.random.default_rng(seed), 300, tokenizer) for seed in (1, 1, 2))
    assert list(one.pieces) == list(again.pieces) != list(other.pieces)
    assert list(one.pieces) == list(one.pieces), "a prompt can be read again"
    row = task.row(np.random.default_rng(1), 300, tokenizer)
    in_pieces = [token for text in (*one.pieces, one.answer) for token in tokenizer.encode(text)]
    assert row.tokens.tolist() == [tokenizer.special_id("document"), *in_pieces]


def test_row_scores_the_answer_and_its_end_alone() -> None:
    row = PasskeyTask().row(np.random.default_rng(3), 300, BYTES)
    scored = row.targets[row.targets >= 0].tolist()
    assert BYTES.decode(scored[:-1]).strip().isdecimal() and scored[-1] == BYTES.special_id("turn_end")
    assert (row.targets >= 0).nonzero()[0].tolist() == list(range(len(row.tokens) - 7, len(row.tokens)))


def test_a_million_tokens_are_made_piece_by_piece() -> None:
    made = example(PasskeyTask(depth=0.5), 0, 1_000_000)
    sizes = [len(piece) for piece in made.pieces]
    assert max(sizes) < 100 and 999_900 < sum(sizes) < 1_000_000


def test_bad_settings_are_refused() -> None:
    with pytest.raises(
        ValueError, match="passkey does not fit 20 tokens with this tokenizer; the least length is 105"
    ):
        example(PasskeyTask(), 0, 20)
    assert length_of(example(PasskeyTask(), 0, 105), BYTES) == 105
    with pytest.raises(ValueError, match=r"depth must lie in 0..1, got 2"):
        PasskeyTask(depth=2)
    with pytest.raises(ValueError, match=r"digits must lie in 1..18, got 0"):
        PasskeyTask(digits=0)
    with pytest.raises(ValueError, match="filler must be one or more SPECs, got 'noise'"):
        PasskeyTask(filler="noise")


def test_texts_show_the_task() -> None:
    first = next(iter(PasskeyTask().texts()))
    needle_of(first)
    assert len(first) > 10_000
