"""What a model carries from call to call: an immutable value whose size does not depend on how much was
read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rmat.model.config import ModelConfig
from rmat.model.slots import Slots
from rmat.settings import whole

NEVER = -1.0e30
"""Score of an empty place in the open segment: below every real score, and finite so that gradients stay
finite."""

PENDING = {"pending": 0.0, "pending_score": NEVER, "pending_offset": -1}
"""The tensors that writers keep of an open segment, and what their places hold while they are empty."""

TENSORS = {
    **dict.fromkeys(("full_key", "full_value", "chunked_key", "chunked_value", "tail"), "model"),
    **dict.fromkeys(("slot_key", "slot_value"), "model"),
    "slot_log_gate": "wide",
    "slot_age": "integer",
    "pushed": "integer",
    "recurrent": "wide",
    "pending": "wide",
    "pending_score": "wide",
    "pending_offset": "integer",
    "score": "wide",
    **dict.fromkeys(("sink_key", "sink_value"), "model"),
}
"""Every tensor that a layer may carry, by its name in files, and its type: the model's, that or float32 if
it is narrower ("wide"), int64. All but the places of `PENDING` are zero before anything was read."""

Pending = tuple[Tensor, ...]
"""What a writer keeps of the open segment: vectors (B, P, E), their scores (B, P), their int64 offsets in
the segment (B, P); as many of the three as the writer has use for (see `rmat/model/writers.py`)."""


@dataclass(frozen=True)
class KeyValues:
    """Keys before rotation and values of the last L tokens, (B, L, K, D), newest last."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Window:
    """What the next token of the open segment sees, as attention takes it: keys that are rotated, and values,
    (B, J, K, D). A step of decoding leaves it to the next one. It is derived from the rest of the state, is
    not saved, and every other call does without."""

    key: Tensor
    value: Tensor
    n_slots: int = 0
    """How many of them, in front, are slots of the memory."""
    bias: Tensor | None = None
    """What is added to the logits of slots and of as many local keys as may follow; None without slots."""
    learned: tuple[object, ...] = ()
    """Which parameters stand among the slots, and as what version: with others it is of no use."""


@dataclass(frozen=True, kw_only=True, repr=False)
class MemoryState:
    """One layer's memory."""

    slots: Slots
    """The bank; the last min(pushed, M) slots are filled."""
    pushed: Tensor
    """(B,) int64: vectors that entered the bank since the document began."""
    recurrent: Tensor | None
    """(B, E) the newest vector that passed the GRU gate; None without such a gate."""
    pending: Pending

    def bank(self) -> Slots:
        """The slots as the first segment of a call reads them, (B, 1, M)."""
        return self.slots.map(lambda x: x[:, None])


@dataclass(frozen=True, kw_only=True, repr=False)
class AdmittedState:
    """One layer's memory with memory_projections="local"; the tokens that wait to be offered are those of
    the local stream. With slots_per="key_head" there is an axis K behind those given here."""

    slots: Slots
    """The bank; the last min(pushed, M) slots are filled."""
    pushed: Tensor
    """(B,) int64: tokens that entered the bank since the document began."""
    score: Tensor | None
    """(B, L) scores of the tokens that the local stream holds; None where nothing is scored."""
    sinks: KeyValues | None
    """The document's first n_sinks tokens as far as local attention has lost sight of them, else zero; None
    without sinks."""


