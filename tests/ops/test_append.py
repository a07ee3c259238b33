"""Tensors that grow in place behind values that stay what they were."""

import pytest
import torch

from rmat.ops.append import ROOM, append, newest


@pytest.mark.parametrize("n_new", [1, 3])
def test_what_is_appended_is_what_cat_gives(n_new: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, generator=generator)
    with torch.no_grad():
        expected, kept = x, x
        for _ in range(ROOM):
            new = torch.randn(2, n_new, 3, generator=generator)
            expected = torch.cat([expected, new], 1)
            kept = newest(append(kept, new), 5)
            assert torch.equal(kept, expected[:, -5:])


def test_old_values_stay_and_a_fork_gets_a_buffer_of_its_own() -> None:
    with torch.no_grad():
        x = append(torch.zeros(1, 2), torch.ones(1, 1))
        one = append(x, torch.full((1, 1), 2.0))
        other = append(x, torch.full((1, 1), 3.0))
        assert one.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert other.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        append(one, torch.full((1, 1), 4.0))
    assert x.tolist() == [[0, 0, 1]]
    assert one.tolist() == [[0, 0, 1, 2]]
    assert other.tolist() == [[0, 0, 1, 3]]


def test_in_and_out_of_inference_mode() -> None:
    new = torch.ones(1, 1)
    with torch.inference_mode():
        x = append(torch.zeros(1, 1), new)
    with torch.no_grad():
        y = append(x, new)
    with torch.inference_mode():
        z = append(y, new)
    assert z.tolist() == [[0, 1, 1, 1]]


def test_with_gradients_nothing_is_shared() -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    with torch.no_grad():
        held = append(torch.zeros(1, 2), torch.ones(1, 1))
    joined = append(held, x)
    append(held, 2 * x).sum().backward()
    assert joined.tolist() == [[0, 0, 1, 0, 0]]
    assert x.grad is not None and x.grad.tolist() == [[2, 2]]
