"""Facts stand in order in filler of the right split; every question has its own statements before it."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from rmat.data.tokenizer import byte_tokenizer
from rmat.tasks.babilong import BabilongTask
from rmat.tasks.task import Example
from tests.makers.sources import STORY, TOKENIZERS, length_of, write_babi, write_books

BYTES = byte_tokenizer()


@pytest.fixture
def books(tmp_path: Path) -> str:
    return str(write_books(tmp_path / "books", sentences=300))


@pytest.fixture
def facts(tmp_path: Path) -> str:
    """Fact numbers are A0.. in train files and B0.. in test files."""
    write_babi(tmp_path / "babi", "train", 40, mark="A")
    write_babi(tmp_path / "babi", "test", 20, mark="B")
    return str(tmp_path / "babi")


def example(task: BabilongTask, seed: int = 0, length: int = 1000) -> Example:
    return task.example(np.random.default_rng(seed), length, BYTES)


def test_facts_alone_at_length_zero(facts: str) -> None:
    seen = set()
    for seed in range(60):
        made = example(BabilongTask(facts, split="test"), seed, 0)
        text = "".join(made.pieces)
        story = re.match(r" B(\d+) ", text)[1]
        told = [f" B{story} {line}" for line, answer in STORY if answer is None]
        asked = {
            f"{''.join(told[:2])}\nQuestion: Where is Mary? Answer:": " bathroom",
            f"{''.join(told[:3])}\nQuestion: Where is John? Answer:": " office",
            f"{''.join(told)}\nQuestion: Where is Mary? Answer:": " garden",
        }
        assert made.answer == asked[text] and made.references == (made.answer.strip(),)
        assert made.labels["task"] == "qa1" and made.labels["facts"] in (2, 3, 4)
        seen.add(made.labels["facts"])
    assert seen == {2, 3, 4}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [250, 1000, 8000])
def test_fills_the_length_closely_and_never_exceeds_it(
    name: str, length: int, facts: str, books: str
) -> None:
    tokenizer = TOKENIZERS[name]()
    task = BabilongTask(facts, books)
    for seed in range(20):
        made = task.example(np.random.default_rng(seed), length, tokenizer)
        assert length - 20 <= length_of(made, tokenizer) <= length


@pytest.mark.parametrize(("split", "mark"), [("train", "A"), ("valid", "A"), ("test", "B")])
def test_facts_and_filler_are_of_the_split(split: str, mark: str, facts: str, books: str) -> None:
    for seed in range(30):
        text = "".join(example(BabilongTask(facts, books, split=split), seed, 3000).pieces)
        assert set(re.findall(r" ([AB])\d+ (?:Mary|John)", text)) == {mark}
        assert set(re.findall(r"(Train|Valid|Test)\d", text)) == {split.capitalize()}


def test_valid_stories_are_not_in_train(facts: str) -> None:
    stories = {
        split: {sample.lines[0].text for sample in BabilongTask(facts, split=split).fitting(1, 0, BYTES)}
        for split in ("train", "valid")
    }
    assert (len(stories["train"]), len(stories["valid"])) == (36, 4)
    assert stories["train"].isdisjoint(stories["valid"])


def test_facts_keep_their_order_and_stand_at_uniform_places(facts: str, books: str) -> None:
    places = []
    for seed in range(300):
        made = example(BabilongTask(facts, books), seed, 4000)
        text = "".join(made.pieces)
        story = re.search(r" A(\d+) ", text)[1]
        told = [f" A{story} {line}" for line, answer in STORY if answer is None][: made.labels["facts"]]
        here = [text.index(fact) for fact in told]
        assert here == sorted(here) and text.count(f" A{story} ") == len(told)
        places += [place / text.index("\nQuestion:") for place in here]
    counts, _ = np.histogram(places, bins=5, range=(0, 1))
    assert counts.min() > 0.16 * len(places) and counts.max() < 0.24 * len(places)


def test_filler_is_a_stretch_of_a_book(facts: str, books: str) -> None:
    text = "".join(example(BabilongTask(facts, books), 0, 2000).pieces)
    numbers = [int(number) for number in re.findall(r"Train(\d+)", text)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) > 10


def test_questions_are_drawn_evenly_and_tasks_too(tmp_path: Path, facts: str) -> None:
    write_babi(tmp_path / "babi", "train", 5, task=2, mark="A")
    task = BabilongTask(facts, tasks=(1, 2))
    labels = [example(task, seed, 0).labels for seed in range(600)]
    assert 250 < sum(label["task"] == "qa1" for label in labels) < 350
    assert all(150 < sum(label["facts"] == count for label in labels) < 250 for count in (2, 3, 4))


def test_samples_with_more_facts_than_fit_are_left_out(facts: str, books: str) -> None:
    task = BabilongTask(facts, books)
    assert {example(task, seed, 150).labels["facts"] for seed in range(60)} == {2, 3}
    assert {len(sample.statements) for sample in task.fitting(1, 1000, BYTES)} == {2, 3, 4}
    with pytest.raises(ValueError, match=r"no sample of task 1 fits 20 tokens .* the least length is 10"):
        example(task, 0, 20)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_row_may_ask_the_earlier_questions_where_they_stand(name: str, facts: str, books: str) -> None:
    tokenizer = TOKENIZERS[name]()
    end = tokenizer.special_id("turn_end")
    task = BabilongTask(facts, books, questions="all")
    behind = []
    for seed in range(40):
        row = task.row(np.random.default_rng(seed), 1200, tokenizer)
        assert 1170 <= len(row.tokens) < 1200 and len(row.tokens) == len(row.targets)
        scored = row.targets >= 0
        assert (row.targets[:-1][scored[:-1]] == row.tokens[1:][scored[:-1]]).all(), "targets are next tokens"
        answers = [*row.tokens[1:][scored[:-1]].tolist(), end]
        assert tokenizer.decode(answers) == " bathroom office garden" and answers.count(end) == 3
        assert scored[-1] and row.targets[-1] == end
        text = tokenizer.decode(row.tokens.tolist())
        said = re.findall(r"(?:A\d+ )(?:Mary|John) [a-z ]+\.|\nQuestion: Where is \w+\? Answer: \w+", text)
        assert [re.sub(r"A\d+ ", "", line).strip() for line in said] == [
            line if answer is None else f"Question: {line} Answer: {answer}" for line, answer in STORY
        ]
        behind.append(text.index("Where is John?") - text.index("office."))
    assert max(behind) > 4 * min(behind), "between a fact and its question is some filler, or none"


def test_row_asks_the_last_question_alone_by_default(facts: str, books: str) -> None:
    task = BabilongTask(facts, books)
    made, row = example(task, 5), task.row(np.random.default_rng(5), 1000, BYTES)
    assert BYTES.decode(row.tokens.tolist()) == "".join(made.pieces) + made.answer
    assert BYTES.decode(row.targets[row.targets >= 0].tolist()) == made.answer


def test_short_row_asks_the_questions_that_fit(facts: str, books: str) -> None:
    row = BabilongTask(facts, books, questions="all").row(np.random.default_rng(0), 200, BYTES)
    asked = BYTES.decode(row.targets[row.targets >= 0].tolist())
    assert asked == " bathroom office"


@pytest.mark.parametrize("questions", ["last", "all"])
def test_same_numbers_same_row(questions: str, facts: str, books: str) -> None:
    task = BabilongTask(facts, books, questions=questions)
    one, again, other = (
        task.row(np.random.default_rng(seed), 900, BYTES).tokens.tolist() for seed in (1, 1, 2)
    )
    assert one == again != other
    made = example(task)
    assert list(made.pieces) == list(made.pieces)


def test_larger_train_file_and_canonical_test_file_are_preferred(tmp_path: Path) -> None:
    for folder, kind, mark in (
        ("en", "train", "A"),
        ("en-10k", "train", "B"),
        ("en", "test", "C"),
        ("en-10k", "test", "D"),
    ):
        write_babi(tmp_path / folder, kind, 3, mark=mark)
    write_babi(tmp_path / "en", "train", 3, task=3, mark="E")
    first = {
        (task, split): BabilongTask(str(tmp_path), tasks=(task,), split=split)
        .fitting(task, 0, BYTES)[0]
        .lines[0]
        .text[1]
        for task, split in ((1, "train"), (1, "test"), (3, "train"))
    }
    assert first == {(1, "train"): "B", (1, "test"): "C", (3, "train"): "E"}


def test_task_10_is_not_taken_for_task_1(tmp_path: Path) -> None:
    write_babi(tmp_path, "test", 2, task=10)
    with pytest.raises(ValueError, match=r"no file qa1_\*_test.txt in"):
        example(BabilongTask(str(tmp_path), split="test"))


def test_test_facts_are_never_taken_from_a_train_file(tmp_path: Path) -> None:
    write_babi(tmp_path / "en", "train", 20)
    with pytest.raises(ValueError, match=r"no file qa1_\*_test.txt in"):
        example(BabilongTask(str(tmp_path), split="test"))


def test_bad_settings_and_files_are_refused(tmp_path: Path, facts: str) -> None:
    with pytest.raises(ValueError, match=r"tasks must be of 1..10, got \(11,\)"):
        BabilongTask(facts, tasks=(11,))
    with pytest.raises(ValueError, match="split='dev' is not possible"):
        BabilongTask(facts, split="dev")
    with pytest.raises(ValueError, match="questions='none' is not possible"):
        BabilongTask(facts, questions="none")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "qa1_x_test.txt").write_text("1 Mary went home.\nno number\n")
    with pytest.raises(ValueError, match="line 2 is not `NUMBER STATEMENT`"):
        example(BabilongTask(str(bad), split="test"))


@pytest.mark.skipif("RMAT_BABI" not in os.environ, reason="RMAT_BABI names no folder of the bAbI files")
def test_published_files_have_a_thousand_test_questions_a_task() -> None:
    """And no test story is a train story, but for task 4, where that is so in the original data."""
    folder = os.environ["RMAT_BABI"]
    for number in range(1, 6):
        stories = []
        for split in ("train", "valid", "test"):
            samples = BabilongTask(folder, tasks=(number,), split=split).fitting(number, 0, BYTES)
            # The last sample of a story holds all of it.
            stories.append(set({sample.story: sample.lines for sample in samples}.values()))
        assert len(samples) == 1000
        assert stories[2].isdisjoint(stories[0] | stories[1]) or number == 4