@dataclass(frozen=True, kw_only=True, repr=False)
class LayerState:
    """What one layer carries; None is what the configuration has no use for."""

    full: KeyValues | None = None
    """Of the full stream, or of both local streams where they share their projections."""
    chunked: KeyValues | None = None
    """Of the chunked stream."""
    tail: Tensor | None = None
    """(B, conv_width - 1, E) inputs that the convolution still needs."""
    memory: MemoryState | AdmittedState | None = None
    windows: dict[str, Window] = dataclasses.field(default_factory=dict)
    """Of every set of local projections, after a step of decoding inside a segment."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in `TENSORS`: the one place, with `of`, that knows both forms."""
        named: dict[str, Tensor] = {}
        for stream, held in (("full", self.full), ("chunked", self.chunked)):
            if held is not None:
                named |= {f"{stream}_key": held.key, f"{stream}_value": held.value}
        if self.tail is not None:
            named["tail"] = self.tail
        if (memory := self.memory) is not None:
            slots = memory.slots
            named |= {"slot_key": slots.key, "slot_value": slots.value, "slot_log_gate": slots.log_gate}
            named |= {"slot_age": slots.age, "pushed": memory.pushed}
            if isinstance(memory, MemoryState):
                if memory.recurrent is not None:
                    named["recurrent"] = memory.recurrent
                named |= zip(PENDING, memory.pending, strict=False)
            else:
                if memory.score is not None:
                    named["score"] = memory.score
                if memory.sinks is not None:
                    named |= {"sink_key": memory.sinks.key, "sink_value": memory.sinks.value}
        return named

    @staticmethod
    def of(named: Mapping[str, Tensor]) -> LayerState:
        """Inverse of `tensors`."""
        full, chunked, sinks = (
            KeyValues(named[f"{kind}_key"], named[f"{kind}_value"]) if f"{kind}_key" in named else None
            for kind in ("full", "chunked", "sink")
        )
        memory: MemoryState | AdmittedState | None = None
        if "pushed" in named:
            pushed, key, value, log_gate, age = (
                named[name] for name in ("pushed", "slot_key", "slot_value", "slot_log_gate", "slot_age")
            )
            rank = torch.arange(age.shape[1] - 1, -1, -1, device=pushed.device)
            filled = rank.view(-1, *[1] * (pushed.dim() - 1)) < pushed[:, None]
            slots = Slots(key, value, log_gate, age, filled)
            pending = tuple(named[name] for name in PENDING if name in named)
            if pending:
                recurrent = named.get("recurrent")
                memory = MemoryState(slots=slots, pushed=pushed, recurrent=recurrent, pending=pending)
            else:
                memory = AdmittedState(slots=slots, pushed=pushed, score=named.get("score"), sinks=sinks)
        return LayerState(full=full, chunked=chunked, tail=named.get("tail"), memory=memory)

    def __repr__(self) -> str:
        named = self.tensors()
        return f"LayerState({', '.join(named)}; {sum(x.nbytes for x in named.values()):,} bytes)"


