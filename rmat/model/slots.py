"""The slots of a memory bank as one value, and what an ablation makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rmat.ops.fifo import take_rows

MemoryMode = Literal["on", "zeroed", "frozen", "shuffled"]
"""How a call uses the memory: as trained ("on"), or ablated."""


@dataclass(frozen=True)
class Slots:
    """Slots, oldest first. The leading axes `...` are (B,) in a state and (B, N) as the segments of a call
    read them.

    What is said of one slot (gate, age, filled) has the axes of `filled`; keys and values have further ones
    behind. Where each key head keeps slots of its own, what is said of one has an axis K more.
    """

    key: Tensor
    """(..., M, K, D) keys, not rotated."""
    value: Tensor
    """(..., M, K, D) values."""
    log_gate: Tensor
    """(..., M) log of the gate with which a slot was written, at least float32; 0 where nothing is scored."""
    age: Tensor
    """(..., M) int64 tokens from where a slot comes from to the start of the segment that reads it."""
    filled: Tensor
    """(..., M) bool; the others hold anything finite."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Slots:
        """The slots with `change` applied to every tensor."""
        return Slots(*(change(x) for x in (self.key, self.value, self.log_gate, self.age, self.filled)))

    def cat(self, newer: Slots, dim: int = 1) -> Slots:
        """Both, joined at the axis of slots: these first, in the types of these."""
        pairs = ((getattr(self, name), getattr(newer, name)) for name in self.__dataclass_fields__)
        return Slots(*(torch.cat([x, y.to(x.dtype)], dim=dim) for x, y in pairs))

    def take(self, index: Tensor) -> Slots:
        """Of slots of rows (B, M, ...) those at `index` (B, ...), int64."""
        return self.map(lambda x: take_rows(x, index))

    def only(self, kept: Tensor) -> Slots:
        """Filled where `kept` says so too."""
        return replace(self, filled=self.filled & kept)

    def older(self, tokens: Tensor | int) -> Slots:
        """The slots as a reader finds them that starts so many tokens later."""
        return replace(self, age=self.age + tokens)

    def cleared(self) -> Slots:
        """Zero where nothing is filled."""

        def clear(x: Tensor) -> Tensor:
            return torch.where(
                self.filled.view(*self.filled.shape, *[1] * (x.dim() - self.filled.dim())), x, 0
            )

        return replace(self.map(clear), filled=self.filled)


def ablate(bank: Slots, mode: MemoryMode) -> Slots:
    """The bank that the segments read: "zeroed" finds it empty, "shuffled" finds that of the row before.

    "frozen" acts where a bank is written (`Memory.write`): what it holds is read as it is.
    """
    if mode == "zeroed":
        return bank.only(torch.zeros_like(bank.filled))
    return bank.map(lambda x: x.roll(1, 0)) if mode == "shuffled" else bank


def with_null(
    key_BNJKD: Tensor, value_BNJKD: Tensor, bias: Tensor, null_key: Tensor, null_value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a query sees of slots, keys, values and bias (B, N, J) or (B, N, J, K), with the null slot (K, D)
    in front."""
    shape = (*bias.shape[:2], 1, *null_key.shape)
    null_key, null_value = (x.to(key_BNJKD.dtype).expand(shape) for x in (null_key, null_value))
    key_BNJKD = torch.cat([null_key, key_BNJKD], dim=2)
    value_BNJKD = torch.cat([null_value, value_BNJKD], dim=2)
    return key_BNJKD, value_BNJKD, torch.cat([torch.zeros_like(bias[:, :, :1]), bias], dim=2)
