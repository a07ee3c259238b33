"""Which vectors a bank holds at every moment of a call. Loop-level definition: `rmat/reference/loops.py`.

First in, first out, with refusal, for all segments at once and without a loop: a running count numbers the vectors that
entered; written one behind the other after the M slots that were there before, the bank of any moment is M neighbours
of that row. Where the weakest leave first, each bank is chosen from the one before it: a loop over segments.
"""

from __future__ import annotations

import torch
from torch import Tensor

ABSENT = -(2**32)
"""Strength of what is not there, below every other."""


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


def strongest_windows(strength_BNW: Tensor, held_BM: Tensor, fresh_BN: Tensor) -> Tensor:
    """Where every slot of every bank of a call comes from, if the oldest of the weakest leaves first.

    Args:
        strength_BNW: int64 strengths of the candidates; that of what does not enter is `ABSENT`.
        held_BM: int64 strengths of the slots before the call; `ABSENT` for those that are not filled.
        fresh_BN: bool; segment n belongs to another document than the one before it, or the call's start: nothing held counts.

    Returns: (B, N + 1, M) int64, as `fifo_windows` does. What counts stands oldest first at the end.
    """
    n_rows, n_segments, n_candidates = strength_BNW.shape
    n_slots = held_BM.shape[1]
    place_X = torch.arange(n_slots + n_candidates, device=held_BM.device)
    index_BM = place_X[:n_slots].expand(n_rows, -1)
    windows = [index_BM]
    for n in range(n_segments):
        held_BM = torch.where(fresh_BN[:, n, None], ABSENT, held_BM)
        new_W = place_X[n_slots:] + n * n_candidates
        index_BX = torch.cat([index_BM, new_W.expand(n_rows, -1)], dim=1)
        strength_BX = torch.cat([held_BM, strength_BNW[:, n]], dim=1)
        # What does not enter is weaker than an empty slot, so that banks stay filled from their end.
        refused_BX = (strength_BX == ABSENT) & (place_X >= n_slots)
        order_BX = torch.where(refused_BX, 2 * ABSENT, strength_BX) * 2**24 + place_X
        kept_BM = order_BX.topk(n_slots, dim=1, sorted=False).indices.sort(dim=1).values
        index_BM, held_BM = index_BX.gather(1, kept_BM), strength_BX.gather(1, kept_BM)
        windows.append(index_BM)
    return torch.stack(windows, dim=1)


def take_rows(x_BX: Tensor, index_BJ: Tensor) -> Tensor:
    """x[b, index[b, j]] for rows of any trailing shape: (B, X, ...) and int64 (B, ...) to (B, *index, ...).

    One `index_select`, whose gradient is one indexed addition; `gather` would need an index as large as its result.
    """
    n_rows, length = x_BX.shape[:2]
    offset = torch.arange(n_rows, device=x_BX.device).view(-1, *[1] * (index_BJ.dim() - 1)) * length
    flat = x_BX.reshape(n_rows * length, *x_BX.shape[2:])
    taken = flat.index_select(0, (index_BJ + offset).reshape(-1))
    return taken.view(*index_BJ.shape, *x_BX.shape[2:])
