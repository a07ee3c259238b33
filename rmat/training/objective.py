"""What training minimises."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmat.context_parallel import read_parallel
from rmat.data.lanes import IGNORED
from rmat.model import LanguageModel, StreamState
from rmat.training.config import TrainConfig


class Window(nn.Module):
    """The loss of one window as one forward call, which is what DDP and FSDP act on. With a `group` of
    processes that share its rows: of this process's part."""

    def __init__(self, model: LanguageModel, config: TrainConfig, group: Any = None) -> None:
        super().__init__()
        self.model, self.config, self.group = model, config, group

    def forward(
        self, tokens: Tensor, targets: Tensor, resets: Tensor, state: StreamState | None
    ) -> tuple[Tensor, Tensor, StreamState]:
        """Loss and cross entropy, summed over the scored positions, and the state after it, detached."""
        narrow = self.config.dtype == "bfloat16"
        # Without its cache of weights, which inside another autocast outlives the update of the weights.
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=narrow, cache_enabled=False):
            if self.group is None:
                hidden, after = self.model.hidden(tokens, state, resets=resets)
            else:
                part = read_parallel(self.model, tokens, state, resets=resets, group=self.group)
                hidden, after = part.hidden, part.state
                index, valid = part.index.to(tokens.device), part.valid.to(tokens.device)
                targets = torch.where(valid, targets.gather(1, index), IGNORED)
            # The head only where something is scored: in most tasks that is a handful of places a row.
            asked = targets != IGNORED
            logits = self.model.logits(hidden[asked])
        objective = next_token_loss(logits, targets[asked], self.config.z_loss)
        return objective.total, objective.nats, after.detach()


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
