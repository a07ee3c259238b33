"""The recipe that trains small models on the recall task, the same for every variant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from rmat.data.lanes import IGNORED
from rmat.data.synthetic.recall import RecallTask
from rmat.evaluation.recall import Answers, score_answers
from rmat.model import LanguageModel, ModelConfig


def recall_config(variant: str, task: RecallTask, **overrides: Any) -> ModelConfig:
    """The small model of the recall experiments: 2 layers, width 64, segments of 32 tokens, 32 slots."""
    sizes: dict[str, Any] = {"n_layers": 2, "d_model": 64, "segment_len": 32, "n_slots": 32}
    return ModelConfig.preset(
        "tiny", variant=variant, **{**sizes, "vocab_size": task.vocab_size, **overrides}
    )


@dataclass(frozen=True, kw_only=True)
class RecallTraining:
    """What `train_recall` was told to do."""

    steps: int = 500
    """Updates of the weights."""
    batch_size: int = 32
    """Fresh rows per update."""
    lr: float = 3e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 50
    """Updates over which the learning rate rises linearly; a half cosine to a tenth follows."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Seed of the initial weights and of the rows."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"RecallTraining.{name}={getattr(self, name)}: give a number above zero")


def train_recall(
    config: ModelConfig,
    task: RecallTask,
    training: RecallTraining,
    *,
    device: str = "cpu",
    on_step: Callable[[int, float, Answers], None] | None = None,
) -> LanguageModel:
    """Train a model on the recall task from scratch, each row from an empty memory, the loss on the queries only.

    Args:
        config: the model; its vocabulary must hold the task's.
        task: rows of `task.length` tokens, read in one call so that the gradient reaches every write.
        training: the recipe.
        device: where to train.
        on_step: called after each update with its number (from 1), its loss in nats and the answers of its batch.
    """
    torch.manual_seed(training.seed)
    model = LanguageModel(config).to(device).train()
    generator = torch.Generator().manual_seed(training.seed)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.lr, betas=(0.9, 0.98))
    for step in range(1, training.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = training.lr * _schedule(step, training)
        batch = task.batch(training.batch_size, generator)
        targets = batch.targets.to(device)
        logits_BTV, _ = model(batch.tokens.to(device))
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        if on_step is not None:
            on_step(
                step,
                float(loss.detach()),
                score_answers(logits_BTV.argmax(-1).cpu(), batch.targets, batch.first),
            )
    return model


def _schedule(step: int, training: RecallTraining) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to a tenth."""
    if step <= training.warmup_steps:
        return step / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
