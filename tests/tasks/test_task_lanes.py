"""Batches of a mixture: what they depend on, where a run can go on, how rows become a batch."""

import itertools

import numpy as np
import pytest
import torch

from rmat.data.lanes import Batch
from rmat.data.tokenizer import Tokenizer, byte_tokenizer
from rmat.tasks.lanes import TaskLanes, TaskPosition, pad_rows
from rmat.tasks.mqar import MqarTask
from rmat.tasks.numbered import numbered_tokenizer
from rmat.tasks.passkey import PasskeyTask
from rmat.tasks.recall import RecallTask
from rmat.tasks.task import Member, Row, Task

NUMBERS = numbered_tokenizer(40)
RECALL = RecallTask(n_pairs=2, n_keys=8, n_values=8, n_filler=8, length=6, query_share=0.5)
MQAR = MqarTask(pairs=2, vocabulary=32)


def recall_lanes(seed: int = 0, batch_size: int = 3, window: int = 40, grow: int = 0) -> TaskLanes:
    members = [Member(task=RECALL, shortest=10, grow=grow)]
    return TaskLanes(members, [f"recall:from=10,grow={grow}"], NUMBERS, batch_size, window, seed)


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(
        (one.tokens, one.targets, one.resets), (other.tokens, other.targets, other.resets), strict=True
    )
    return all(torch.equal(left, right) for left, right in pairs)


def first(lanes: TaskLanes, count: int) -> list[Batch]:
    return [batch for batch, _ in itertools.islice(lanes.batches(), count)]


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    lanes = recall_lanes()
    in_order = first(lanes, 4)
    assert all(same(lanes.batch(n), in_order[n]) for n in (3, 0, 2, 1)), "whatever was made before"
    assert all(map(same, first(recall_lanes(), 4), in_order))
    assert not same(recall_lanes(seed=1).batch(0), in_order[0])
    assert not any(same(*pair) for pair in itertools.combinations(in_order, 2))


def test_rows_of_a_batch_differ() -> None:
    batch = recall_lanes(batch_size=8).batch(0)
    assert len({tuple(row) for row in batch.tokens.tolist()}) == 8


