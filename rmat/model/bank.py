"""What enters a bank and what leaves it, for all segments of a call at once.

Rows here are banks: rows of the batch, or rows times key heads where each head keeps slots of its own. The
running count of entered vectors numbers them, and the bank of a segment is the last M numbers before its
start: one gather, no loop (eviction="weakest" chooses each segment's bank from the one before it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from rmat.model.config import ModelConfig
from rmat.model.layout import Layout
from rmat.model.slots import MemoryMode, Slots
from rmat.model.writers import RANK_STEPS, price_of_writes, ranked
from rmat.ops.fifo import ABSENT, fifo_windows, strongest_windows, take_rows

FADE_TOKENS = 1024
"""Tokens of age in which a slot's score loses `fade`."""


_COUNTED: ContextVar[list[Tensor] | None] = ContextVar("counted", default=None)


@contextlib.contextmanager
def counted_writes() -> Iterator[list[Tensor]]:
    """Inside, layers whose writes have a price note in the list what they wrote: (2,) float64, what entered
    and out of how many tokens. By what stands there in the backward pass a price is paid: who reads a part of
    the rows may put the sums of all parts there."""
    counted: list[Tensor] = []
    token = _COUNTED.set(counted)
    try:
        yield counted
    finally:
        _COUNTED.reset(token)


def admit(
    config: ModelConfig,
    present_BNW: Tensor,
    score: Tensor | None,
    pushed: Tensor,
    layout: Layout,
    mode: MemoryMode,
) -> Tensor:
    """Which candidates enter: those of segments that close whose gate is open, (B, N, W) bool.

    Where the memory is "frozen" nothing enters a full bank.

    Args:
        score: of the write gate, (B, N, W) or of fewer axes with as many values. pushed: (B,) before the
            call.
    """
    entered_BNW = present_BNW & layout.closed[..., None]
    if config.refuses_writes:
        assert score is not None
        entered_BNW = entered_BNW & (score > 0).view(entered_BNW.shape)
    return (
        until_full(entered_BNW, pushed, layout.at.document, config.n_slots)
        if mode == "frozen"
        else entered_BNW
    )


def gate_slots(
    config: ModelConfig, score: Tensor, entered_BNW: Tensor, value: Tensor, layout: Layout, training: bool
) -> tuple[Tensor, Tensor]:
    """log g of the candidates, (B, N, W), and their values with what of the gate's gradient goes there.

    Args:
        score: as in `admit`. value: (B, N * W, ...).
    """
    log_gate_BNW = nn.functional.logsigmoid(score).view(entered_BNW.shape)
    if training and config.write_cost and log_gate_BNW.requires_grad:
        gate_BNW = log_gate_BNW.detach()
        written = torch.stack([entered_BNW.sum(), layout.closed.sum() * config.segment_len]).double()
        if (counted := _COUNTED.get()) is not None:
            counted.append(written)
        log_gate_BNW.register_hook(lambda x: x + price_of_writes(config, entered_BNW, gate_BNW, written))
    if config.gate_gradient == "value":
        # Through the logit, any harmless token is worth attending while a query finds nothing: gates open,
        # and what they let in evicts what was needed. Through the value, a gate learns from what its own slot
        # says.
        one = (log_gate_BNW - log_gate_BNW.detach()).exp().flatten(1).to(value.dtype)
        value, log_gate_BNW = value * one.view(*one.shape, *[1] * (value.dim() - 2)), log_gate_BNW.detach()
    return log_gate_BNW, value


def push(
    config: ModelConfig, entered_BNW: Tensor, new: Slots, held: Slots, pushed: Tensor, layout: Layout
) -> tuple[Slots, Slots, Tensor]:
    """Number what enters; gather every segment's bank and the one after the call.

    Args:
        new: the candidates (B, N * W), their ages counted from the call's first token. held: the bank (B, M)
            before the call, for a reader in the segment that is open. pushed: (B,) what entered it.

    Returns: the banks that the segments read (B, N, M), the bank (B, M) after the call, and what entered it.
    """
    held = held.older(-layout.base[:, :1])  # ages count from the call's start until it is known who reads
    index_BNM = _windows(config, entered_BNW, new, held, layout)
    last_document = layout.at.document.gather(1, layout.at.last[:, None])
    reader = torch.cat([layout.at.document, last_document], dim=1)
    base = torch.cat([layout.base, layout.open_base[:, None]], dim=1)
    n_writes = entered_BNW.shape[2]
    source = torch.cat(
        [torch.zeros_like(held.age), layout.at.document.repeat_interleave(n_writes, dim=1)], dim=1
    )
    bank = held.cat(new).take(index_BNM).older(base[..., None])
    bank = bank.only(take_rows(source, index_BNM) == reader[..., None])

    counted = torch.where(layout.at.document == last_document, entered_BNW.sum(2), 0)
    pushed = counted.sum(1) + torch.where(last_document[:, 0] == 0, pushed, 0)
    after = bank.map(lambda x: x[:, -1]).cleared()
    return bank.map(lambda x: x[:, :-1]), after, pushed


def _windows(config: ModelConfig, entered_BNW: Tensor, new: Slots, held: Slots, layout: Layout) -> Tensor:
    """Where the slots before every segment and after the call come from, (B, N + 1, M): see
    `rmat.ops.fifo`."""
    if config.eviction == "oldest":
        return fifo_windows(entered_BNW, config.n_slots)
    document = layout.at.document
    before = torch.cat([torch.zeros_like(document[:, :1]), document[:, :-1]], dim=1)
    return strongest_windows(
        torch.where(entered_BNW, strength(config, new).view(entered_BNW.shape), ABSENT),
        torch.where(held.filled, strength(config, held), ABSENT),
        document != before,
        config.n_newest,
    )


def strength(config: ModelConfig, slots: Slots) -> Tensor:
    """The score behind log g less what age takes of it, int64: rounding must not decide what is given up.

    All lose as much in the same time, so that the order is the same from whichever token ages count.
    """
    log_gate = slots.log_gate.detach()
    log_gate = log_gate.clamp(max=-torch.finfo(log_gate.dtype).tiny)
    score = ranked(log_gate - (-torch.expm1(log_gate)).log()).clamp(-(2**24), 2**24)
    faded = score * FADE_TOKENS - round(config.fade * RANK_STEPS) * slots.age
    return faded.clamp(min=ABSENT + 1)


def until_full(entered_BNW: Tensor, pushed: Tensor, document: Tensor, n_slots: int) -> Tensor:
    """Of the candidates that enter, those that find their document's bank not yet full.

    Args:
        pushed: (B,) vectors that entered before the call. document: (B, N) of every segment.
    """
    earlier_BNW = entered_BNW.flatten(1).cumsum(1).view(entered_BNW.shape) - entered_BNW.long()
    document = document.contiguous()
    start = torch.searchsorted(document, document)  # the first segment of each segment's document
    in_document_BNW = earlier_BNW - earlier_BNW[..., 0].gather(1, start)[..., None]
    before = torch.where(document == 0, pushed[:, None], 0)
    return entered_BNW & (in_document_BNW + before[..., None] < n_slots)
