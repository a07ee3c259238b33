"""Parameters before `initialize` draws them: float32 whatever torch's default type is."""

from __future__ import annotations

import torch
from torch import nn


def linear(n_in: int, n_out: int, *, bias: bool = False) -> nn.Linear:
    """A matrix (n_out, n_in), and a bias if asked for."""
    return nn.Linear(n_in, n_out, bias=bias, dtype=torch.float32)


def parameter(*shape: int) -> nn.Parameter:
    """A tensor that is learned."""
    return nn.Parameter(torch.empty(shape, dtype=torch.float32))


def norm(kind: str, width: int) -> nn.Module:
    """LayerNorm ("layernorm") or RMSNorm over the model width."""
    if kind == "layernorm":
        return nn.LayerNorm(width, dtype=torch.float32)
    return nn.RMSNorm(width, eps=1e-6, dtype=torch.float32)