def test_rows_grow_by_updates_of_several_batches() -> None:
    members = [Member(task=RECALL, shortest=10, grow=20)]
    by_update = TaskLanes(members, ["recall:from=10,grow=20"], NUMBERS, 3, 40, 0, 4)
    widths = [batch.tokens.shape[1] for batch in first(by_update, 160)]
    assert all(width <= 10 + 30 * min(n // 4, 20) // 20 for n, width in enumerate(widths))
    assert max(widths[:4]) == 10 and max(widths[20:40]) < 25 and max(widths[80:]) == 40


def test_lengths_differ_between_batches_and_grow_to_the_window() -> None:
    widths = [batch.tokens.shape[1] for batch in first(recall_lanes(), 150)]
    assert min(widths) == 10 and max(widths) == 40 and len(set(widths)) > 25
    growing = [batch.tokens.shape[1] for batch in first(recall_lanes(grow=100), 300)]
    assert growing[0] == 10
    assert all(width <= 10 + 30 * min(n, 100) // 100 for n, width in enumerate(growing))
    assert max(growing[:50]) <= 25 and max(growing[100:]) == 40 and min(growing[100:]) == 10


def test_going_on_from_a_position_gives_the_same_batches() -> None:
    whole = list(itertools.islice(recall_lanes().batches(), 6))
    for stop in (0, 1, 4):
        values = whole[stop - 1][1].to_dict() if stop else None
        again = itertools.islice(recall_lanes().resumed(values), 6 - stop)
        for (batch, position), (expected, behind) in zip(again, whole[stop:], strict=True):
            assert same(batch, expected) and position == behind
    assert [position.batches for _, position in whole] == [1, 2, 3, 4, 5, 6]


def test_a_position_goes_through_json() -> None:
    import json

    position = next(recall_lanes().batches())[1]
    assert TaskPosition(**json.loads(json.dumps(position.to_dict()))) == position


@pytest.mark.parametrize(
    "other",
    [
        recall_lanes(seed=1),
        recall_lanes(batch_size=4),
        recall_lanes(window=41),
        recall_lanes(grow=1),
        TaskLanes([Member(task=RECALL, shortest=10)], ["recall:from=10,grow=0"], numbered_tokenizer(41), 3, 40, 0),
        TaskLanes(
            [Member(task=RECALL, shortest=10), Member(task=MQAR, length=16)],
            ["recall:from=10,grow=0"], NUMBERS, 3, 40, 0,
        ),
    ],
    ids=["seed", "batch size", "window", "SPEC", "tokenizer", "shares"],
)  # fmt: skip
def test_the_position_of_other_lanes_is_refused(other: TaskLanes) -> None:
    values = next(recall_lanes().batches())[1].to_dict()
    with pytest.raises(ValueError, match=r"belongs to lanes \w+, not \w+: .*resume with those of the run"):
        other.resumed(values)
    with pytest.raises(ValueError, match="belongs to lanes None"):
        other.resumed({"epoch": 0})


def test_short_rows_are_filled_behind_their_end_and_not_scored_there() -> None:
    rows = [
        Row(np.arange(length, dtype=np.int64), np.arange(length, dtype=np.int64) + 1) for length in (3, 5, 1)
    ]
    batch = pad_rows(rows, 99)
    assert batch.tokens.tolist() == [[0, 1, 2, 99, 99], [0, 1, 2, 3, 4], [0, 99, 99, 99, 99]]
    assert batch.targets.tolist() == [[1, 2, 3, -100, -100], [1, 2, 3, 4, 5], [1, -100, -100, -100, -100]]
    assert batch.resets.tolist() == [[True, False, False, False, False]] * 3
    assert (batch.tokens.dtype, batch.targets.dtype, batch.resets.dtype) == (
        torch.int64,
        torch.int64,
        torch.bool,
    )


def test_text_rows_are_documents_filled_with_the_document_token() -> None:
    tokenizer = byte_tokenizer()
    lanes = TaskLanes([Member(task=PasskeyTask())], ["passkey"], tokenizer, 6, 180, 0)
    batch = lanes.batch(0)
    document = tokenizer.special_id("document")
    assert batch.tokens.shape[1] <= 180 and batch.tokens[:, 0].tolist() == [document] * 6
    assert batch.resets[:, 0].all() and not batch.resets[:, 1:].any()
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        end = max(place for place, target in enumerate(targets) if target != -100)
        assert targets[end] == tokenizer.special_id("turn_end")
        assert set(tokens[end + 1 :]) <= {document} and document not in tokens[1 : end + 1]


class Marked(Task):
    """Rows that say which task made them."""

    def __init__(self, mark: int) -> None:
        self.mark = mark

    def row(self, random: np.random.Generator, length: int, tokenizer: Tokenizer) -> Row:
        return Row(np.full(length, self.mark), np.full(length, self.mark))


def test_batches_are_of_one_kind_and_kinds_come_by_their_shares() -> None:
    shares = (1.0, 5.0, 2.0)
    members = [Member(task=Marked(n), share=share, length=2) for n, share in enumerate(shares)]
    lanes = TaskLanes(members, ["marked"], NUMBERS, 2, 8, 0)
    seen = np.zeros(3)
    for batch in first(lanes, 2000):
        (mark,) = set(batch.tokens.flatten().tolist())
        seen[mark] += 1
    expected = 2000 * np.array(shares) / 8
    assert ((seen - expected) ** 2 / expected).sum() < 13.8, "chi-square, 2 degrees, 99.9 %"


def test_rows_of_a_batch_can_be_made_one_by_one() -> None:
    """As processes share them: a row depends on seed, batch and row alone."""
    members = [Member(task=RECALL, shortest=10)]
    whole = TaskLanes(members, ["recall"], NUMBERS, 5, 40, 0)
    for number in range(4):
        batch = whole.batch(number)
        for rows in (range(2), range(2, 5)):
            part = TaskLanes(members, ["recall"], NUMBERS, 5, 40, 0, rows=rows).batch(number)
            width = part.tokens.shape[1]
            assert torch.equal(part.tokens, batch.tokens[rows.start : rows.stop, :width])
            assert torch.equal(part.targets, batch.targets[rows.start : rows.stop, :width])
            assert bool((batch.targets[rows.start : rows.stop, width:] == -100).all())
