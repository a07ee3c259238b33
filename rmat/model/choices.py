"""The alternatives that fields of `ModelConfig` name."""

from __future__ import annotations

from typing import Literal, get_args

Stream = Literal["full", "chunked", "memory"]
Projections = Literal["separate", "shared"]
Writer = Literal["mean", "pool", "select", "all"]
Gate = Literal["none", "gru", "push", "both"]
GateGradient = Literal["logit", "value"]
WriteFrom = Literal["input", "output"]
MemoryPosition = Literal["none", "rank", "age"]
MemoryRead = Literal["softmax", "stick_breaking"]
Eviction = Literal["oldest", "weakest"]
Fusion = Literal["scalar", "head", "token", "joint"]
Norm = Literal["layernorm", "rmsnorm"]
MLP = Literal["gelu", "swiglu"]

CHOICES: dict[str, tuple[str, ...]] = {
    "projections": get_args(Projections),
    "writer": get_args(Writer),
    "gate": get_args(Gate),
    "gate_gradient": get_args(GateGradient),
    "write_from": get_args(WriteFrom),
    "memory_position": get_args(MemoryPosition),
    "memory_read": get_args(MemoryRead),
    "eviction": get_args(Eviction),
    "fusion": get_args(Fusion),
    "norm": get_args(Norm),
    "mlp": get_args(MLP),
}
"""The legal values of every field that names an alternative."""
