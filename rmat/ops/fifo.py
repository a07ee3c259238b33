"""Which vectors a bank holds at every moment of a call. Loop-level definition: `rmat/reference/loops.py`.

First in, first out, with refusal, for all segments at once and without a loop: a running count numbers the
vectors that entered; written one behind the other after the M slots that were there before, the bank of any
moment is M neighbours of that row. Where the weakest leave first, each bank is chosen from the one before
it: a loop over segments.
"""

from __future__ import annotations

import torch
from torch import Tensor

ABSENT = -(2**37)
"""Strength of what is not there, below every other."""

_SAFE = 2**37
"""That of what may not leave, above every other."""


def fifo_windows(entered_BNW: Tensor, n_slots: int) -> Tensor:
    """Where every slot of every bank of a call comes from.

    Args:
        entered_BNW: bool; candidate w of segment n enters the bank when segment n closes.
        n_slots: M.

    Returns: (B, N + 1, M) int64, oldest slot first. [:, n] is the bank that segment n reads, [:, N] the bank
    after
        the call. A value below M is that slot of the bank before the call, M + n * W + w is candidate w of
        segment n.
    """
    n_rows, n_segments, n_candidates = entered_BNW.shape
    device = entered_BNW.device
    total = n_segments * n_candidates
    entered = entered_BNW.reshape(n_rows, total)
    number = entered.cumsum(1) - 1
    place = torch.where(entered, n_slots + number, n_slots + total)  # the refused share a spare place
    order = torch.zeros(n_rows, n_slots + total + 1, dtype=torch.int64, device=device)
    order[:, :n_slots] = torch.arange(n_slots, device=device)
    source = torch.arange(n_slots, n_slots + total, device=device).expand(n_rows, total)
    order.scatter_(1, place, source)
    before = torch.cat(
        [entered_BNW.new_zeros(n_rows, 1, dtype=torch.int64), entered_BNW.sum(2).cumsum(1)], dim=1
    )
    window_BNM = before[..., None] + torch.arange(n_slots, device=device)
    return order.gather(1, window_BNM.flatten(1)).view(window_BNM.shape)


def strongest_windows(strength_BNW: Tensor, held: Tensor, fresh: Tensor, n_newest: int = 0) -> Tensor:
    """Where every slot of every bank of a call comes from, if the oldest of the weakest leaves first.

    Args:
        strength_BNW: int64 strengths of the candidates; that of what does not enter is `ABSENT`.
        held: (B, M) int64 strengths of the slots before the call; `ABSENT` for those that are not filled.
        fresh: (B, N) bool; segment n belongs to another document than the one before it, or the call's
            start: nothing held counts.
        n_newest: so many of the newest are held, however weak.

    Returns: (B, N + 1, M) int64, as `fifo_windows` does. What counts stands oldest first at the end.
    """
    n_rows, n_segments, n_candidates = strength_BNW.shape
    n_slots = held.shape[1]
    places = torch.arange(n_slots + n_candidates, device=held.device)
    index = places[:n_slots].expand(n_rows, -1)
    windows = [index]
    for n in range(n_segments):
        held = torch.where(fresh[:, n, None], ABSENT, held)
        new = places[n_slots:] + n * n_candidates
        joined = torch.cat([index, new.expand(n_rows, -1)], dim=1)
        strength = torch.cat([held, strength_BNW[:, n]], dim=1)
        # What does not enter is weaker than an empty slot, so that banks stay filled from their end.
        refused = (strength == ABSENT) & (places >= n_slots)
        order = torch.where(refused, 2 * ABSENT, strength)
        if n_newest:
            entered = strength != ABSENT
            newer = entered.flip(1).cumsum(1).flip(1)  # of those that entered, itself among them
            order = torch.where(entered & (newer <= n_newest), _SAFE, order)
        order = order * 2**24 + places
        kept = order.topk(n_slots, dim=1, sorted=False).indices.sort(dim=1).values
        index, held = joined.gather(1, kept), strength.gather(1, kept)
        windows.append(index)
    return torch.stack(windows, dim=1)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, j]] for rows of any trailing shape: (B, X, ...) and int64 (B, ...) to (B, *index, ...).

    One `index_select`, whose gradient is one indexed addition; `gather` would need an index as large as its
    result.
    """
    n_rows, length = x.shape[:2]
    offset = torch.arange(n_rows, device=x.device).view(-1, *[1] * (index.dim() - 1)) * length
    flat = x.reshape(n_rows * length, *x.shape[2:])
    taken = flat.index_select(0, (index + offset).reshape(-1))
    return taken.view(*index.shape, *x.shape[2:])
