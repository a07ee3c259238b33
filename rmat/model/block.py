"""One block of the paper: pre-normalised streams, fused, then the feed-forward network.

x  = conv(norm(h))                     the block input
h' = h + W_o fuse(A_full(x), A_chunk(x), A_mem(x))
h" = h' + mlp(norm(h'))                the block output
bank <- writer and gate of x or h"     when a segment closes
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmat.model.admitted import AdmittedMemory
from rmat.model.call import Call
from rmat.model.config import ModelConfig
from rmat.model.feedforward import FeedForward, ShortConvolution
from rmat.model.memory import Memory
from rmat.model.parameters import linear, norm
from rmat.model.slots import Slots, ablate
from rmat.model.state import AdmittedState, KeyValues, LayerState, MemoryState
from rmat.model.streams import (
    Fusion,
    Local,
    LocalProjection,
    chunked_attention,
    full_attention,
    joint_attention,
)


class Handover(Protocol):
    """Where rows are read in parts, by several processes: the way of a layer's state from part to part."""

    def receive(self, state: LayerState) -> LayerState:
        """The state before this part; `state` is the one before the whole row."""

    def send(self, state: LayerState) -> None:
        """Hand on the state after this part."""


class Block(nn.Module):
    """Streams, fusion and feed-forward network of one layer, with its own memory bank."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = norm(config)
        if config.conv_width:
            self.convolution = ShortConvolution(config)
        self.local = nn.ModuleDict({name: LocalProjection(config) for name in config.held})
        if config.has_memory:
            kind = Memory if config.memory_projections == "own" else AdmittedMemory
            self.memory: Any = kind(config)
        if len(config.streams) > 1 and config.fusion != "joint":
            self.fusion = Fusion(config)
        self.output = linear(
            config.n_heads * config.head_dim, config.d_model, bias=config.attention_bias == "all"
        )
        self.feedforward_norm = norm(config)
        self.feedforward = FeedForward(config)

    def forward(
        self,
        h_BTE: Tensor,
        state: LayerState,
        call: Call,
        handover: Handover | None = None,
    ) -> tuple[Tensor, LayerState]:
        """Read a call's tokens: residual stream and this layer's state before, and both after. `handover` is
        given the state after them as soon as it is known, before anything is attended to."""
        state = state if handover is None else handover.receive(state)
        x_BTE = self.norm(h_BTE)
        tail, memory, bank = state.tail, state.memory, None
        if self.config.conv_width:
            x_BTE, tail = self.convolution(x_BTE, tail, call.layout)
        if isinstance(memory, MemoryState) and self.config.write_from == "input":
            bank, memory = self.memory.write(x_BTE, memory, call)
        elif isinstance(memory, MemoryState):
            assert call.layout.n_segments == 1, "writing from the output is sequential over segments"
            bank = memory.bank()
        local, held = self._local(x_BTE, state, call)
        if isinstance(memory, AdmittedState):
            bank, memory = self.memory.write(x_BTE, next(iter(local.values())), memory, call)
        if handover is not None:
            handover.send(LayerState(**held, tail=tail, memory=memory, windows={}))
        bank = None if bank is None else ablate(bank, call.memory)
        mixed_BTHD = self._attend(x_BTE, local, bank, call)
        h_BTE = h_BTE + self._dropout(self.output(mixed_BTHD.flatten(2)), call)
        h_BTE = h_BTE + self._dropout(self.feedforward(self.feedforward_norm(h_BTE)), call)
        if isinstance(memory, MemoryState) and self.config.write_from == "output":
            _, memory = self.memory.write(h_BTE, memory, call)
            if call.training:
                h_BTE = h_BTE + _nothing_of(LayerState(memory=memory)).to(h_BTE.dtype)
        goes_on = call.step and not call.layout.closes
        windows = {name: each.window(self._learned()) for name, each in local.items()} if goes_on else {}
        return h_BTE, LayerState(**held, tail=tail, memory=memory, windows=windows)

    def _dropout(self, x_BTE: Tensor, call: Call) -> Tensor:
        return F.dropout(x_BTE, self.config.dropout) if call.training else x_BTE

    def _local(
        self, x_BTE: Tensor, state: LayerState, call: Call
    ) -> tuple[dict[str, Local], dict[str, KeyValues]]:
        """Queries, keys and values of every set of local projections, and what is held afterwards."""
        local, held = {}, {}
        for name, projection in self.local.items():
            kept = "chunked" if name == "chunked" else "full"
            window = state.windows.get(name) if call.step else None
            if window is not None and window.learned != self._learned():
                window = None
            local[name], held[kept] = projection(x_BTE, getattr(state, kept), call.ranges[name], window)
        return local, held

    def _learned(self) -> tuple[object, ...]:
        """The parameters among the slots of a `Window`."""
        local_keys = self.config.has_memory and self.config.memory_projections == "local"
        return self.memory.learned() if local_keys else ()

    def _attend(self, x_BTE: Tensor, local: dict[str, Local], bank: Slots | None, call: Call) -> Tensor:
        """The streams of `config.streams`, fused: (B, T, H, D)."""
        if self.config.fusion == "joint" and local:
            name, only = next(iter(local.items()))
            if bank is None or only.n_slots:
                return joint_attention(only)
            if self.config.memory_projections == "local":
                slots, query_RSHD = self.memory.keys(bank), self.memory.queries(only)
                if call.step and query_RSHD is None:
                    local[name] = only = only.behind(slots)
                return joint_attention(only, slots, query_RSHD)
            query_BNSHD = call.layout.fold(self.memory.queries(x_BTE))
            return joint_attention(only, self.memory.keys(bank), query_BNSHD.flatten(0, 1))
        streams = []
        for stream in self.config.streams:
            if stream == "memory":
                assert bank is not None
                streams.append(self.memory.read(x_BTE, bank, call.layout))
            else:
                attention = full_attention if stream == "full" else chunked_attention
                streams.append(attention(local[stream if stream in local else "shared"]))
        mixed_BTHD: Tensor = self.fusion(x_BTE, streams) if len(streams) > 1 else streams[0]
        return mixed_BTHD


def _nothing_of(state: LayerState) -> Tensor:
    """Zero, by which what is held has a gradient, though of zero, also where no later token of the call reads
    it: a price of writes is paid, and weights are updated, whatever the rows beside them read."""
    return sum((x[:0].sum() for x in state.tensors().values() if x.is_floating_point()), torch.zeros(()))
