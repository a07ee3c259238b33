"""Every choice of the architecture, validated: one frozen dataclass whose fields all change something."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any, Literal, NoReturn, get_args, get_origin

from rmat.settings import check, choice, field_types, known_keywords, nearest, number, once, refuse, whole

Stream = Literal["full", "chunked", "memory"]
Eviction = Literal["oldest", "weakest"]

TRAINING_ONLY = ("dropout", "gate_noise", "gate_bias", "gate_gradient", "write_cost", "write_budget")
EVICTION_FIELDS = ("eviction", "fade", "newest_share")
"""What a full bank gives up: no weights belong to it, so a trained model may have it otherwise."""
_LATER = {
    "memory_layers": None,
    "memory_read": "softmax",
    "eviction": "oldest",
    "fade": 0.0,
    "newest_share": 0.0,
    "memory_projections": "own",
    "write_when": "closed",
    "slots_per": "layer",
    "n_sinks": 0,
    "head_width": None,
    "attention_bias": "none",
    "qk_norm": False,
    "rope_scaling": None,
    "norm_eps": None,
}
"""Fields younger than the first files: at this value they leave the fingerprint as it was, so that old files
load."""

_FROM_0 = ("chunk_lookback", "conv_width", "n_sinks")
"""Numbers that may be 0."""


@known_keywords()
@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of one model. Raises `ValueError` that names the field, its value and the remedy."""

    vocab_size: int
    """Number of token ids V, at least 1; tokens are integers in [0, V)."""
    d_model: int
    """Width E of the residual stream."""
    n_layers: int
    """Number of blocks."""
    n_heads: int
    """Query heads H of every stream; without head_width it divides d_model."""
    n_kv_heads: int
    """Key/value heads K of every stream; divides n_heads (grouped-query attention when smaller)."""
    head_width: int | None = None
    """Width D of a head, even (rotary works on pairs); None: d_model / n_heads."""
    segment_len: int
    """Tokens S in a segment: the reach of the full stream and the period of memory writes."""
    chunk_len: int
    """Tokens C in a chunk: the window of the chunked stream; divides segment_len."""
    chunk_lookback: int = 0
    """Whole previous chunks that the chunked stream also sees, 0 or 1; 1 crosses the segment's edge."""
    streams: tuple[Stream, ...] = ("full", "chunked", "memory")
    """Which of the paper's three attention streams a block has; any non-empty subset."""
    memory_layers: tuple[int, ...] | None = None
    """Blocks, counted from 0, that have the memory stream; None: all. The others have the local streams
    only."""
    projections: Literal["separate", "shared"] = "separate"
    """Whether the local streams (full, chunked) own their query/key/value projections or share one set."""
    writer: Literal["mean", "pool", "select", "all"] = "mean"
    """What a segment offers to the memory when it is complete: the mean of its token vectors, weighted means
    by learned queries, the tokens with the best scores, or every token."""
    writes_per_segment: int = 1
    """Most vectors W that a segment offers, from 1 to segment_len; 1 for "mean", segment_len for "all"."""
    n_slots: int = 32
    """Slots M of a layer's memory bank, at least writes_per_segment."""
    gate: Literal["none", "gru", "push", "both"] = "gru"
    """Write gate. "gru": a vector is mixed with the newest one in the bank, as in the paper. "push": a
    vector enters only if sigmoid(score) > 1/2. "both", or "none"."""
    gate_gradient: Literal["logit", "value"] = "logit"
    """How the score of a write is trained: by the gradient of log g in its slot's attention logit, or by the
    gradient of a factor g on its slot's value. The numbers computed are the same."""
    gate_bias: float = 1.0
    """Bias of the score of a write at the start of training, any number. Above 0 most tokens enter at first;
    below 0 few do, and `gate_noise` decides which are tried."""
    gate_noise: float = 0.0
    """Standard deviation, at least 0, of normal noise on the scores of writes in training. With noise,
    tokens near the threshold are sometimes written, so that their scores get a gradient."""
    write_cost: float = 0.0
    """Price of a write in training, at least 0: this times the sum of g over all written vectors is added to
    the loss."""
    write_budget: float = 0.0
    """Share of a call's tokens, at least 0, up to which writes are free. `write_cost` rises from there and
    is full at twice that share. 0: every write has its price."""
    write_from: Literal["input", "output"] = "output"
    """Whether vectors for the memory are taken from the block's input (all segments in parallel) or from its
    output (one segment after the other, the paper)."""
    memory_projections: Literal["own", "local"] = "own"
    """Whose keys, values and queries the memory has. "local": a slot keeps the key and value that its token
    had in the local stream and is read by the local query, in one softmax with the local keys; needs
    fusion="joint"."""
    write_when: Literal["closed", "unseen"] = "closed"
    """When tokens are offered to a bank of memory_projections="local": when their segment closes, or when
    local attention loses sight of them, so that no key counts twice."""
    slots_per: Literal["layer", "key_head"] = "layer"
    """Whether a layer's key heads keep the same tokens, or each key head scores tokens and keeps n_slots of
    its own (memory_projections="local")."""
    n_sinks: int = 0
    """First tokens of a document, at least 0, that stay beside the bank for good and without a gate
    (memory_projections="local")."""
    memory_position: Literal["none", "rank", "age", "rotary"] = "none"
    """Position of a slot's key: nothing, a learned vector added by its rank in the bank or by its age in
    segments, or rotation to the places right before the first local key (memory_projections="local")."""
    memory_read: Literal["softmax", "stick_breaking"] = "softmax"
    """Weights of the slots for a query: softmax, or stick-breaking from the newest slot to the oldest (each
    takes the sigmoid of its logit from what the newer ones left)."""
    eviction: Eviction = "oldest"
    """Which slot a full bank drops: the oldest (first in, first out), or the oldest of those with the least
    g."""
    fade: float = 0.0
    """What a slot's score loses per 1,024 tokens of age where the weakest leave, 0 to 64: what was strong
    long ago gives way to what is less strong and new."""
    newest_share: float = 0.0
    """Share of the slots that are the newest's, however weak, where the weakest leave, 0 to 1: the others
    hold the strongest of what is older."""
    null_slot: bool = False
    """Whether there is a learned slot beside the bank, which takes the weight of a query that finds
    nothing."""
    fusion: Literal["scalar", "head", "token", "joint"] = "scalar"
    """Weights of the streams: a learned number per stream, one per stream and head, a linear map of the
    token, or none but one softmax over the keys of all streams."""
    rope_theta: float | tuple[float, ...] = 10000.0
    """Base of the rotary frequencies, above 1: one for all query heads, or one per query head (equal in a
    group)."""
    rope_scaling: tuple[float, ...] | None = None
    """Four numbers that stretch the slow rotary frequencies as Llama 3.1 does: by a factor of at least 1, for
    those that turn fewer than (second number) times in the context (fourth number, tokens) of the training
    before; not at all for those that turn more than (third number) times; in between in between."""
    attention_bias: Literal["none", "qkv", "all"] = "none"
    """Which projections of local attention add a learned bias: none, query, key and value, or the output
    too."""
    qk_norm: bool = False
    """Whether every head's query and key of local attention pass an RMSNorm of their own before rotation."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before both sub-layers and before the output head."""
    norm_eps: float | None = None
    """What every normalisation adds to the mean square (the variance), above 0; None: 1e-6 for RMSNorm, 1e-5
    for LayerNorm."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Feed-forward network."""
    d_ff: int
    """Hidden width F of the feed-forward network."""
    conv_width: int = 0
    """Taps of the causal depthwise convolution before the projections; 0 leaves it out."""
    tie_embeddings: bool = True
    """Whether the output head uses the embedding matrix."""
    dropout: float = 0.0
    """Probability, in [0, 1), that a value of a sub-layer's output is dropped in training."""

    def __post_init__(self) -> None:
        if not isinstance(self.streams, (list, tuple)) or not all(isinstance(s, str) for s in self.streams):
            self._refuse("streams", "give a list of stream names")
        object.__setattr__(self, "streams", tuple(self.streams))
        if isinstance(self.memory_layers, list):
            object.__setattr__(self, "memory_layers", tuple(self.memory_layers))
        theta: Any = self.rope_theta
        several = isinstance(theta, (list, tuple))
        bases = tuple(number("ModelConfig.rope_theta", t, above=1) for t in (theta if several else [theta]))
        object.__setattr__(self, "rope_theta", bases if several else bases[0])
        if isinstance(self.rope_scaling, (list, tuple)):
            scaling = tuple(number("ModelConfig.rope_scaling", x, above=0) for x in self.rope_scaling)
            object.__setattr__(self, "rope_scaling", scaling)
        for name, kind in _kinds().items():
            if kind is int:
                check(self, "ModelConfig", name, whole, 0 if name in _FROM_0 else 1)
            elif kind is bool and not isinstance(getattr(self, name), bool):
                self._refuse(name, "choose true or false")
            elif get_origin(kind) is Literal:
                check(self, "ModelConfig", name, choice, get_args(kind))
        check(self, "ModelConfig", "head_width", whole, 2)
        check(self, "ModelConfig", "norm_eps", number, above=0)
        self._check_heads()
        self._check_streams()
        if self.has_memory:
            self._check_memory()
        check(self, "ModelConfig", ("gate_noise", "write_cost", "write_budget"), number, 0)
        if self.write_budget and not self.write_cost:
            self._refuse("write_budget", "it says where write_cost begins: set that too, such as 0.001")
        check(self, "ModelConfig", "fade", number, 0, most=64)
        check(self, "ModelConfig", "newest_share", number, 0, most=1)
        check(self, "ModelConfig", "gate_bias", number)
        check(self, "ModelConfig", "dropout", number, 0, below=1)

    def _check_heads(self) -> None:
        if self.head_width is not None and self.head_width % 2:
            self._refuse("head_width", "rotary works on pairs: choose an even number")
        if self.head_width is None and (self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2):
            self._refuse("n_heads", f"d_model={self.d_model} must be n_heads times an even head width")
        if self.n_heads % self.n_kv_heads:
            self._refuse("n_kv_heads", f"choose a divisor of n_heads={self.n_heads}")
        if isinstance(thetas := self.rope_theta, tuple):
            group = self.n_heads // self.n_kv_heads
            if len(thetas) != self.n_heads:
                self._refuse("rope_theta", f"give one base, or n_heads={self.n_heads} of them")
            if any(thetas[h] != thetas[h - h % group] for h in range(self.n_heads)):
                self._refuse("rope_theta", f"give the {group} heads that share a key head the same base")

        if (scaling := self.rope_scaling) is not None and (
            not isinstance(scaling, tuple) or len(scaling) != 4 or scaling[0] < 1 or scaling[1] >= scaling[2]
        ):
            self._refuse(
                "rope_scaling", "give factor >= 1, fewest and most turns (fewest < most), and context"
            )

    def _check_streams(self) -> None:
        legal = get_args(Stream)
        if not self.streams or len(set(self.streams)) != len(self.streams) or set(self.streams) - set(legal):
            self._refuse("streams", f"choose each of {', '.join(legal)} at most once, and at least one")
        if self.segment_len % self.chunk_len:
            self._refuse("chunk_len", f"choose a divisor of segment_len={self.segment_len}")
        if self.chunk_lookback > 1:
            self._refuse("chunk_lookback", "choose 0 or 1")
        if self.fusion == "joint" and len(self.local_streams) == 2 and self.projections != "shared":
            self._refuse("fusion", "one softmax over all keys needs one query: set projections='shared'")

    def _check_memory(self) -> None:
        chosen: Any = self.memory_layers
        if chosen is not None:
            whole = isinstance(chosen, tuple) and all(
                type(i) is int and 0 <= i < self.n_layers for i in chosen
            )
            if not whole or not chosen or len(set(chosen)) != len(chosen):
                self._refuse(
                    "memory_layers", f"name different blocks of 0..{self.n_layers - 1}, or none (all)"
                )
            if len(chosen) < self.n_layers and not self.local_streams:
                self._refuse(
                    "memory_layers", "blocks without memory need a local stream: add 'full' or 'chunked'"
                )
        if self.memory_projections == "local":
            self._check_local_memory()
        else:
            remedy = "it is for keys of local attention: set memory_projections='local'"
            for name in ("write_when", "slots_per", "n_sinks"):
                if getattr(self, name) != _LATER[name]:
                    self._refuse(name, remedy)
            if self.memory_position == "rotary":
                self._refuse("memory_position", remedy)
        if self.memory_read == "stick_breaking" and self.fusion == "joint" and self.local_streams:
            self._refuse("memory_read", "one softmax over all keys (fusion='joint') reads with 'softmax'")
        if self.eviction == "weakest" and not self.scores_writes:
            self._refuse("eviction", "it needs a score for every write: set writer='select' or gate='push'")
        for name in ("fade", "newest_share"):
            if getattr(self, name) and self.eviction != "weakest":
                self._refuse(name, "strength decides only with eviction='weakest'")
        if self.writer == "mean" and self.writes_per_segment != 1:
            self._refuse("writes_per_segment", "writer='mean' offers one vector: set it to 1")
        if self.writer == "all" and self.writes_per_segment != self.segment_len:
            self._refuse("writes_per_segment", f"writer='all' needs segment_len={self.segment_len}")
        if self.writes_per_segment > self.segment_len:
            self._refuse("writes_per_segment", f"choose at most segment_len={self.segment_len}")
        if self.writes_per_segment > self.n_slots:
            self._refuse("writes_per_segment", f"choose at most n_slots={self.n_slots}, or more slots")

    def _check_local_memory(self) -> None:
        """Slots that keep the keys and values of local attention."""
        both, chunked = len(self.local_streams) == 2, "chunked" in self.streams
        unseen = self.write_when == "unseen" and chunked
        keys, places = "memory_projections", self.memory_position in ("rank", "age")
        for wrong, name, remedy in (
            (not self.local_streams, keys, "there is no local stream: add 'full' or 'chunked' to streams"),
            (self.fusion != "joint", keys, "slots share one softmax with local keys: set fusion='joint'"),
            (self.writer in ("mean", "pool"), keys, "a slot is one token: set writer='select' or 'all'"),
            (self.recurrent_gate, keys, "a slot keeps its token's key: set gate='push' or 'none'"),
            (self.write_from == "output", keys, "local keys come from the input: set write_from='input'"),
            (places, "memory_position", "local keys have no learned places: choose 'rotary' or 'none'"),
            (
                unseen and both and self.chunk_lookback > 0,
                "write_when",
                "only a segment's first chunk looks back: set chunk_lookback=0, or leave 'full' out of "
                "streams "
                "and set chunk_len=segment_len",
            ),
            (
                unseen and not both and self.chunk_len != self.segment_len,
                "write_when",
                f"a segment must lose sight of a token at once: set chunk_len={self.segment_len}",
            ),
        ):
            if wrong:
                self._refuse(name, remedy)

    def _refuse(self, name: str, remedy: str) -> NoReturn:
        refuse(f"ModelConfig.{name}", getattr(self, name), remedy)

    @once
    def head_dim(self) -> int:
        """Width D of one head."""
        return self.head_width or self.d_model // self.n_heads

    @once
    def epsilon(self) -> float:
        """What normalisations add to the mean square."""
        return self.norm_eps or (1e-6 if self.norm == "rmsnorm" else 1e-5)

    @once
    def local_streams(self) -> tuple[Stream, ...]:
        """The streams that read tokens, in the order full, chunked."""
        return tuple(s for s in get_args(Stream)[:2] if s in self.streams)

    @once
    def has_memory(self) -> bool:
        """Whether the blocks have a memory bank."""
        return "memory" in self.streams

    def of_layer(self, index: int) -> ModelConfig:
        """The configuration of one block: without the memory stream where `memory_layers` leaves it out."""
        if not self.has_memory or self.memory_layers is None or index in self.memory_layers:
            return self
        return dataclasses.replace(self, streams=self.local_streams, memory_layers=None)

    @once
    def held(self) -> dict[str, int]:
        """Tokens whose keys and values a state keeps, for every set of local projections."""
        reach = {"full": self.segment_len, "chunked": self.chunk_len * (1 + self.chunk_lookback)}
        local = self.local_streams
        if self.memory_projections == "local":
            # Tokens wait here until they are offered to the bank.
            reach = {name: max(length, self.segment_len + self.write_lag) for name, length in reach.items()}
        if len(local) == 2 and self.projections == "shared":
            return {"shared": max(reach.values())}
        return {stream: reach[stream] for stream in local}

    @once
    def lookback(self) -> int:
        """Tokens before its segment that a segment's first token sees in local attention."""
        return self.chunk_len * self.chunk_lookback if "chunked" in self.streams else 0

    @once
    def write_lag(self) -> int:
        """Tokens between the last one offered to the bank and the end of the segment that closes."""
        return self.lookback if self.write_when == "unseen" else 0

    @once
    def slot_groups(self) -> int:
        """Banks of a layer: 1, or one for each key head."""
        return self.n_kv_heads if self.slots_per == "key_head" else 1

    @once
    def n_newest(self) -> int:
        """Slots of a bank that are the newest's, however weak, where the weakest leave."""
        return math.floor(self.newest_share * self.n_slots)

    @once
    def scores_writes(self) -> bool:
        """Whether a learned score decides on writes (and its log-gate biases reads)."""
        return self.has_memory and (self.writer == "select" or self.gate in ("push", "both"))

    @once
    def refuses_writes(self) -> bool:
        """Whether the gate may refuse a write."""
        return self.has_memory and self.gate in ("push", "both")

    @once
    def recurrent_gate(self) -> bool:
        """Whether candidates pass the GRU gate."""
        return self.has_memory and self.gate in ("gru", "both")

    def to_dict(self) -> dict[str, Any]:
        """All fields as values that JSON can hold."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`. Unknown keys are refused with the nearest valid name."""
        if not isinstance(values, dict):
            raise ValueError(f"ModelConfig.from_dict takes a dict of fields, not {type(values).__name__}")
        refuse_unknown(values)
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in values]:
            raise ValueError(
                f"ModelConfig lacks {', '.join(missing)}: give every field, or use ModelConfig.preset"
            )
        return cls(**values)

    @classmethod
    def preset(cls, size: str, variant: str = "recommended", **overrides: Any) -> ModelConfig:
        """A named size ("tiny", "small", "base", "large") in a named variant, with any field overridden.

        Fields that hang together follow the overridden ones: with another segment_len, for example, a
        chunk_len that is not given scales along (see `rmat/model/presets.py`).
        """
        from rmat.model.presets import resolve

        refuse_unknown(overrides, also=("variant",))
        return cls(**resolve(size, variant, overrides))

    def fingerprint(self) -> str:
        """A short hash of all that shapes a state and its meaning; dropout, which acts in training only, is
        left out."""
        return self._fingerprint

    @once  # every call of a model asks
    def _fingerprint(self) -> str:
        plain = {k: v for k, v in self.to_dict().items() if k not in TRAINING_ONLY}
        values = {k: v for k, v in plain.items() if k not in _LATER or v != _LATER[k]}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _kinds() -> dict[str, Any]:
    return field_types(ModelConfig)


def refuse_unknown(values: dict[str, Any], also: Iterable[str] = ()) -> None:
    """Raise `ValueError` with the nearest valid name when `values` has a key that is no field of
    `ModelConfig`; `also` are names that were meant for the caller."""
    for key in values:
        if key not in _kinds():
            near = nearest(str(key), [*_kinds(), *also])
            raise ValueError(f"ModelConfig has no field {key!r}: did you mean {near!r}?")
