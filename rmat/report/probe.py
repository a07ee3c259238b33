"""What every layer does with one segment, seen through hooks.

The model runs as always. Its fused kernels give no attention weights, so these are recomputed from the
queries that the hooks caught and from the states before and after the call, by the public methods of
`Memory`, `AdmittedMemory`, `Writer` and `Fusion`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rmat.model import LanguageModel, ModelConfig
from rmat.model.block import Block
from rmat.model.call import Call
from rmat.model.slots import Slots
from rmat.model.state import AdmittedState, KeyValues, LayerState, MemoryState
from rmat.model.streams import Local
from rmat.model.writers import Tokens
from rmat.ops.attention import at_least_float32, stick_breaking


@dataclass(frozen=True, kw_only=True)
class BankView:
    """One bank over the T tokens of one segment: a layer's, or a key head's.

    The slots stand in their order, oldest first; M is `n_slots`.
    """

    slot_THM: Tensor
    """Weights of the slots; zero where a slot is empty, and for query heads that do not see the bank."""
    filled: int
    """Slots that the segment found filled: the last so many."""
    entered: int
    """Slots that the segment left in the bank when it closed: the last so many of those after it."""
    held: int
    """Slots filled after the segment: the last so many."""
    age_M: Tensor
    """int64 ages in tokens of the slots after the segment; 0 for empty ones."""
    gate_M: Tensor | None
    """Gates g = sigmoid(score) of the slots after the segment, if there is a score."""


@dataclass(frozen=True, kw_only=True)
class MemoryView:
    """One layer's memory over the T tokens of one segment; floats in at least float32.

    Weights are those of the read over [null slot | filled slots], or of the one softmax over [null slot |
    sinks | filled slots | local keys] where slots keep local keys (memory_projections="local").
    """

    banks: tuple[BankView, ...]
    """The layer's bank, or that of every key head."""
    null_TH: Tensor
    """The null slot's part, or with stick-breaking what no slot took; zero in a model without one."""
    sink_THJ: Tensor
    """Weights of the J sinks that the segment found."""
    sink_age_J: Tensor
    """int64 ages in tokens of these at the segment's start."""
    share_TH: Tensor
    """Share of filled slots in the mixed streams."""
    write: Tensor | None
    """Score of every token (writers "select" and "all"), (T,) or (T, K) by key head, or (T,) of the segment's
    best candidate for all its tokens."""
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
    call: Call | None = None
    x: Tensor | None = None
    local: Local | None = None
    hooks: list[Any] = field(default_factory=list)


def stream_names(config: ModelConfig) -> tuple[str, ...]:
    """Streams whose weights in the mix can be told apart: one softmax over all keys ("joint") has one weight
    for both local streams together, and one for each part of a memory that keeps local keys."""
    both = config.fusion == "joint" and len(config.local_streams) == 2
    if config.has_memory and config.memory_projections == "local":
        local = "local" if both else config.local_streams[0]
        return (local, "memory", *["sinks"] * (config.n_sinks > 0), *["null"] * config.null_slot)
    return ("local", "memory")[: 1 + config.has_memory] if both else tuple(config.streams)


class Probe(AbstractContextManager["Probe"]):
    """Watches the calls of a model; `views` tells of the last one.

    A call must hold one row and stay inside one segment, from its start where the layer's memory is to be
    seen.
    """

    def __init__(self, model: LanguageModel) -> None:
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
        caught.before, caught.call = inputs[1:]
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
    config, names = block.config, stream_names(block.config)
    x_BTE, output, before, after = caught.x, caught.output, caught.before, caught.after
    assert x_BTE is not None and output is not None and before is not None and after is not None
    assert x_BTE.shape[0] == 1, "one row at a time"
    held = before.memory
    if isinstance(held, AdmittedState):
        return _admitted(block, caught, held, after.memory)
    n_tokens, view = x_BTE.shape[1], None
    fusion_ATH = torch.ones(1, n_tokens, config.n_heads)
    if hasattr(block, "fusion"):
        fusion_ATH = block.fusion.weights(x_BTE)[:, 0].expand(-1, n_tokens, config.n_heads)
    if held is not None:
        logits_THJ = _logits(block, block.memory.queries(x_BTE)[0], held.bank())
        if config.fusion == "joint" and config.local_streams:
            share_TH = torch.sigmoid(logits_THJ.logsumexp(2) - _local_mass(block, caught, n_tokens))
            fusion_ATH = torch.stack([1 - share_TH, share_TH])
        slot_THM, null_TH = _weights(config, logits_THJ)
        banks = _banks(config, slot_THM, held, after.memory)
        write, update = _written(block, x_BTE if config.write_from == "input" else output, held)
        view = MemoryView(
            banks=banks,
            null_TH=null_TH,
            sink_THJ=slot_THM[..., :0],
            sink_age_J=torch.zeros(0, dtype=torch.int64),
            share_TH=fusion_ATH[names.index("memory")] * banks[0].slot_THM.sum(2),
            write=write,
            update=update,
        )
    return LayerView(streams=names, fusion_ATH=fusion_ATH, memory=view)


