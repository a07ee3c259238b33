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


def strongest_windows(
    strength_BNW: Tensor, held: Tensor, fresh: Tensor, n_newest: int = 0, at_once: int | None = None
) -> Tensor:
    """Where every slot of every bank of a call comes from, if the oldest of the weakest leaves first.

    Args:
        strength_BNW: int64 strengths of the candidates; that of what does not enter is `ABSENT`.
        held: (B, M) int64 strengths of the slots before the call; `ABSENT` for those that are not filled.
        fresh: (B, N) bool; segment n belongs to another document than the one before it, or the call's
            start: nothing held counts.
        n_newest: so many of the newest are held, however weak.
        at_once: segments whose banks are chosen side by side. None: one on a CPU, where fewer candidates are
            less work; on a GPU, which is slow at many small calls, as many as offer what a bank holds.

    Returns: (B, N + 1, M) int64, as `fifo_windows` does. What counts stands oldest first at the end.
    """
    n_rows, n_segments, n_candidates = strength_BNW.shape
    n_slots, device = held.shape[1], held.device
    if at_once is None:
        at_once = max(n_slots // n_candidates, 1) if device.type == "cuda" else 1
    at_once = min(at_once, n_segments)
    places = torch.arange(n_slots + at_once * n_candidates, device=device)
    segment = (places - n_slots).div(n_candidates, rounding_mode="floor")
    offered = segment <= places[:at_once, None]
    # What does not enter, or not yet, is weaker than an empty slot, so that banks stay filled from their end.
    strengths = torch.where(strength_BNW == ABSENT, 2 * ABSENT, strength_BNW).flatten(1) * 2**24
    empty = torch.where(segment < 0, ABSENT, 2 * ABSENT) * 2**24
    document = fresh.long().cumsum(1)
    source_document = document.repeat_interleave(n_candidates, 1)
    index, held, last = places[:n_slots].expand(n_rows, -1), held * 2**24, torch.zeros_like(document[:, :1])
    windows = [index[:, None]]
    for first in range(0, n_segments, at_once):
        begun = document[:, first : first + at_once]
        begin, end = first * n_candidates, (first + begun.shape[1]) * n_candidates
        size = n_slots + end - begin
        joined = torch.cat([index, (places[n_slots:size] + begin).expand(n_rows, -1)], dim=1)
        strength = torch.cat([held, strengths[:, begin:end]], dim=1)
        source = torch.cat([last.expand(-1, n_slots), source_document[:, begin:end]], dim=1)
        # When each segment closes: what was offered by then, and by the same document.
        there_BGP = offered[: begun.shape[1], :size] & (source[:, None] == begun[..., None])
        order_BGP = torch.where(there_BGP, strength[:, None], empty[:size])
        if n_newest:
            entered_BGP = there_BGP & (strength > ABSENT * 2**24)[:, None]
            newer_BGP = entered_BGP.flip(2).cumsum(2).flip(2)  # of those that entered, itself among them
            order_BGP = torch.where(entered_BGP & (newer_BGP <= n_newest), _SAFE * 2**24, order_BGP)
        order_BGP = order_BGP + places[:size]
        # Who has left is weaker than as many as there is room for, and stays so: the banks of a group can be
        # chosen from all of its candidates.
        kept_BGM = order_BGP.topk(n_slots, dim=2, sorted=False).indices.sort(dim=2).values
        windows.append(joined[:, None].expand(-1, begun.shape[1], -1).gather(2, kept_BGM))
        index, last = windows[-1][:, -1], begun[:, -1:]
        held = torch.where(there_BGP[:, -1], strength, ABSENT * 2**24).gather(1, kept_BGM[:, -1])
    return torch.cat(windows, dim=1)


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
