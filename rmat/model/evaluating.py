"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` without dropout and noise inside the block, and in the mode it was in behind it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
