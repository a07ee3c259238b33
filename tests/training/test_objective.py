"""The loss."""

import torch
from torch.testing import assert_close

from rmat.data.lanes import IGNORED
from rmat.training.objective import next_token_loss


def test_sum_and_count_are_over_scored_positions_only() -> None:
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    targets = torch.randint(0, 7, (2, 5))
    targets[0, 2:] = IGNORED
    result = next_token_loss(logits, targets)
    log_p = logits.log_softmax(-1)
    expected = -sum(
        log_p[b, t, targets[b, t]] for b in range(2) for t in range(5) if targets[b, t] != IGNORED
    )
    assert_close(result.total, expected)
    assert_close(result.nats, expected)
    assert int(result.count) == 7


def test_z_loss_is_added_to_what_is_minimised_only() -> None:
    logits = torch.randn(1, 4, 5, dtype=torch.float64)
    targets = torch.tensor([[1, IGNORED, 2, 0]])
    plain, with_z = next_token_loss(logits, targets), next_token_loss(logits, targets, z_loss=0.1)
    squares = logits.exp().sum(-1).log() ** 2
    assert_close(with_z.total - plain.total, 0.1 * squares[0, [0, 2, 3]].sum())
    assert_close(with_z.nats, plain.nats)


def test_low_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(1, 64, 11).bfloat16()
    targets = torch.randint(0, 11, (1, 64))
    result = next_token_loss(logits, targets)
    assert result.total.dtype == torch.float32
    assert_close(result.total, next_token_loss(logits.float(), targets).total, rtol=0, atol=0)


def test_nothing_scored_is_zero_not_nan() -> None:
    result = next_token_loss(torch.randn(1, 3, 4), torch.full((1, 3), IGNORED))
    assert float(result.total) == 0.0
    assert int(result.count) == 0
