"""One update of the weights: truncated back-propagation through windows that continue each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from rmat.data.lanes import IGNORED, Batch
from rmat.model import LanguageModel, StreamState
from rmat.training.config import TrainConfig


@dataclass(frozen=True)
class StepResult:
    """What one update did."""

    state: StreamState | None
    """What the rows hold after the last window, without gradient; None: an empty memory."""
    nats: float
    """Cross entropy summed over the scored positions."""
    scored: int
    """Scored positions."""
    gradient_norm: float
    """Norm of the whole gradient before clipping."""
    skipped: str | None
    """Why the weights were left as they were, or None."""


def training_step(
    model: LanguageModel,
    optimizers: Sequence[Optimizer],
    batches: Sequence[Batch],
    state: StreamState | None,
    config: TrainConfig,
) -> StepResult:
    """Read `batches` one after the other from `state`, add up their gradients and update the weights once.

    Every batch is one window: `tokens` and `targets` of shape (B, T) on the device of `model`, `resets` there
    or on the CPU. The gradient flows through all of a window and ends at its start, where the state comes in
    detached. If a loss or the gradient is not finite the weights are not touched and the returned state is
    None, because the old one may hold what broke the numbers."""
    scored = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    nats = 0.0
    for batch in batches:
        start = state if config.carry_state else None
        device_type = batch.tokens.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            hidden, after = model.hidden(batch.tokens, start, resets=batch.resets)
            # The head only where something is scored: in most tasks that is a handful of places a row.
            asked = batch.targets != IGNORED
            logits = model.logits(hidden[asked])
        objective = next_token_loss(logits, batch.targets[asked], config.z_loss)
        nats += objective.nats.item()
        if not torch.isfinite(objective.total):
            return _skip(optimizers, nats, scored, math.nan, "the loss is not finite")
        if scored:
            (objective.total / scored).backward()
        state = after.detach()
    norm = gradient_norm(model)
    if not math.isfinite(norm):
        return _skip(optimizers, nats, scored, norm, "the gradient is not finite")
    if config.clip > 0:
        nn.utils.clip_grads_with_norm_(model.parameters(), config.clip, torch.tensor(norm))
    for optimizer in optimizers:
        optimizer.step()
    return StepResult(state, nats, scored, norm, None)


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


def gradient_norm(model: nn.Module) -> float:
    """Euclidean norm of all gradients of `model` taken as one vector."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def _skip(optimizers: Sequence[Optimizer], nats: float, scored: int, norm: float, reason: str) -> StepResult:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    return StepResult(None, nats, scored, norm, reason)
