"""The loss: how surprised the model is by each next token."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rmat.data.lanes import IGNORED


@dataclass(frozen=True)
class Objective:
    """Sums over the scored positions of one call; divide by `count` for means."""

    total: Tensor
    """() float32, what is minimised: cross entropy plus the weighted z-loss, summed."""
    nats: Tensor
    """() float32, cross entropy alone, summed, without gradient."""
    count: Tensor
    """() int64, scored positions."""


def next_token_loss(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Objective:
    """Cross entropy of `targets` under `logits`, in at least float32.

    logits: (..., V) of any floating dtype; targets: (...) int64, `IGNORED` where nothing is scored.
    z_loss: weight of the squared log-normaliser log(sum(exp(logits)))^2 at the scored positions (PaLM,
    arXiv 2204.02311, section 5).
    """
    flat_targets = targets.flatten()
    flat_logits = logits.reshape(-1, logits.shape[-1]).to(torch.promote_types(logits.dtype, torch.float32))
    nats = functional.cross_entropy(flat_logits, flat_targets, ignore_index=IGNORED, reduction="sum")
    scored = flat_targets != IGNORED
    total = nats
    if z_loss > 0:
        total = nats + z_loss * flat_logits.logsumexp(-1).square().mul(scored).sum()
    return Objective(total=total, nats=nats.detach(), count=scored.sum())
