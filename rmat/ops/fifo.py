"""The first-in-first-out bank with refusal, for all segments of a call at once and without a loop.

A running count numbers the vectors that entered; written one behind the other after the M slots that were there
before, the bank of any moment is M neighbours of that row. Loop-level definition: `rmat/ops/reference.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fifo_windows(entered_BNW: Tensor, n_slots: int) -> Tensor:
    """Where every slot of every bank of a call comes from.

    Args:
        entered_BNW: bool; candidate w of segment n enters the bank when segment n closes.
        n_slots: M.

    Returns: (B, N + 1, M) int64, oldest slot first. [:, n] is the bank that segment n reads, [:, N] the bank after
        the call. A value below M is that slot of the bank before the call, M + n * W + w is candidate w of segment n.
    """
    n_rows, n_segments, n_candidates = entered_BNW.shape
    device = entered_BNW.device
    total = n_segments * n_candidates
    entered_BX = entered_BNW.reshape(n_rows, total)
    number_BX = entered_BX.cumsum(1) - 1
    place_BX = torch.where(
        entered_BX, n_slots + number_BX, n_slots + total
    )  # the refused share a spare place
    order_BX = torch.zeros(n_rows, n_slots + total + 1, dtype=torch.int64, device=device)
    order_BX[:, :n_slots] = torch.arange(n_slots, device=device)
    source_BX = torch.arange(n_slots, n_slots + total, device=device).expand(n_rows, total)
    order_BX.scatter_(1, place_BX, source_BX)
    before_BN = torch.cat(
        [entered_BNW.new_zeros(n_rows, 1, dtype=torch.int64), entered_BNW.sum(2).cumsum(1)], dim=1
    )
    window_BNM = before_BN[..., None] + torch.arange(n_slots, device=device)
    return order_BX.gather(1, window_BNM.flatten(1)).view(window_BNM.shape)


def take_rows(x_BX: Tensor, index_BJ: Tensor) -> Tensor:
    """x[b, index[b, j]] for rows of any trailing shape: (B, X, ...) and int64 (B, ...) to (B, *index, ...).

    One `index_select`, whose gradient is one indexed addition; `gather` would need an index as large as its result.
    """
    n_rows, length = x_BX.shape[:2]
    offset = torch.arange(n_rows, device=x_BX.device).view(-1, *[1] * (index_BJ.dim() - 1)) * length
    flat = x_BX.reshape(n_rows * length, *x_BX.shape[2:])
    taken = flat.index_select(0, (index_BJ + offset).reshape(-1))
    return taken.view(*index_BJ.shape, *x_BX.shape[2:])
