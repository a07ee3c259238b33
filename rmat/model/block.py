"""One block of the paper: pre-normalised streams, fused, then the feed-forward network.

x  = conv(norm(h))                     the block input
h' = h + W_o fuse(A_full(x), A_chunk(x), A_mem(x))
h" = h' + mlp(norm(h'))                the block output
bank <- writer and gate of x or h"     when a segment closes
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from rmat.model.bank import Bank
from rmat.model.config import ModelConfig
from rmat.model.feedforward import FeedForward, ShortConvolution, make_norm
from rmat.model.layout import Layout
from rmat.model.memory import Memory
from rmat.model.rotary import Rotary
from rmat.model.state import LayerState
from rmat.model.streams import Fusion, LocalProjection, chunked_attention, full_attention, joint_attention


class Block(nn.Module):
    """Streams, fusion and feed-forward network of one layer, with its own memory bank."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = make_norm(config)
        if config.conv_width:
            self.convolution = ShortConvolution(config)
        self.local = nn.ModuleDict({name: LocalProjection(config, name) for name in config.held})
        if config.has_memory:
            self.memory = Memory(config)
        if len(config.streams) > 1 and config.fusion != "joint":
            self.fusion = Fusion(config)
        self.output = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=False)
        self.feedforward_norm = make_norm(config)
        self.feedforward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, h_BTE: Tensor, state: LayerState, layout: Layout, rotary: Rotary, memory: str
    ) -> tuple[Tensor, LayerState]:
        """Read a call's tokens.

        Args:
            h_BTE: residual stream. state: this layer's part of the stream state.
            memory: "on", or an ablation: "zeroed", "frozen", "shuffled" (see `LanguageModel.forward`).

        Returns: the residual stream after the block, and the layer's new state.
        """
        x_BTE = self.norm(h_BTE)
        if self.config.conv_width:
            x_BTE, tail = self.convolution(x_BTE, state.tail, layout)
            state = dataclasses.replace(state, tail=tail)
        bank = None
        if self.config.has_memory:
            if self.config.write_from == "input":
                bank, state = self.memory.write(x_BTE, state, layout, memory)
            else:
                assert layout.n_segments == 1, "writing from the output is sequential over segments"
                bank = self.memory.held_bank(state)
        mixed_BTHD, state = self._attend(x_BTE, bank, state, layout, rotary, memory)
        h_BTE = h_BTE + self.dropout(self.output(mixed_BTHD.flatten(2)))
        h_BTE = h_BTE + self.dropout(self.feedforward(self.feedforward_norm(h_BTE)))
        if self.config.has_memory and self.config.write_from == "output":
            _, state = self.memory.write(h_BTE, state, layout, memory)
        return h_BTE, state

    def _attend(
        self, x_BTE: Tensor, bank: Bank | None, state: LayerState, layout: Layout, rotary: Rotary, memory: str
    ) -> tuple[Tensor, LayerState]:
        """The streams of `config.streams`, fused: (B, T, H, D)."""
        local = {}
        for name, projection in self.local.items():
            field = "chunked" if name == "chunked" else "full"
            held = getattr(state, f"{field}_key"), getattr(state, f"{field}_value")
            local[name], key, value = projection(x_BTE, *held, layout, rotary)
            state = dataclasses.replace(state, **{f"{field}_key": key, f"{field}_value": value})
        if self.config.fusion == "joint" and local:
            slots = (
                (self.memory.queries(x_BTE), *self.memory.keys(bank, memory)) if bank is not None else None
            )
            return joint_attention(self.config, next(iter(local.values())), layout, slots), state
        streams = []
        for stream in self.config.streams:
            if stream == "memory":
                assert bank is not None
                streams.append(self.memory.read(x_BTE, bank, layout, memory))
            else:
                attention = full_attention if stream == "full" else chunked_attention
                streams.append(attention(self.config, local[stream if stream in local else "shared"], layout))
        return self.fusion(x_BTE, streams) if len(streams) > 1 else streams[0], state
