"""Reading without dropout and noise, whatever mode a module is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

_reading: ContextVar[frozenset[int]] = ContextVar("rmat_reading", default=frozenset())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Calls of `model` in this block, on this thread, use neither dropout nor noise on the scores of writes.

    The module is not touched: another thread may train it at the same time. `model` may be a wrapper whose
    child is the language model. Do not leave the block by a `yield`: what runs between the pieces would
    count as inside.
    """
    models = {id(model), *map(id, model.children())}
    token = _reading.set(_reading.get() | models)
    try:
        yield
    finally:
        _reading.reset(token)


def is_training(model: nn.Module) -> bool:
    """Whether a call of `model` uses dropout and noise: it is in training mode and not read by
    `evaluating`."""
    return model.training and id(model) not in _reading.get()
