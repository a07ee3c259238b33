"""What a model carries from call to call: an immutable value whose size does not depend on how much was read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rmat.model.config import ModelConfig

NEVER = -1.0e30
"""Score of an empty place in the open segment: below every real score, and finite so that gradients stay finite."""

EMPTY = {"pending_score": NEVER, "pending_offset": -1}
"""What the places of a fresh state hold where it is not zero."""

_LONG = ("slot_age", "pushed", "pending_offset")
_AT_LEAST_FLOAT32 = ("slot_log_gate", "recurrent", "pending_score", "pending")


@dataclass(frozen=True, kw_only=True)
class LayerState:
    """One layer's carried state; a field that the configuration has no use for is None. Floats are in the model's
    type, those of gates and running sums in at least float32; integers are int64."""

    full_key: Tensor | None = None
    """(B, L, K, D) keys before rotation of the last L tokens, newest last: of the full stream, or the shared ones."""
    full_value: Tensor | None = None
    """(B, L, K, D) their values."""
    chunked_key: Tensor | None = None
    """(B, L, K, D) keys before rotation of the chunked stream, where it has its own projections."""
    chunked_value: Tensor | None = None
    """(B, L, K, D) their values."""
    tail: Tensor | None = None
    """(B, conv_width - 1, E) inputs that the convolution still needs."""
    slot_key: Tensor | None = None
    """(B, M, K, D) keys of the memory bank, oldest slot first; the last min(pushed, M) are filled."""
    slot_value: Tensor | None = None
    """(B, M, K, D) values of the memory bank."""
    slot_log_gate: Tensor | None = None
    """(B, M) log of the gate with which a slot was written."""
    slot_age: Tensor | None = None
    """(B, M) tokens from where a slot comes from to the start of the open segment."""
    pushed: Tensor | None = None
    """(B,) vectors that entered the bank since the document began."""
    recurrent: Tensor | None = None
    """(B, E) the newest vector that passed the GRU gate."""
    pending: Tensor | None = None
    """(B, P, E) what the writer keeps of the open segment."""
    pending_score: Tensor | None = None
    """(B, P) its scores."""
    pending_offset: Tensor | None = None
    """(B, P) its offsets in the segment."""

    def map(self, change: Callable[[Tensor], Tensor]) -> LayerState:
        """The state with `change` applied to every tensor."""
        return LayerState(**{name: change(tensor) for name, tensor in self.items()})

    def items(self) -> list[tuple[str, Tensor]]:
        """Names and tensors of the fields in use."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return [(name, tensor) for name, tensor in fields if tensor is not None]


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """The state of B independent streams of text. All methods return new values."""

    position: Tensor
    """(B,) int64: tokens read since the document began."""
    layers: tuple[LayerState, ...]
    fingerprint: str
    """`ModelConfig.fingerprint()` of the model that it belongs to."""

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
        layer = self.layers[0]
        held = next(t for t in (layer.full_key, layer.chunked_key, layer.slot_key) if t is not None)
        return held.dtype

    def openness(self) -> Tensor:
        """(layers, B) float64: share of the document's tokens that entered each layer's bank; (0, B) without memory."""
        read = self.position.clamp(min=1).double()
        shares = [layer.pushed / read for layer in self.layers if layer.pushed is not None]
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
        return self._map(lambda tensor: tensor.index_select(0, index))

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
        return states[0]._with({name: torch.cat([tensors[name] for tensors in named]) for name in named[0]})

    def detach(self) -> StreamState:
        """The same values, cut from the graph: gradients end here."""
        return self._map(torch.Tensor.detach)

    def to(self, target: torch.device | str | torch.dtype) -> StreamState:
        """The state on another device, or in another floating type (gates and sums stay in at least float32)."""
        if not isinstance(target, torch.dtype):
            return self._map(lambda tensor: tensor.to(target))
        kinds = {True: torch.promote_types(target, torch.float32), False: target}

        def convert(name: str, tensor: Tensor) -> Tensor:
            return tensor.to(kinds[name in _AT_LEAST_FLOAT32]) if tensor.is_floating_point() else tensor

        layers = tuple(LayerState(**{k: convert(k, v) for k, v in layer.items()}) for layer in self.layers)
        return dataclasses.replace(self, layers=layers)

    def reset(self, rows_B: Tensor) -> StreamState:
        """A fresh document in the rows where `rows_B` (B,) bool is true: nothing of the old one is left in them."""

        def clear(name: str, tensor: Tensor) -> Tensor:
            return torch.where(rows_B.view(-1, *[1] * (tensor.dim() - 1)), EMPTY.get(name, 0), tensor)

        layers = tuple(LayerState(**{k: clear(k, v) for k, v in layer.items()}) for layer in self.layers)
        return dataclasses.replace(self, position=torch.where(rows_B, 0, self.position), layers=layers)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under flat names: "position", "layers.0.full_key", ..."""
        named = {f"layers.{i}.{name}": t for i, layer in enumerate(self.layers) for name, t in layer.items()}
        return {"position": self.position, **named}

    @staticmethod
    def from_tensors(config: ModelConfig, tensors: Mapping[str, Tensor]) -> StreamState:
        """Inverse of `tensors` for a model with `config`. Raises `ValueError` on a missing, additional or misshapen one."""
        position = tensors.get("position")
        if position is None or position.dim() != 1 or position.dtype != torch.int64:
            raise ValueError("no state: it has no int64 tensor 'position' of shape (rows,)")
        state = initial_state(config, 0, torch.device("meta"), torch.float32)
        expected = state.tensors()
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
        # Copies: a file's tensors lie at addresses at which kernels may round differently, and a state must go on exactly.
        return state._with({name: tensor.clone() for name, tensor in tensors.items()})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with the format version and the configuration's fingerprint, whole or not at all.
        Raises `OSError` with one sentence where it cannot be written."""
        from rmat.storage import save_state

        save_state(path, self)

    @staticmethod
    def load(path: str | Path, config: ModelConfig) -> StreamState:
        """Read a file of `save`, on the CPU. Raises `ValueError` if it is damaged, of another format version, or of a
        model with another configuration than `config`; `FileNotFoundError` if there is none."""
        from rmat.storage import load_state

        return load_state(path, config)[0]

    def _map(self, change: Callable[[Tensor], Tensor]) -> StreamState:
        layers = tuple(layer.map(change) for layer in self.layers)
        return dataclasses.replace(self, position=change(self.position), layers=layers)

    def _with(self, tensors: dict[str, Tensor]) -> StreamState:
        layers = tuple(
            LayerState(**{name: tensors[f"layers.{i}.{name}"] for name, _ in layer.items()})
            for i, layer in enumerate(self.layers)
        )
        return dataclasses.replace(self, position=tensors["position"], layers=layers)


