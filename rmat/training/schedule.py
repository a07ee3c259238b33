"""The learning rate over a run, as a factor of its peak."""

import math

from rmat.training.config import TrainConfig


def progress(step: int, elapsed: float, config: TrainConfig) -> float:
    """Share of the run that is over, 0 to 1, before update `step` (counted from 0) at `elapsed` seconds.

    The step count and the time budget both end a run, so the one nearer to its end decides.
    """
    share = step / config.steps
    if config.max_minutes is not None:
        share = max(share, elapsed / (60 * config.max_minutes))
    return min(share, 1.0)


def learning_rate_factor(step: int, share: float, config: TrainConfig) -> float:
    """Factor of `config.lr` for update `step` (counted from 0) when `share` of the run is over.

    A linear warm-up, then half a cosine or a plateau with a linear decay, down to `config.min_lr_ratio`.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    warmup_share = min(config.warmup_steps / config.steps, 1.0)
    if config.schedule == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * _part(share, warmup_share)))
    else:
        height = 1 - _part(share, 1 - config.decay_share)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * height


def _part(share: float, start: float) -> float:
    """How far `share` has come from `start` to 1, 0 to 1."""
    return min(max((share - start) / (1 - start), 0.0), 1.0) if start < 1 else 1.0
