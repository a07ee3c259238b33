"""Feed-forward network and the short convolution of a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmat.model.config import ModelConfig
from rmat.model.layout import Layout
from rmat.model.parameters import linear, parameter
from rmat.ops.attention import causal_convolution


class FeedForward(nn.Module):
    """gelu: W_2 gelu(W_1 x + b_1) + b_2.   swiglu: W_2 (silu(W_g x) * W_1 x), without biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        gated = config.mlp == "swiglu"
        self.up = linear(config.d_model, config.d_ff, bias=not gated)
        if gated:
            self.gate = linear(config.d_model, config.d_ff)
        self.down = linear(config.d_ff, config.d_model, bias=not gated)
        self.gated = gated

    def forward(self, x_BTE: Tensor) -> Tensor:
        """(B, T, E) to (B, T, E)."""
        hidden_BTF = F.silu(self.gate(x_BTE)) * self.up(x_BTE) if self.gated else F.gelu(self.up(x_BTE))
        out_BTE: Tensor = self.down(hidden_BTF)
        return out_BTE


class ShortConvolution(nn.Module):
    """y_t = sum_j w_j * x_{t-j} inside a document: lets a token's key see its neighbours."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = parameter(config.conv_width, config.d_model)

    def forward(self, x_BTE: Tensor, tail: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor | None]:
        """Convolve a call's tokens after the held `tail` (B, width - 1, E). Returns also the new tail."""
        if tail is None:
            return x_BTE * self.weight[0], None
        position = None if layout.uniform is not None else layout.at.position
        joined_BXE = torch.cat([tail, x_BTE.to(tail.dtype)], dim=1)
        y_BTE = causal_convolution(joined_BXE.to(x_BTE.dtype), self.weight, position)
        return y_BTE, layout.hold(joined_BXE, tail.shape[1])