def initial_state(
    config: ModelConfig, batch_size: int, device: torch.device, dtype: torch.dtype
) -> StreamState:
    """The state of `batch_size` rows that have read nothing."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 0:
        raise ValueError(f"batch_size={batch_size!r} is not possible: give the number of rows")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is not possible: give a floating type such as torch.float32")

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        kind = torch.promote_types(dtype, torch.float32) if name in _AT_LEAST_FLOAT32 else dtype
        return torch.full(
            (batch_size, *shape),
            EMPTY.get(name, 0),
            dtype=torch.int64 if name in _LONG else kind,
            device=device,
        )

    layers = tuple(
        LayerState(**{k: make(k, v) for k, v in _shapes(config.of_layer(index)).items()})
        for index in range(config.n_layers)
    )
    position = torch.zeros(batch_size, dtype=torch.int64, device=device)
    return StreamState(position=position, layers=layers, fingerprint=config.fingerprint())


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's fields, without the rows."""
    heads = (config.n_kv_heads, config.head_dim)
    shapes: dict[str, tuple[int, ...]] = {}
    for stream, length in config.held.items():
        name = "chunked" if stream == "chunked" else "full"
        shapes |= {f"{name}_key": (length, *heads), f"{name}_value": (length, *heads)}
    if config.conv_width > 1:
        shapes["tail"] = (config.conv_width - 1, config.d_model)
    if config.has_memory:
        slots = config.n_slots
        shapes |= {"slot_key": (slots, *heads), "slot_value": (slots, *heads), "slot_log_gate": (slots,)}
        shapes |= {"slot_age": (slots,), "pushed": ()}
        if config.recurrent_gate:
            shapes["recurrent"] = (config.d_model,)
        places = {"mean": 1, "all": config.segment_len}.get(config.writer, config.writes_per_segment)
        shapes["pending"] = (places, config.d_model)
        if config.writer in ("pool", "select"):
            shapes["pending_score"] = (places,)
        if config.writer == "select":
            shapes["pending_offset"] = (places,)
    return shapes
