"""What every layer does with one segment, seen through hooks.

The model runs as always. Its fused kernels give no attention weights, so these are recomputed from the
queries that the hooks caught and from the states before and after the call, by the public methods of
`Memory`, `Writer` and `Fusion`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rmat.model import LanguageModel, ModelConfig
from rmat.model.block import Block
from rmat.model.state import KeyValues, LayerState, MemoryState
from rmat.model.streams import Local
from rmat.model.writers import Tokens
from rmat.ops.attention import at_least_float32, stick_breaking


@dataclass(frozen=True, kw_only=True)
class MemoryView:
    """One layer's memory over the T tokens of one segment; floats in at least float32.

    The bank's slots stand in their order, oldest first; M is `n_slots`, W is `writes_per_segment`.
    """

    slot_THM: Tensor
    """Weights of the read over [null slot | filled slots], the part of the slots; zero where a slot is
    empty."""
    null_TH: Tensor
    """The null slot's part, or with stick-breaking what no slot took; zero in a model without one."""
    filled: int
    """Slots that the segment found filled: the last so many."""
    entered: int
    """Slots that the segment left in the bank when it closed: the last so many of those after it."""
    held: int
    """Slots filled after the segment: the last so many."""
    age_M: Tensor
    """int64 ages in tokens of the slots after the segment; 0 for empty ones."""
    write_T: Tensor | None
    """Score of every token (writers "select" and "all"), or of the segment's best candidate for all its
    tokens."""
    gate_M: Tensor | None
    """Gates g = sigmoid(score) of the slots after the segment, if there is a score."""
    update: float | None
    """Mean of the GRU gate z over candidates and width, if the segment closed and there is such a gate."""


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One layer over the T tokens of one segment."""

    streams: tuple[str, ...]
    """Names of the A streams."""
    fusion_ATH: Tensor
    """Weight of each stream in the mix."""
    memory: MemoryView | None

    def weight_TH(self, stream: str) -> Tensor:
        """Weight of one stream."""
        return self.fusion_ATH[self.streams.index(stream)]


@dataclass
class _Caught:
    """What the hooks of one block caught in a call."""

    before: LayerState | None = None
    after: LayerState | None = None
    output: Tensor | None = None
    x: Tensor | None = None
    local: Local | None = None
    hooks: list[Any] = field(default_factory=list)


def stream_names(config: ModelConfig) -> tuple[str, ...]:
    """Streams whose weights in the mix can be told apart: one softmax over all keys ("joint") has one weight
    for both local streams together."""
    if config.fusion == "joint" and len(config.local_streams) == 2:
        return ("local", "memory") if config.has_memory else ("local",)
    return tuple(config.streams)


class Probe(AbstractContextManager["Probe"]):
    """Watches the calls of a model; `views` tells of the last one.

    A call must hold one row and stay inside one segment, from its start where the layer's memory is to be
    seen.
    """

    def __init__(self, model: LanguageModel) -> None:
        if model.config.has_memory and model.config.memory_projections == "local":
            raise ValueError(
                "memory_projections='local' is not shown in reports yet: take a model whose memory has "
                "projections of its own ('own')"
            )
        self._model = model
        self._caught = [_Caught() for _ in model.blocks]

    def __enter__(self) -> Probe:
        for block, caught in zip(self._model.blocks, self._caught, strict=True):
            assert isinstance(block, Block)
            caught.hooks = [
                block.register_forward_hook(_catch_block(caught)),
                block.norm.register_forward_hook(_catch_x(caught)),
            ]
            if hasattr(block, "convolution"):
                caught.hooks.append(block.convolution.register_forward_hook(_catch_x(caught)))
            if block.config.fusion == "joint":
                caught.hooks += [p.register_forward_hook(_catch_local(caught)) for p in block.local.values()]
        return self

    def __exit__(self, *_: object) -> None:
        for caught in self._caught:
            for hook in caught.hooks:
                hook.remove()

    def views(self) -> list[LayerView]:
        """What every layer did in the last call."""
        return [_view(block, caught) for block, caught in zip(self._model.blocks, self._caught, strict=True)]


def _catch_block(caught: _Caught) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Tensor, LayerState]) -> None:
        caught.before = inputs[1]
        caught.output, caught.after = outputs

    return hook


def _catch_x(caught: _Caught) -> Any:
    def hook(_: nn.Module, __: Any, outputs: Any) -> None:
        caught.x = outputs[0] if isinstance(outputs, tuple) else outputs

    return hook


def _catch_local(caught: _Caught) -> Any:
    def hook(_: nn.Module, __: Any, outputs: tuple[Local, KeyValues]) -> None:
        caught.local = outputs[0]

    return hook


def _view(block: Any, caught: _Caught) -> LayerView:
    config = block.config
    x_BTE, output, before, after = caught.x, caught.output, caught.before, caught.after
    assert x_BTE is not None and output is not None and before is not None and after is not None
    assert x_BTE.shape[0] == 1, "one row at a time"
    n_tokens = x_BTE.shape[1]
    memory = logits_THJ = None
    if isinstance(before.memory, MemoryState) and isinstance(after.memory, MemoryState):
        logits_THJ = _logits(block, x_BTE, before.memory)
        written = x_BTE if config.write_from == "input" else output
        memory = _memory_view(block, logits_THJ, written, before.memory, after.memory)
    fusion_ATH = torch.ones(1, n_tokens, config.n_heads)
    if config.fusion == "joint" and config.local_streams and logits_THJ is not None:
        assert caught.local is not None
        local_TH = _local_mass(block, caught.local, n_tokens)
        share_TH = torch.sigmoid(logits_THJ.logsumexp(2) - local_TH)
        fusion_ATH = torch.stack([1 - share_TH, share_TH])
    elif hasattr(block, "fusion"):
        fusion_ATH = block.fusion.weights(x_BTE)[:, 0].expand(-1, n_tokens, config.n_heads)
    return LayerView(streams=stream_names(config), fusion_ATH=fusion_ATH, memory=memory)


def _logits(block: Any, x_BTE: Tensor, before: MemoryState) -> Tensor:
    """Logits (T, H, J) of the memory read, J = [null slot of a softmax |] slots."""
    memory, config = block.memory, block.config
    key_BNJKD, _, bias_BNJ = memory.keys(before.bank())
    query_THD = at_least_float32(memory.queries(x_BTE)[0])
    key_JHD = at_least_float32(key_BNJKD[0, 0]).repeat_interleave(config.n_heads // config.n_kv_heads, 1)
    logits_THJ = torch.einsum("thd,jhd->thj", query_THD, key_JHD.to(query_THD.dtype))
    logits_THJ = logits_THJ * config.head_dim**-0.5 + bias_BNJ[0, 0]
    return logits_THJ + memory.read_bias[:, None] if config.memory_read == "stick_breaking" else logits_THJ


def _local_mass(block: Any, local: Local, n_tokens: int) -> Tensor:
    """Log-sum-exp (T, H) of the logits of the local keys of a joint softmax."""
    config = block.config
    query_SHD = at_least_float32(local.q_RSHD[0])
    key_JHD = at_least_float32(local.k_RJKD[0]).repeat_interleave(config.n_heads // config.n_kv_heads, 1)
    logits_SHJ = torch.einsum("shd,jhd->shj", query_SHD, key_JHD) * config.head_dim**-0.5
    mask_SJ = local.range.seen(*config.local_streams)[0, 0]
    return (logits_SHJ + mask_SJ[:, None]).logsumexp(2)[:n_tokens]


def _memory_view(
    block: Any, logits_THJ: Tensor, written_BTE: Tensor, before: MemoryState, after: MemoryState
) -> MemoryView:
    config, writer = block.config, block.memory.writer
    filled = min(int(before.pushed), config.n_slots)
    held = min(int(after.pushed), config.n_slots)
    entered = 0
    if after.pushed > before.pushed:  # the segment closed: what it left is no older than it is long
        entered = int((after.slots.age[0, config.n_slots - held :] <= config.segment_len).sum())
    slot_THM, null_TH = _weights(config, logits_THJ)
    held_M = torch.arange(config.n_slots, device=slot_THM.device) >= config.n_slots - filled
    write_T, update = None, None
    if config.scores_writes and config.writer in ("select", "all"):
        write_T = writer.scores(written_BTE)[0]
    if written_BTE.shape[1] == config.segment_len:
        offered = writer.candidates(_absorbed(writer, written_BTE, before), written_BTE.dtype)
        if write_T is None and offered.score is not None:
            write_T = offered.score.max().expand(config.segment_len)
        if config.recurrent_gate:
            assert before.recurrent is not None
            gru, m_BE = block.memory.gate, before.recurrent
            h_BWE = offered.vector_RWE.to(gru.candidate.weight.dtype)
            from_memory_BE = gru.recurrent(m_BE.to(gru.recurrent.weight.dtype))
            update = float(torch.sigmoid(gru.candidate(h_BWE) + from_memory_BE[:, None]).mean())
    gate_M = None
    if config.scores_writes:
        gate_M = after.slots.log_gate[0].exp()
    return MemoryView(
        slot_THM=torch.where(held_M, slot_THM, 0.0),
        null_TH=null_TH,
        filled=filled,
        entered=entered,
        held=held,
        age_M=after.slots.age[0],
        write_T=write_T,
        gate_M=gate_M,
        update=update,
    )


def _weights(config: ModelConfig, logits_THJ: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the slots (T, H, M) and of the null slot (T, H), zero in a model without one."""
    if config.memory_read == "stick_breaking":
        slot_1THM, rest_1TH = stick_breaking(logits_THJ[None])
        return slot_1THM[0], rest_1TH[0] * config.null_slot
    weight_THJ = logits_THJ.softmax(2)
    if config.null_slot:
        return weight_THJ[..., 1:], weight_THJ[..., 0]
    return weight_THJ, torch.zeros_like(weight_THJ[..., 0])


def _absorbed(writer: Any, written_BTE: Tensor, before: MemoryState) -> Any:
    """The writer's summary of a whole segment."""
    offset_RS = torch.arange(written_BTE.shape[1], device=written_BTE.device)[None]
    return writer.absorb(before.pending, Tokens(written_BTE, offset_RS, torch.ones_like(offset_RS).bool()))
