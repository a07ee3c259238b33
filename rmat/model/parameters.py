"""Parameters before `initialize` draws them: float32 whatever torch's default type is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rmat.model.config import ModelConfig


def linear(n_in: int, n_out: int, *, bias: bool = False) -> nn.Linear:
    """A matrix (n_out, n_in), and a bias if asked for."""
    return nn.Linear(n_in, n_out, bias=bias, dtype=torch.float32)


def embedding(n_rows: int, width: int) -> nn.Embedding:
    """A table (n_rows, width). On the device meta nothing is drawn: that would import torch's compiler, which
    takes seconds."""
    table = torch.empty(n_rows, width, dtype=torch.float32)
    made: nn.Embedding = nn.Embedding.from_pretrained(table, freeze=False)
    if not table.is_meta:
        made.reset_parameters()
    return made


def projected(x: Tensor, *maps: nn.Linear) -> tuple[Tensor, ...]:
    """What maps, all with a bias or none, make of the same vectors (..., n_in). Where these are many, one
    product with all matrices is faster; where they are few, joining the matrices costs more than it saves.
    Maps that something has taken the place of (an adapter, a quantised map) are called."""
    if not all(map(is_plain, maps)):
        return tuple(each(x) for each in maps)
    widths = [each.out_features for each in maps]
    if x.shape[:-1].numel() < sum(widths):
        return tuple(nn.functional.linear(x, each.weight, each.bias) for each in maps)
    bias = None if maps[0].bias is None else torch.cat([each.bias for each in maps])
    joined = nn.functional.linear(x, torch.cat([each.weight for each in maps]), bias)
    return tuple(joined.split(widths, dim=-1))


def is_plain(each: nn.Module) -> bool:
    """Whether a map is what `linear` made, so that its weight is all there is to it."""
    return type(each) is nn.Linear


def adapted(x: Tensor, each: nn.Module) -> Tensor:
    """What a map that is not plain makes of x (..., n_in), in the type of x."""
    made: Tensor = each(x.to(next(each.parameters()).dtype))
    return made.to(x.dtype)


def parameter(*shape: int) -> nn.Parameter:
    """A tensor that is learned."""
    return nn.Parameter(torch.empty(shape, dtype=torch.float32))


def norm(config: ModelConfig) -> nn.Module:
    """LayerNorm or RMSNorm over the model width."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.d_model, eps=config.epsilon, dtype=torch.float32)
    return nn.RMSNorm(config.d_model, eps=config.epsilon, dtype=torch.float32)
