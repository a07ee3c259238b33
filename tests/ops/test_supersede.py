"""A key that comes again: the loop-level definition, and what stays untouched."""

import pytest
import torch

from rmat.ops import reference as ref
from rmat.ops.supersede import SIMILAR, superseded


def bank(n_slots, seed=0, heads=2, width=3):
    keys = torch.randn(
        n_slots, heads, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    keys[n_slots // 2] = 2.5 * keys[0]  # the same direction again
    return keys.requires_grad_()


@pytest.mark.parametrize("n_slots", [2, 5, 9])
def test_fast_and_loop_agree_in_values_and_gradients(n_slots):
    fast, slow = bank(n_slots), bank(n_slots)
    strength = torch.tensor(1.7, dtype=torch.float64)
    found = -strength * superseded(fast[None, None], torch.ones(1, 1, n_slots, dtype=torch.bool))[0, 0]
    slots = [
        ref.Slot(key=key, value=key, log_gate=key.new_zeros(()), position=index)
        for index, key in enumerate(slow.unbind())
    ]
    expected = torch.stack([slot.log_gate for slot in ref.supersede(slots, strength, SIMILAR)])
    assert torch.allclose(found, expected, atol=1e-12)
    assert expected[0] < -1.69 and expected[-1] == 0, "an equal key supersedes, the newest loses nothing"
    weights = torch.linspace(1, 2, n_slots, dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(fast.grad, slow.grad, atol=1e-10)


def test_slots_that_are_not_filled_supersede_nothing():
    keys = torch.ones(1, 1, 4, 1, 2)
    filled = torch.tensor([[[True, True, False, False]]])
    assert superseded(keys, filled)[0, 0, :2].tolist() == pytest.approx([1.0, 0.0])


def test_unlike_keys_and_empty_ones_leave_a_slot_as_it_is():
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [-1.0, 0.0]])[None, None, :, None]
    assert superseded(keys, torch.ones(1, 1, 4, dtype=torch.bool)).abs().max() == 0
