"""The whole model for one document, token by token, from parameters by name: chapter one, with `loops.py`.

    x  = conv(norm(h))                     the block input
    h' = h + W_o fuse(A_full(x), A_chunk(x), A_mem(x))
    h" = h' + mlp(norm(h'))                the block output
    bank <- writer and gate of x or h"     when a segment closes

Nothing of `rmat.model` runs here but the configuration's arithmetic, so an error there cannot hide in the
expectation. Layers may be computed one after the other because each reads and writes only its own bank.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rmat.model.config import ModelConfig
from rmat.reference import loops as ref

AGE_PLACES = 24  # of memory_position="age"
Parameters = Mapping[str, Tensor]


@dataclass
class LayerMemory:
    """One layer's bank during a document: slots oldest first, the newest gated vector, and what was pushed
    so far; `own` are the banks of the key heads where each has its own."""

    slots: list[ref.Slot] = field(default_factory=list)
    newest: Tensor | None = None
    pushed: list[int] = field(default_factory=list)
    own: list["LayerMemory"] = field(default_factory=list)


def reference_logits(config: ModelConfig, parameters: Parameters, tokens: Tensor) -> Tensor:
    """Logits (T, V) of one document `tokens` (T,), differentiable with respect to the parameters."""
    return reference_run(config, parameters, tokens)[0]


def reference_run(
    config: ModelConfig, parameters: Parameters, tokens: Tensor
) -> tuple[Tensor, list[LayerMemory]]:
    """Logits (T, V), and every layer's memory after the document's last token.

    Args:
        parameters: by the names of `LanguageModel.named_parameters`, such as "blocks.0.memory.key.weight".
        tokens: (T,) int64.
    """
    h = torch.stack([parameters["embedding.weight"][token] for token in tokens.tolist()])
    memories = []
    for layer in range(config.n_layers):
        prefix = f"blocks.{layer}."
        own = {name.removeprefix(prefix): p for name, p in parameters.items() if name.startswith(prefix)}
        h, memory = _block(config.of_layer(layer), own, h)
        memories.append(memory)
    head = parameters["embedding.weight" if config.tie_embeddings else "head.weight"]
    return torch.stack([head @ _norm(config, parameters, "norm", vector) for vector in h]), memories


def _block(config: ModelConfig, own: Parameters, h: Tensor) -> tuple[Tensor, LayerMemory]:
    x = torch.stack([_norm(config, own, "norm", vector) for vector in h])
    if config.conv_width:
        x = ref.causal_depthwise_convolution(x, own["convolution.weight"].flip(0).T)
    projected = {name: _project(config, own, f"local.{name}", x) for name in config.held}
    memory = LayerMemory()
    if config.slots_per == "key_head":
        memory.own = [LayerMemory() for _ in range(config.n_kv_heads)]
    outputs: list[Tensor] = []
    for p in range(h.shape[0]):
        mixed = [_attend(config, own, projected, memory, x, p, head) for head in range(config.n_heads)]
        middle = h[p] + own["output.weight"] @ torch.cat(mixed)
        if config.attention_bias == "all":
            middle = middle + own["output.bias"]
        outputs.append(middle + _feedforward(config, own, _norm(config, own, "feedforward_norm", middle)))
        if config.has_memory and (p + 1) % config.segment_len == 0:
            if config.memory_projections == "local":
                _admit(config, own, memory, projected, x, p + 1)
                continue
            start = p + 1 - config.segment_len
            left = x[start : p + 1] if config.write_from == "input" else torch.stack(outputs[start:])
            _write(config, own, memory, left, start)
    return torch.stack(outputs), memory


def _norm(config: ModelConfig, own: Parameters, name: str, vector: Tensor) -> Tensor:
    weight = own[f"{name}.weight"]
    if config.norm == "rmsnorm":
        return _rms_norm(config, vector, weight)
    centred = vector - vector.mean()
    return _rms_norm(config, centred, weight) + own[f"{name}.bias"]


def _rms_norm(config: ModelConfig, vector: Tensor, weight: Tensor) -> Tensor:
    return vector / torch.sqrt((vector * vector).mean() + config.epsilon) * weight


def _feedforward(config: ModelConfig, own: Parameters, vector: Tensor) -> Tensor:
    if config.mlp == "swiglu":
        gate = own["feedforward.gate.weight"] @ vector
        return own["feedforward.down.weight"] @ (
            gate / (1 + torch.exp(-gate)) * (own["feedforward.up.weight"] @ vector)
        )
    up = own["feedforward.up.weight"] @ vector + own["feedforward.up.bias"]
    return (
        own["feedforward.down.weight"] @ (up * (1 + torch.erf(up / math.sqrt(2))) / 2)
        + own["feedforward.down.bias"]
    )


def _project(config: ModelConfig, own: Parameters, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def split(part: str, heads: int) -> Tensor:
        rows = []
        for vector in x:
            projected = own[f"{name}.{part}.weight"] @ vector
            if config.attention_bias != "none":
                projected = projected + own[f"{name}.{part}.bias"]
            row = projected.view(heads, config.head_dim)
            if config.qk_norm and part != "value":
                weight = own[f"{name}.{part}_norm.weight"]
                row = torch.stack([_rms_norm(config, each, weight) for each in row])
            rows.append(row)
        return torch.stack(rows)

    return split("query", config.n_heads), split("key", config.n_kv_heads), split("value", config.n_kv_heads)


def _attend(
    config: ModelConfig,
    own: Parameters,
    projected: dict[str, tuple[Tensor, Tensor, Tensor]],
    memory: LayerMemory,
    x: Tensor,
    p: int,
    head: int,
) -> Tensor:
    """The fused streams of one head of one token (D,)."""
    size = config.segment_len
    theta = config.rope_theta[head] if isinstance(config.rope_theta, tuple) else config.rope_theta
    seen = {
        "full": ref.segment_keys(p, size),
        "chunked": ref.chunk_keys(p, config.chunk_len, config.chunk_lookback),
    }
    found: list[list[ref.Entry]] = []
    if config.fusion == "joint":
        if config.local_streams:
            union = sorted({s for stream in config.local_streams for s in seen[stream]})
            (queries, keys, values) = next(iter(projected.values()))
            found.append(
                ref.local_entries(queries, keys, values, p, union, head, size, theta, config.rope_scaling)
            )
        if config.has_memory and config.memory_projections == "local":
            found.append(_admitted_entries(config, own, memory, projected, p, head))
        elif config.has_memory:
            found.append(_memory_entries(config, own, memory, x, p, head))
        together = ref.read([entry for entries in found for entry in entries])
        return x.new_zeros(config.head_dim) if together is None else together
    for stream in config.streams:
        if stream == "memory":
            found.append(_memory_entries(config, own, memory, x, p, head))
        else:
            queries, keys, values = projected.get(stream, projected.get("shared"))  # type: ignore[misc]
            found.append(
                ref.local_entries(
                    queries, keys, values, p, seen[stream], head, size, theta, config.rope_scaling
                )
            )
    parts = [ref.read(entries) for entries in found]
    if "memory" in config.streams and config.memory_read == "stick_breaking":
        at = config.streams.index("memory")
        parts[at] = _read_newest(config, own, found[at], head)
    if len(parts) == 1:
        return x.new_zeros(config.head_dim) if parts[0] is None else parts[0]
    return ref.fuse(parts, [_fusion_score(config, own, x[p], stream, head) for stream in range(len(parts))])


def _fusion_score(config: ModelConfig, own: Parameters, vector: Tensor, stream: int, head: int) -> Tensor:
    if config.fusion == "scalar":
        return own["fusion.logits"][stream]
    if config.fusion == "head":
        return own["fusion.logits"][stream, head]
    row = stream * config.n_heads + head
    return (own["fusion.map.weight"][row] * vector).sum() + own["fusion.map.bias"][row]


def _read_newest(config: ModelConfig, own: Parameters, slots: list[ref.Entry], head: int) -> Tensor:
    bias = own["memory.read_bias"][head]
    rest = bias.new_zeros(config.head_dim)
    if config.null_slot:
        rest = own["memory.null_value"][head // (config.n_heads // config.n_kv_heads)]
    return ref.read_newest([ref.Entry(logit=slot.logit + bias, value=slot.value) for slot in slots], rest)


def _memory_entries(
    config: ModelConfig, own: Parameters, memory: LayerMemory, x: Tensor, p: int, head: int
) -> list[ref.Entry]:
    query = (own["memory.query.weight"] @ x[p]).view(config.n_heads, config.head_dim)
    null = None
    if config.null_slot and config.memory_read == "softmax":
        group = head // (config.n_heads // config.n_kv_heads)
        logit = (query[head] * own["memory.null_key"][group]).sum() / math.sqrt(config.head_dim)
        null = ref.Entry(logit=logit, value=own["memory.null_value"][group])
    offsets = []
    for index, slot in enumerate(memory.slots):
        if config.memory_position == "rank":
            offsets.append(own["memory.place_key"][ref.slot_rank(index, len(memory.slots))])
        elif config.memory_position == "age":
            start = ref.segment_start(p, config.segment_len)
            offsets.append(
                own["memory.place_key"][ref.age_bucket(start, slot.position, config.segment_len, AGE_PLACES)]
            )
    return ref.memory_entries(query, memory.slots, head, offsets=offsets, null=null)


def _admitted_entries(
    config: ModelConfig,
    own: Parameters,
    memory: LayerMemory,
    projected: dict[str, tuple[Tensor, Tensor, Tensor]],
    p: int,
    head: int,
) -> list[ref.Entry]:
    """What a head of a token finds beside local keys where slots are tokens of the local stream."""
    queries, keys, values = next(iter(projected.values()))
    group = head // (config.n_heads // config.n_kv_heads)
    start = ref.segment_start(p, config.segment_len)
    theta = config.rope_theta[head] if isinstance(config.rope_theta, tuple) else config.rope_theta
    rotary = theta if config.memory_position == "rotary" else None
    scaling = config.rope_scaling
    one = queries.new_ones(())
    sinks = [
        ref.Slot(key=keys[s], value=values[s], log_gate=0 * one, position=s)
        for s in ref.sink_tokens(start, config.write_lag, config.n_sinks)
    ]
    bank = memory.own[group].slots if memory.own else memory.slots
    entries = ref.admitted_entries(
        queries[p],
        [*sinks, *bank],
        head,
        at=p - start,
        first=-config.lookback,
        theta=rotary,
        scaling=scaling,
    )
    if config.null_slot:  # it stands at the first token of the segment
        null = ref.Slot(
            key=own["memory.null_key"], value=own["memory.null_value"], log_gate=0 * one, position=start
        )
        entries += ref.admitted_entries(
            queries[p], [null], head, at=p - start, first=1, theta=rotary, scaling=scaling
        )
    return entries


def _admit(
    config: ModelConfig,
    own: Parameters,
    memory: LayerMemory,
    projected: dict[str, tuple[Tensor, Tensor, Tensor]],
    x: Tensor,
    end: int,
) -> None:
    """What enters the banks of local keys when the segment before token `end` closes."""
    _, keys, values = next(iter(projected.values()))
    tokens = ref.offered_tokens(end, config.segment_len, config.write_lag, config.n_sinks)
    for number, bank in enumerate(memory.own or [memory]):
        scorer = None
        if config.scores_writes:
            scorer = own["memory.writer.score.weight"][number], own["memory.writer.score.bias"][number]
        candidates = ref.offer(x, tokens, config.writes_per_segment, scorer, best=config.writer == "select")
        for candidate in candidates:
            if not ref.gate_is_open(candidate, config.refuses_writes):
                continue
            at = candidate.position
            slot = ref.Slot(key=keys[at], value=values[at], log_gate=ref.log_gate(candidate), position=at)
            if config.gate_gradient == "value":
                slot = ref.learn_through_value(slot)
            bank.slots = _pushed(config, bank.slots, slot)
            bank.pushed.append(at)


def _pushed(config: ModelConfig, bank: list[ref.Slot], slot: ref.Slot) -> list[ref.Slot]:
    weakest, n_newest = config.eviction == "weakest", math.floor(config.newest_share * config.n_slots)
    return ref.push(bank, slot, config.n_slots, weakest, config.fade, n_newest)


def _write(config: ModelConfig, own: Parameters, memory: LayerMemory, left: Tensor, start: int) -> None:
    """What a closed segment pushes: `left` (S, E) are its vectors, `start` its first token."""
    scorer = None
    if config.scores_writes:
        scorer = own["memory.writer.score.weight"][0], own["memory.writer.score.bias"][0]
    if config.writer == "mean":
        candidates = ref.write_mean(left, start, scorer)
    elif config.writer == "pool":
        candidates = ref.write_pool(left, start, own["memory.writer.queries"], scorer)
    elif config.writer == "select":
        assert scorer is not None
        candidates = ref.write_select(left, start, config.writes_per_segment, scorer)
    else:
        candidates = ref.write_all(left, start, scorer)
    before = left.new_zeros(config.d_model) if memory.newest is None else memory.newest
    for candidate in candidates:
        if not ref.gate_is_open(candidate, config.refuses_writes):
            continue
        vector = candidate.vector
        if config.recurrent_gate:
            vector = ref.gru_gate(
                vector,
                before,
                own["memory.gate.candidate.weight"],
                own["memory.gate.recurrent.weight"],
                own["memory.gate.candidate.bias"],
            )
            memory.newest = vector
        slot = ref.Slot(
            key=(own["memory.key.weight"] @ vector).view(config.n_kv_heads, config.head_dim),
            value=(own["memory.value.weight"] @ vector).view(config.n_kv_heads, config.head_dim),
            log_gate=ref.log_gate(candidate),
            position=candidate.position,
        )
        if config.gate_gradient == "value":
            slot = ref.learn_through_value(slot)
        memory.slots = _pushed(config, memory.slots, slot)
        memory.pushed.append(candidate.position)
