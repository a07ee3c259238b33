"""One update of the weights: truncated back-propagation through windows that continue each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from rmat.data.lanes import IGNORED, Batch
from rmat.model import LanguageModel, StreamState
from rmat.training.config import TrainConfig
from rmat.training.distributed import Replica


@dataclass(frozen=True)
class StepResult:
    """What one update did, in all processes together; the state is that of this process's rows."""

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
    replica: Replica | None = None,
) -> StepResult:
    """Read `batches` one after the other from `state`, add up their gradients and update the weights once.

    Every batch is one window of the rows of this process: `tokens` and `targets` of shape (B, T) on the
    device of `model`, `resets` there or on the CPU. The gradient flows through all of a window and ends at
    its start, where the state comes in detached. If a loss or the gradient is not finite the weights are not
    touched and the returned state is None, because the old one may hold what broke the numbers. `replica`
    joins the model with those of other processes, whose rows count as if they were read here; None: there are
    none."""
    replica = Replica(model, config) if replica is None else replica
    processes = replica.processes
    own = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
    (scored,) = map(int, processes.total_of_rows(own))
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    nats, broken = 0.0, 0.0
    for number, batch in enumerate(batches):
        start = state if config.carry_state else None
        with replica.window(batch, start, last=number == len(batches) - 1) as (total, window_nats, state):
            # Where nothing is scored too: DDP waits for a backward pass, and would take the next one for it.
            (total / max(scored, 1)).backward()
        nats += window_nats.item()
        broken += not bool(torch.isfinite(total))
    nats, broken, *used = processes.total(nats, broken, *replica.used())
    replica.drop_unused(used)
    if not scored:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
    norm = gradient_norm(model)
    if broken or not math.isfinite(norm):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        reason = f"the {'loss' if broken else 'gradient'} is not finite"
        return StepResult(None, nats, scored, math.nan if broken else norm, reason)
    if config.clip > 0:
        nn.utils.clip_grads_with_norm_(model.parameters(), config.clip, torch.tensor(norm))
    for optimizer in optimizers:
        optimizer.step()
    return StepResult(state, nats, scored, norm, None)


def gradient_norm(model: nn.Module) -> float:
    """Euclidean norm of all gradients of `model` taken as one vector."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
