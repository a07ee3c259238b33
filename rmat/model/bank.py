"""The bank of a memory: what each segment finds in its slots, and which of them a full bank gives up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmat.model.config import ModelConfig
from rmat.model.layout import Layout
from rmat.model.writers import RANK_STEPS
from rmat.ops.fifo import ABSENT, fifo_windows, strongest_windows


@dataclass(frozen=True)
class Bank:
    """The slots that each segment of a call reads, oldest first."""

    key_BNMKD: Tensor
    value_BNMKD: Tensor
    log_gate_BNM: Tensor
    filled_BNM: Tensor
    age_BNM: Tensor
    """Tokens from a slot's source to the start of the reading segment."""


def windows(
    config: ModelConfig, entered_BNW: Tensor, log_gate_BNW: Tensor, held: Bank, layout: Layout
) -> Tensor:
    """Where the slots before every segment and after the call come from, (B, N + 1, M): see `rmat.ops.fifo`."""
    if config.eviction == "oldest":
        return fifo_windows(entered_BNW, config.n_slots)
    document_BN = layout.document_BN
    before_BN = torch.cat([torch.zeros_like(document_BN[:, :1]), document_BN[:, :-1]], dim=1)
    return strongest_windows(
        torch.where(entered_BNW, strength(log_gate_BNW), ABSENT),
        torch.where(held.filled_BNM[:, 0], strength(held.log_gate_BNM[:, 0]), ABSENT),
        document_BN != before_BN,
    )


def strength(log_gate: Tensor) -> Tensor:
    """The score behind log g, int64 in steps of 1/256: rounding must not decide what is given up."""
    log_gate = log_gate.clamp(max=-torch.finfo(log_gate.dtype).tiny)
    score = log_gate - (-torch.expm1(log_gate)).log()
    return (score * RANK_STEPS).floor().clamp(-(2.0**30), 2.0**30).long()


def until_full(entered_BNW: Tensor, pushed_B: Tensor, document_BN: Tensor, n_slots: int) -> Tensor:
    """Of the candidates that enter, those that find their document's bank not yet full."""
    earlier_BNW = entered_BNW.flatten(1).cumsum(1).view(entered_BNW.shape) - entered_BNW.long()
    document_BN = document_BN.contiguous()
    start_BN = torch.searchsorted(document_BN, document_BN)  # the first segment of each segment's document
    in_document_BNW = earlier_BNW - earlier_BNW[..., 0].gather(1, start_BN)[..., None]
    before_BN = torch.where(document_BN == 0, pushed_B[:, None], 0)
    return entered_BNW & (in_document_BNW + before_BN[..., None] < n_slots)