def _admitted(block: Any, caught: _Caught, before: AdmittedState, after: Any) -> LayerView:
    """The view of a layer whose memory keeps local keys."""
    config, memory, x_BTE, local = block.config, block.memory, caught.x, caught.local
    assert x_BTE is not None and local is not None
    n_tokens, names = x_BTE.shape[1], stream_names(config)
    found, _ = memory.write(x_BTE, local, before, caught.call)
    query_RSHD = memory.queries(local)
    query_RSHD = local.q_RSHD if query_RSHD is None else query_RSHD
    logits_THJ = _logits(block, query_RSHD[0, :n_tokens], found)
    local_TH = _local_mass(block, caught, n_tokens)
    total_TH = torch.logaddexp(logits_THJ.logsumexp(2), local_TH)
    null_THJ, sink_THJ, slot_THM = (
        (logits_THJ - total_TH[..., None])
        .exp()
        .split([int(config.null_slot), config.n_sinks, config.n_slots], 2)
    )
    parts = {names[0]: (local_TH - total_TH).exp(), "memory": slot_THM.sum(2)}
    parts |= {"sinks": sink_THJ.sum(2), "null": null_THJ.sum(2)}
    n_found = int(found.filled[0, 0, : config.n_sinks].sum()) // config.slot_groups
    view = MemoryView(
        banks=_banks(config, slot_THM, before, after),
        null_TH=parts["null"],
        sink_THJ=sink_THJ[..., :n_found],
        sink_age_J=found.age[0, 0, :n_found].reshape(n_found, config.slot_groups)[:, 0],
        share_TH=parts["memory"],
        write=memory.writer.scores(x_BTE)[0] if config.scores_writes else None,
        update=None,
    )
    return LayerView(streams=names, fusion_ATH=torch.stack([parts[name] for name in names]), memory=view)


def _logits(block: Any, query_THD: Tensor, slots: Slots) -> Tensor:
    """Logits (T, H, J) of the keys of the memory, J = [null slot of a softmax |] slots (1, 1, M)."""
    memory, config = block.memory, block.config
    key_BNJKD, _, bias = memory.keys(slots)
    query_THD, group = at_least_float32(query_THD), config.n_heads // config.n_kv_heads
    key_JHD = at_least_float32(key_BNJKD[0, 0]).repeat_interleave(group, 1)
    bias = bias[0, 0] if bias.dim() == 3 else bias[0, 0].T.repeat_interleave(group, 0)
    logits_THJ = torch.einsum("thd,jhd->thj", query_THD, key_JHD.to(query_THD.dtype))
    logits_THJ = logits_THJ * config.head_dim**-0.5 + bias
    return logits_THJ + memory.read_bias[:, None] if config.memory_read == "stick_breaking" else logits_THJ


def _local_mass(block: Any, caught: _Caught, n_tokens: int) -> Tensor:
    """Log-sum-exp (T, H) of the logits of the local keys of a joint softmax."""
    config, local = block.config, caught.local
    assert local is not None
    query_SHD = at_least_float32(local.q_RSHD[0])
    key_JHD = at_least_float32(local.k_RJKD[0]).repeat_interleave(config.n_heads // config.n_kv_heads, 1)
    logits_SHJ = torch.einsum("shd,jhd->shj", query_SHD, key_JHD) * config.head_dim**-0.5
    mask = local.range.seen(*config.local_streams)
    if mask is not None:
        logits_SHJ = logits_SHJ + mask[0, 0, :, None]
    return logits_SHJ.logsumexp(2)[:n_tokens]


def _banks(config: ModelConfig, slot_THM: Tensor, before: Any, after: Any) -> tuple[BankView, ...]:
    """The layer's banks, from the weights of the slots and the states before and after the call."""
    banks, group = [], config.n_heads // config.slot_groups
    age, log_gate = (x[0].reshape(config.n_slots, -1) for x in (after.slots.age, after.slots.log_gate))
    pushed = zip(before.pushed.flatten().tolist(), after.pushed.flatten().tolist(), strict=True)
    for bank, (earlier, later) in enumerate(pushed):
        filled, held = min(earlier, config.n_slots), min(later, config.n_slots)
        entered = 0
        if later > earlier:  # the segment closed: what is older than what it offered was there before
            oldest = config.segment_len + config.write_lag
            entered = int((age[config.n_slots - held :, bank] <= oldest).sum())
        weight_THM = torch.zeros_like(slot_THM)
        here = slice(bank * group, (bank + 1) * group), slice(config.n_slots - filled, None)
        weight_THM[:, *here] = slot_THM[:, *here]
        banks.append(
            BankView(
                slot_THM=weight_THM,
                filled=filled,
                entered=entered,
                held=held,
                age_M=age[:, bank],
                gate_M=log_gate[:, bank].exp() if config.scores_writes else None,
            )
        )
    return tuple(banks)


def _written(block: Any, written_BTE: Tensor, before: MemoryState) -> tuple[Tensor | None, float | None]:
    """`write` and `update` of a `MemoryView`."""
    config, writer = block.config, block.memory.writer
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
    return write_T, update


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
