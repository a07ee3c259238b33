"""The loop-free bank against pushing one by one; identity is carried in the values."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmat.ops.fifo import ABSENT, fifo_windows, strongest_windows, take_rows
from rmat.reference import loops as ref

RANDOM = settings(max_examples=60, deadline=None, derandomize=True)


def slot(number: int, score: float = 0.0) -> ref.Slot:
    place = torch.zeros(1, 1, dtype=torch.float64)
    gate = torch.nn.functional.logsigmoid(place[0, 0] + score)
    return ref.Slot(key=place, value=place, log_gate=gate, position=number)


@given(data=st.data())
@RANDOM
def test_windows_equal_pushing_one_by_one(data: st.DataObject) -> None:
    """Slots before the call are the numbers 0 .. M-1, candidate w of segment n is M + n * W + w."""
    n_rows, n_segments, n_writes = (data.draw(st.integers(1, 4)) for _ in range(3))
    n_slots = data.draw(st.integers(1, 7))
    flags = data.draw(
        st.lists(
            st.booleans(), min_size=n_rows * n_segments * n_writes, max_size=n_rows * n_segments * n_writes
        )
    )
    entered = torch.tensor(flags).view(n_rows, n_segments, n_writes)
    windows = fifo_windows(entered, n_slots)
    assert windows.shape == (n_rows, n_segments + 1, n_slots)
    for b in range(n_rows):
        bank = [slot(number) for number in range(n_slots)]
        for n in range(n_segments + 1):
            assert windows[b, n].tolist() == [each.position for each in bank]
            for w in range(n_writes if n < n_segments else 0):
                if entered[b, n, w]:
                    bank = ref.push(bank, slot(n_slots + n * n_writes + w), n_slots)


@given(data=st.data())
@RANDOM
def test_windows_of_the_strongest_equal_pushing_one_by_one(data: st.DataObject) -> None:
    """Banks begin empty; a segment may begin another document, which begins with an empty bank. -9: does not enter."""
    n_segments, n_writes, n_slots = (data.draw(st.integers(1, 5)) for _ in range(3))
    scores = data.draw(
        st.lists(st.integers(-9, 6), min_size=n_segments * n_writes, max_size=n_segments * n_writes)
    )
    fresh = data.draw(st.lists(st.booleans(), min_size=n_segments, max_size=n_segments))
    n_newest = data.draw(st.integers(0, n_slots))
    scores_1NW = torch.tensor(scores).view(1, n_segments, n_writes)
    windows = strongest_windows(
        torch.where(scores_1NW > -9, scores_1NW, ABSENT),
        torch.full((1, n_slots), ABSENT),
        torch.tensor([fresh]),
        n_newest=n_newest,
        at_once=data.draw(st.integers(1, 6)),
    )
    bank: list[ref.Slot] = []
    for n in range(n_segments + 1):
        found = windows[0, n].tolist()
        assert found[n_slots - len(bank) :] == [each.position for each in bank]
        if n < n_segments and fresh[n]:
            bank = []
        for w in range(n_writes if n < n_segments else 0):
            if (score := scores[n * n_writes + w]) > -9:
                new = slot(n_slots + n * n_writes + w, score + 0.001)
                bank = ref.push(bank, new, n_slots, weakest=True, n_newest=n_newest)


def test_nothing_enters_nothing_moves() -> None:
    windows = fifo_windows(torch.zeros(2, 3, 2, dtype=torch.bool), 4)
    assert bool((windows == torch.arange(4)).all())
    nothing = torch.full((2, 3, 2), ABSENT)
    held = torch.tensor([[ABSENT, 3, 1, 3]] * 2)
    for at_once in (1, 2, 3):
        windows = strongest_windows(nothing, held, torch.zeros(2, 3, dtype=torch.bool), at_once=at_once)
        assert bool((windows == torch.arange(4)).all())


def test_take_rows_reads_each_rows_own_places_and_gradients_return_there() -> None:
    x = torch.arange(24, dtype=torch.float64).view(2, 4, 3).requires_grad_()
    index = torch.tensor([[[3, 0], [0, 0]], [[1, 1], [2, 3]]])
    taken = take_rows(x, index)
    assert taken.shape == (2, 2, 2, 3)
    for b in range(2):
        for i in range(2):
            for j in range(2):
                assert torch.equal(taken[b, i, j], x[b, index[b, i, j]])
    taken.sum().backward()
    counts = torch.stack([torch.bincount(index[b].flatten(), minlength=4) for b in range(2)])
    assert x.grad is not None
    assert torch.equal(x.grad, counts[..., None].expand(2, 4, 3).double())