@dataclass(frozen=True, kw_only=True, repr=False)
class StreamState:
    """The state of B independent streams of text. All methods return new values."""

    position: Tensor
    """(B,) int64: tokens read since the document began."""
    layers: tuple[LayerState, ...]
    fingerprint: str
    """`ModelConfig.fingerprint()` of the model that it belongs to."""
    on_cpu: Tensor | None = None
    """`position` on the CPU, where a call left it there."""

    def position_on_cpu(self) -> Tensor:
        """`position` on the CPU; of a state that comes from no call, a GPU is asked."""
        return self.position.cpu() if self.on_cpu is None else self.on_cpu

    def __repr__(self) -> str:
        at = "on meta" if self.position.is_meta else f"{self.position[:4].tolist()}"
        more = ", ..." if self.batch_size > 4 else ""
        return (
            f"StreamState(rows={self.batch_size}, position={at.replace(']', more + ']')}, "
            f"layers={len(self.layers)}, {str(self.dtype).removeprefix('torch.')}, {self.nbytes:,} bytes)"
        )

    @property
    def batch_size(self) -> int:
        """Rows B."""
        return self.position.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; constant however much was read."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of keys and values: that of the model."""
        return next(x.dtype for name, x in self.layers[0].tensors().items() if name.endswith("_key"))

    def openness(self) -> Tensor:
        """(layers, B) float64: share of the document's tokens that entered each layer's bank (the mean over
        its banks if key heads have their own); (0, B) without one."""
        read = self.position.clamp(min=1).double()
        pushed = [layer.memory.pushed for layer in self.layers if layer.memory is not None]
        shares = [(x if x.dim() == 1 else x.double().mean(1)) / read for x in pushed]
        return torch.stack(shares) if shares else read.new_empty(0, self.batch_size)

    def select(self, rows: Sequence[int] | Tensor) -> StreamState:
        """The given rows in the given order; a row may be taken more than once (a fork)."""
        index = torch.as_tensor(rows, device=self.position.device)
        index = index if index.numel() else index.long()
        if (
            index.dtype != torch.int64
            or index.dim() != 1
            or (index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.batch_size)
        ):
            raise ValueError(
                f"rows={rows!r} is not possible: give a list of row numbers below {self.batch_size}"
            )
        return self._map(lambda _, x: x.index_select(0, index))

    @staticmethod
    def concat(states: Sequence[StreamState]) -> StreamState:
        """The rows of several states of one model, one behind the other."""
        if not states:
            raise ValueError("states=[] is not possible: give at least one state")
        if not all(isinstance(state, StreamState) for state in states):
            raise ValueError(
                "states holds something that is no StreamState: give the states of earlier calls"
            )
        if len({(state.dtype, state.position.device) for state in states}) > 1:
            raise ValueError(
                "the states are of different floating types or devices: convert them with state.to"
            )
        if len({state.fingerprint for state in states}) > 1:
            raise ValueError(
                "the states belong to models with different configurations: concat takes one model's"
            )
        named = [state.tensors() for state in states]
        joined = {name: torch.cat([tensors[name] for tensors in named]) for name in named[0]}
        return _assembled(joined, len(states[0].layers), states[0].fingerprint)

    def detach(self) -> StreamState:
        """The same values, cut from the graph: gradients end here."""
        return self._map(lambda _, x: x.detach(), self.on_cpu)

    def clone(self) -> StreamState:
        """A copy that keeps no memory alive but its own `nbytes`: the state after a single token is a part of
        what the next one is added to."""
        return self._map(lambda _, x: x.clone(), self.on_cpu)

    def to(self, target: torch.device | str | torch.dtype) -> StreamState:
        """The state on another device, or in another floating type (gates and sums stay in at least
        float32)."""
        if not isinstance(target, torch.dtype):
            return self._map(lambda _, x: x.to(target), self.on_cpu)
        return self._map(lambda name, x: x.to(_type_of(name, target)), self.on_cpu)

    def reset(self, rows: Tensor) -> StreamState:
        """A fresh document in the rows where `rows` (B,) bool is true: nothing of the old one is left in
        them."""

        def clear(name: str, x: Tensor) -> Tensor:
            return torch.where(rows.view(-1, *[1] * (x.dim() - 1)), PENDING.get(name, 0), x)

        return self._map(clear)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under flat names: "position", "layers.0.full_key", ..."""
        named = {
            f"layers.{i}.{k}": x for i, layer in enumerate(self.layers) for k, x in layer.tensors().items()
        }
        return {"position": self.position, **named}

    @staticmethod
    def from_tensors(config: ModelConfig, tensors: Mapping[str, Tensor]) -> StreamState:
        """Inverse of `tensors` for a model with `config`. Raises `ValueError` on a missing, additional or
        misshapen one."""
        position = tensors.get("position")
        if position is None or position.dim() != 1 or position.dtype != torch.int64:
            raise ValueError("no state: it has no int64 tensor 'position' of shape (rows,)")
        # No rows, and not on "meta", whose first comparison would import torch's compiler: seconds.
        expected = initial_state(config, 0, torch.device("cpu"), torch.float32).tensors()
        if set(expected) != set(tensors):
            odd = sorted(set(expected) ^ set(tensors))
            raise ValueError(f"no state of this configuration: tensor {odd[0]!r} is missing or not expected")
        for name, tensor in tensors.items():
            shape = (position.shape[0], *expected[name].shape[1:])
            if (
                tuple(tensor.shape) != shape
                or tensor.is_floating_point() != expected[name].is_floating_point()
            ):
                raise ValueError(
                    f"no state of this configuration: {name} is {tuple(tensor.shape)}, expected {shape}"
                )
        # Copies: a file's tensors lie at addresses at which kernels may round differently, and a state must
        # go on exactly.
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        return _assembled(copies, config.n_layers, config.fingerprint())

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with the format version and the configuration's fingerprint, whole or not
        at all.
        Raises `OSError` with one sentence where it cannot be written."""
        from rmat.storage import save_state

        save_state(path, self)

    @staticmethod
    def load(path: str | Path, config: ModelConfig) -> StreamState:
        """Read a file of `save`, on the CPU. Raises `ValueError` if it is damaged, of another format
        version, or of a model with another configuration than `config`; `FileNotFoundError` if there is
        none."""
        from rmat.storage import load_state

        return load_state(path, config)[0]

    def _map(self, change: Callable[[str, Tensor], Tensor], on_cpu: Tensor | None = None) -> StreamState:
        """`change` of every tensor; it is also told its name, without the layer."""
        layers = tuple(
            LayerState.of({name: change(name, x) for name, x in layer.tensors().items()})
            for layer in self.layers
        )
        position = change("position", self.position)
        return dataclasses.replace(self, position=position, layers=layers, on_cpu=on_cpu)


