"""Rows of multi-query associative recall against the published protocol, in numbers."""

import numpy as np
import pytest

from rmat.tasks.mqar import TEST_MIX, TRAIN_MIX, MqarTask
from rmat.tasks.task import Row

IGNORED = -100


def rows(task: MqarTask, length: int, count: int) -> list[Row]:
    return [task.row(np.random.default_rng([7, number]), length) for number in range(count)]


def stated(task: MqarTask, row: Row) -> dict[int, int]:
    """Key to value as the row's opening says it; of two values the newer."""
    opening = row.tokens[: task.stated].tolist()
    return dict(zip(opening[::2], opening[1::2], strict=True))


@pytest.mark.parametrize("changes", [0, 3])
@pytest.mark.parametrize(("pairs", "length", "vocabulary"), [(4, 64, 8192), (15, 67, 32), (6, 31, 33)])
def test_every_row_keeps_the_rules(pairs: int, length: int, vocabulary: int, changes: int) -> None:
    task = MqarTask(pairs=pairs, vocabulary=vocabulary, changes=changes)
    length += 2 * changes
    for row in rows(task, length, 100):
        assert row.tokens.shape == row.targets.shape == (length,)
        assert row.tokens.dtype == row.targets.dtype == np.int64
        assert row.tokens.min() >= 0 and row.tokens.max() < vocabulary
        first = row.tokens[: 2 * pairs]
        keys, values = first[::2].tolist(), first[1::2].tolist()
        assert len(set(keys)) == pairs and min(keys) >= 1 and max(keys) <= vocabulary // 2 - 1
        assert len(set(values)) == pairs and vocabulary // 2 <= min(values) and max(values) < vocabulary
        asked = np.flatnonzero(row.targets != IGNORED)
        assert sorted(row.tokens[asked].tolist()) == sorted(keys), "every key once"
        assert asked.min() >= task.stated and asked.max() + 1 < length
        assert not (asked % 2).any(), "slots are two tokens wide and begin behind the pairs"
        known = stated(task, row)
        assert row.targets[asked].tolist() == [known[key] for key in row.tokens[asked].tolist()]


def test_keys_and_values_are_drawn_from_their_whole_halves() -> None:
    task = MqarTask(pairs=3, vocabulary=16)
    openings = np.array([row.tokens[:6] for row in rows(task, 24, 400)])
    assert set(openings[:, ::2].flat) == set(range(1, 8))
    assert set(openings[:, 1::2].flat) == set(range(8, 16))


def test_slots_are_asked_by_the_power_law() -> None:
    """One pair a row: slot i has the probability (i + 1)^-0.99 over the sum of them all. Chi-square, 15
    degrees."""
    task, slots, count = MqarTask(pairs=1, vocabulary=64), 16, 4000
    places = [int(np.flatnonzero(row.targets != IGNORED)[0]) for row in rows(task, 2 + 2 * slots, count)]
    seen = np.bincount((np.array(places) - 2) // 2, minlength=slots)
    law = np.arange(1, slots + 1) ** -0.99
    expected = count * law / law.sum()
    assert ((seen - expected) ** 2 / expected).sum() < 37.7, "below the 99.9 % quantile"


def test_several_slots_are_drawn_without_replacement_by_the_same_law() -> None:
    """Against drawing one after the other, each among the slots that are left."""
    task, slots, count = MqarTask(pairs=4, vocabulary=64), 12, 3000
    seen = np.zeros(slots)
    for row in rows(task, 8 + 2 * slots, count):
        seen[(np.flatnonzero(row.targets != IGNORED) - 8) // 2] += 1
    law, random, expected = np.arange(1, slots + 1) ** -0.99, np.random.default_rng(1), np.zeros(slots)
    for _ in range(count):
        expected[random.choice(slots, 4, replace=False, p=law / law.sum())] += 1
    assert np.abs(seen - expected).max() < 5 * (count / 4) ** 0.5
    assert seen[0] > 2 * seen[-1]


def test_the_answer_stands_behind_its_question_no_more_often_than_chance() -> None:
    task, vocabulary = MqarTask(pairs=4, vocabulary=32), 32
    leaks = asked = 0
    for row in rows(task, 64, 1500):
        place = np.flatnonzero(row.targets != IGNORED)
        leaks += int((row.tokens[place + 1] == row.targets[place]).sum())
        asked += len(place)
    expected = asked / vocabulary
    assert abs(leaks - expected) < 4 * expected**0.5


def test_all_other_places_hold_random_tokens_of_the_whole_vocabulary() -> None:
    filler = []
    for row in rows(MqarTask(pairs=2, vocabulary=16), 64, 300):
        free = np.arange(64) >= 4
        filler.append(row.tokens[free & (row.targets == IGNORED)])
    seen = np.bincount(np.concatenate(filler), minlength=16)
    assert ((seen - seen.mean()) ** 2 / seen.mean()).sum() < 37.7, "chi-square, 15 degrees, 99.9 %"


def test_of_a_changed_pair_the_newest_value_wins() -> None:
    task = MqarTask(pairs=5, vocabulary=12 * 2, changes=2)
    replaced = []
    for row in rows(task, 60, 500):
        opening = row.tokens[: task.stated].tolist()
        before = dict(zip(opening[:10:2], opening[1:10:2], strict=True))
        after = dict(zip(opening[10::2], opening[11::2], strict=True))
        assert len(after) == 2 and set(after) <= set(before), "two different keys, stated before"
        assert all(12 <= value < 24 and value != before[key] for key, value in after.items())
        place = np.flatnonzero(row.targets != IGNORED)
        answers = dict(zip(row.tokens[place].tolist(), row.targets[place].tolist(), strict=True))
        assert answers == before | after
        replaced += [opening[:10:2].index(key) for key in after]
    assert np.bincount(replaced, minlength=5).min() > 150, "any pair may change"


def test_the_same_numbers_make_the_same_row() -> None:
    task = MqarTask()
    one, again, other = (task.row(np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    assert one.tokens.tolist() == again.tokens.tolist() != other.tokens.tolist()
    assert one.targets.tolist() == again.targets.tolist() != other.targets.tolist()


@pytest.mark.parametrize("changes", [0, 2])
def test_a_row_that_does_not_hold_all_questions_is_refused(changes: int) -> None:
    task = MqarTask(pairs=4, changes=changes)
    least = 16 + 2 * changes
    assert task.row(np.random.default_rng(0), least).tokens.shape == (least,)
    with pytest.raises(
        ValueError, match=f"4 pairs and questions do not fit {least - 1} tokens: give at least {least}"
    ):
        task.row(np.random.default_rng(0), least - 1)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"pairs": 0}, "mqar.pairs is 0 with 8192 tokens: give 1 to 4095"),
        ({"pairs": 4096}, "mqar.pairs is 4096 with 8192 tokens: give 1 to 4095"),
        ({"pairs": 1, "vocabulary": 3}, "mqar.pairs is 1 with 3 tokens"),
        ({"changes": -1}, "mqar.changes is -1: give 0 to 8"),
        ({"pairs": 2, "changes": 3}, "mqar.changes is 3: give 0 to 2"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MqarTask(**fields)


def test_the_published_sets_can_be_made() -> None:
    for length, pairs in [*TEST_MIX, *((length, pairs) for length, pairs, _ in TRAIN_MIX)]:
        assert rows(MqarTask(pairs=pairs), length, 1)[0].tokens.shape == (length,)
