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
    index = torch.arange(n_slots, device=device).expand(n_rows, -1)
    windows = [index[:, None]]
    for first in range(0, n_segments, at_once):
        strength_BGW, begun = (x[:, first : first + at_once] for x in (strength_BNW, fresh))
        n_offered = strength_BGW[0].numel()
        new = torch.arange(n_offered, device=device) + n_slots + first * n_candidates
        joined = torch.cat([index, new.expand(n_rows, -1)], dim=1)
        order_BGP, strength_BGP = _orders(held, strength_BGW, begun, n_newest)
        # Who has left is weaker than as many as there is room for, and stays so: the banks of a group can be
        # chosen from all of its candidates.
        kept_BGM = order_BGP.topk(n_slots, dim=2, sorted=False).indices.sort(dim=2).values
        found = joined[:, None].expand_as(order_BGP).gather(2, kept_BGM)
        windows.append(found)
        index, held = found[:, -1], strength_BGP[:, -1].gather(1, kept_BGM[:, -1])
    return torch.cat(windows, dim=1)


def _orders(held: Tensor, strength_BGW: Tensor, begun: Tensor, n_newest: int) -> tuple[Tensor, Tensor]:
    """How the M held and the G * W offered vectors rank when each of G segments closes, and their strengths
    then, (B, G, M + G * W): what a later document made stale is `ABSENT`."""
    n_rows, n_segments, n_candidates = strength_BGW.shape
    n_slots = held.shape[1]
    segment = torch.arange(n_segments, device=held.device)
    source = torch.cat([segment.new_full((n_slots,), -1), segment.repeat_interleave(n_candidates)])
    document = begun.long().cumsum(1)
    source_document = torch.cat(
        [document.new_zeros(n_rows, n_slots), document.repeat_interleave(n_candidates, 1)], dim=1
    )
    stale_BGP = source_document[:, None] != document[..., None]
    strength_BGP = torch.cat([held, strength_BGW.flatten(1)], dim=1)[:, None]
    offered = (source >= 0) & (source <= segment[:, None])
    # What does not enter, or not yet, is weaker than an empty slot, so that banks stay filled from their end.
    out_BGP = (source >= 0) & ((strength_BGP == ABSENT) | ~offered)
    strength_BGP = torch.where(stale_BGP, ABSENT, strength_BGP)
    order_BGP = torch.where(out_BGP, 2 * ABSENT, strength_BGP)
    if n_newest:
        entered_BGP = ~out_BGP & (strength_BGP != ABSENT)
        newer_BGP = entered_BGP.flip(2).cumsum(2).flip(2)  # of those that entered, itself among them
        order_BGP = torch.where(entered_BGP & (newer_BGP <= n_newest), _SAFE, order_BGP)
    return order_BGP * 2**24 + torch.arange(len(source), device=held.device), strength_BGP


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