def _assembled(tensors: Mapping[str, Tensor], n_layers: int, fingerprint: str) -> StreamState:
    """The state of flat tensors."""
    layers = []
    for index in range(n_layers):
        prefix = f"layers.{index}."
        own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        layers.append(LayerState.of(own))
    return StreamState(position=tensors["position"], layers=tuple(layers), fingerprint=fingerprint)


def _type_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Type of the tensor `name` in a model of type `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    return {"model": dtype, "wide": wide, "integer": torch.int64}[TENSORS.get(name, "integer")]


def initial_state(
    config: ModelConfig, batch_size: int, device: torch.device, dtype: torch.dtype
) -> StreamState:
    """The state of `batch_size` rows that have read nothing."""
    batch_size = whole("batch_size", batch_size, remedy="give the number of rows")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is not possible: give a floating type such as torch.float32")

    def make(name: str, shape: Iterable[int]) -> Tensor:
        kind = _type_of(name, dtype)
        return torch.full((batch_size, *shape), PENDING.get(name, 0), dtype=kind, device=device)

    layers = tuple(
        LayerState.of({name: make(name, shape) for name, shape in _shapes(config.of_layer(index)).items()})
        for index in range(config.n_layers)
    )
    position, start = make("position", ()), torch.zeros(batch_size, dtype=torch.int64, device="cpu")
    return StreamState(position=position, layers=layers, fingerprint=config.fingerprint(), on_cpu=start)


def state_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one row's state in a model of type `dtype`, from its shapes."""
    named = [
        ("position", ()),
        *(each for i in range(config.n_layers) for each in _shapes(config.of_layer(i)).items()),
    ]
    return sum(_type_of(name, dtype).itemsize * math.prod(shape) for name, shape in named)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors, without the rows."""
    heads = (config.n_kv_heads, config.head_dim)
    shapes: dict[str, tuple[int, ...]] = {}
    for stream, length in config.held.items():
        name = "chunked" if stream == "chunked" else "full"
        shapes |= {f"{name}_key": (length, *heads), f"{name}_value": (length, *heads)}
    if config.conv_width > 1:
        shapes["tail"] = (config.conv_width - 1, config.d_model)
    if config.has_memory:
        slots = config.n_slots
        own = (config.n_kv_heads,) if config.slots_per == "key_head" else ()
        shapes |= {"slot_key": (slots, *heads), "slot_value": (slots, *heads)}
        shapes |= {"slot_log_gate": (slots, *own), "slot_age": (slots, *own), "pushed": own}
        if config.memory_projections == "local":
            if config.scores_writes:
                shapes["score"] = (next(iter(config.held.values())), *own)
            if config.n_sinks:
                shapes |= dict.fromkeys(("sink_key", "sink_value"), (config.n_sinks, *heads))
            return shapes
        if config.recurrent_gate:
            shapes["recurrent"] = (config.d_model,)
        places = {"mean": 1, "all": config.segment_len}.get(config.writer, config.writes_per_segment)
        kept = {"pool": 2, "select": 3}.get(config.writer, 1)
        pending = ((places, config.d_model), (places,), (places,))
        shapes |= dict(zip(PENDING, pending[:kept], strict=False))
    return shapes
