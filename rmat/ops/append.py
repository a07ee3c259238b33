"""Tensors that grow token by token in buffers with room, behind values that never change.

`append` gives what `torch.cat` gives. Without gradients it writes the new tokens behind the old ones, into a
buffer that both values are views of, as long as there is room and nobody has gone on from the old value
before: it stays what it was, and n tokens cost n steps and not n copies of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROOM = 128
"""Tokens of room in a new buffer."""


@dataclass(frozen=True)
class Buffer:
    """What views of it share."""

    x: Tensor
    ends: set[int]
    """Where values end that nothing was appended to. To take one out is to claim the room behind it, which
    happens in one step: of two threads that go on from one value, one copies."""


def append(x: Tensor, new: Tensor) -> Tensor:
    """x (B, X, ...) and behind it new (B, T, ...), as (B, X + T, ...) in the type of x."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat([x, new.to(x.dtype)], dim=1)
    n_old, n_new = x.shape[1], new.shape[1]
    buffer, end = getattr(x, "buffer", (None, n_old))
    if buffer is None or not _claim(buffer, end, n_new):
        buffer, end = Buffer(x.new_empty(x.shape[0], n_old + n_new + ROOM, *x.shape[2:]), set()), n_old
        buffer.x[:, :n_old] = x
    buffer.x[:, end : end + n_new] = new
    buffer.ends.add(end + n_new)
    return _view(buffer, end + n_new, n_old + n_new)


def newest(x: Tensor, n_tokens: int) -> Tensor:
    """The last tokens of x (B, X, ...): a view that can be appended to like x."""
    buffer, end = getattr(x, "buffer", (None, 0))
    if buffer is not None:
        return _view(buffer, end, n_tokens)
    return x[:, x.shape[1] - n_tokens :]


def _claim(buffer: Buffer, end: int, n_new: int) -> bool:
    """Whether there is room behind `end` for this caller."""
    # Tensors made in inference mode cannot be written outside of it.
    if end + n_new > buffer.x.shape[1] or buffer.x.is_inference() != torch.is_inference_mode_enabled():
        return False
    try:
        buffer.ends.remove(end)
    except KeyError:
        return False
    return True


def _view(buffer: Buffer, end: int, n_tokens: int) -> Tensor:
    view = buffer.x[:, end - n_tokens : end]
    view.buffer = (buffer, end)  # type: ignore[attr-defined]
    return view
