"""Parameters before `initialize` draws them: float32 whatever torch's default type is."""

from __future__ import annotations

import torch
from torch import nn

from rmat.model.config import ModelConfig


def linear(n_in: int, n_out: int, *, bias: bool = False) -> nn.Linear:
    """A matrix (n_out, n_in), and a bias if asked for."""
    return nn.Linear(n_in, n_out, bias=bias, dtype=torch.float32)


def parameter(*shape: int) -> nn.Parameter:
    """A tensor that is learned."""
    return nn.Parameter(torch.empty(shape, dtype=torch.float32))


def norm(config: ModelConfig) -> nn.Module:
    """LayerNorm or RMSNorm over the model width."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.d_model, eps=config.epsilon, dtype=torch.float32)
    return nn.RMSNorm(config.d_model, eps=config.epsilon, dtype=torch.float32)
