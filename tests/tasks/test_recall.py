"""The recall task says what it promises, at any length and in any pieces."""

import pytest
import torch

from rmat.tasks.recall import RecallTask
from rmat.tasks.task import RowPart


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def joined(pieces: list[RowPart]) -> RowPart:
    return RowPart(*(torch.cat([getattr(p, f) for p in pieces], 1) for f in ("tokens", "targets", "first")))


def check(task: RecallTask, batch: RowPart) -> int:
    """Every row follows the rules; returns the number of questions."""
    asked = 0
    values = range(task.n_keys, task.n_keys + task.n_values)
    for tokens, targets, first in zip(
        *(t.tolist() for t in (batch.tokens, batch.targets, batch.first)), strict=True
    ):
        opening = 2 * task.n_pairs
        pairs = dict(zip(tokens[:opening:2], tokens[1:opening:2], strict=True))
        assert len(pairs) == task.n_pairs and all(key < task.n_keys for key in pairs)
        assert all(value in values for value in pairs.values())
        seen = set()
        position = opening
        assert targets[:opening] == [-100] * opening and not any(first[:opening])
        while position < len(tokens):
            token = tokens[position]
            if token < task.n_keys:
                assert targets[position] == tokens[position + 1] == pairs[token]
                assert targets[position + 1] == -100 and not first[position + 1]
                assert first[position] == (token not in seen)
                seen.add(token)
                asked += 1
                position += 2
            else:
                assert token >= task.n_keys + task.n_values
                assert targets[position] == -100 and not first[position]
                position += 1
    assert int(batch.tokens.min()) >= 0 and int(batch.tokens.max()) < task.vocab_size
    return asked


@pytest.mark.parametrize("length", [18, 255, 256])
def test_batches_follow_the_rules(length):
    task = RecallTask(length=length)
    batch = task.batch(16, generator())
    assert batch.tokens.shape == (16, length) and batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.first.dtype == torch.bool
    asked = check(task, batch)
    share = asked / (16 * ((length - 16) // 2))
    assert abs(share - task.query_share) < 0.05 or length == 18


def test_stream_follows_the_rules_and_asks_in_the_last_tenth():
    task = RecallTask(length=4000)
    batch = joined(list(task.stream(3, generator(), 512)))
    assert batch.tokens.shape == (3, 4000)
    assert check(task, batch) == 3 * 24
    assert (batch.targets[:, :3600] == -100).all()
    spread = (batch.targets[0] >= 0).nonzero()[:, 0]
    assert spread[0] < 3650 and spread[-1] > 3950


def test_stream_does_not_depend_on_the_pieces():
    task = RecallTask(length=1001)
    whole = next(task.stream(2, generator(), 1001))
    for piece in (1, 7, 64, 1000):
        batch = joined(list(task.stream(2, generator(), piece)))
        assert all(torch.equal(getattr(batch, f), getattr(whole, f)) for f in ("tokens", "targets", "first"))


def test_a_long_stream_comes_in_bounded_pieces():
    task = RecallTask(length=2**40)
    stream = task.stream(2, generator(), 1024)
    assert [next(stream).tokens.shape for _ in range(3)] == [(2, 1024)] * 3


def test_seeds_decide():
    task = RecallTask()
    assert torch.equal(task.batch(2, generator(1)).tokens, task.batch(2, generator(1)).tokens)
    assert not torch.equal(task.batch(2, generator(1)).tokens, task.batch(2, generator(2)).tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_pairs": 0}, "recall.n_pairs must be at least 1"),
        ({"n_pairs": 65}, "n_pairs 65 exceeds n_keys 64"),
        ({"length": 17}, "recall.length 17.*at least 18"),
        ({"query_share": 0.0}, "recall.query_share"),
    ],
)
def test_impossible_sizes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RecallTask(**fields)


def test_too_many_questions_for_a_stream_are_refused():
    with pytest.raises(ValueError, match="24 questions do not fit the 12 slots"):
        next(RecallTask(length=256).stream(1, generator(), 64))
    with pytest.raises(ValueError, match="piece must be at least 1"):
        next(RecallTask(length=4096).stream(1, generator(), 0))
