"""What is the same for every block in one call of the model, made once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rmat.model.config import ModelConfig
from rmat.model.layout import Layout
from rmat.model.rotary import Rotary
from rmat.model.slots import MemoryMode
from rmat.model.streams import KeyRange


@dataclass(frozen=True, kw_only=True)
class Call:
    """The circumstances of a call."""

    layout: Layout
    banks: Layout
    """The layout with a row for every bank: `layout`, or each row once for every key head that keeps slots of
    its own."""
    rotary: Rotary
    ranges: dict[str, KeyRange]
    """For every set of local projections (`ModelConfig.held`): its keys, their places, angles and masks."""
    memory: MemoryMode
    training: bool
    """Whether dropout, noise on the scores of writes and their price act."""
    step: bool
    """Whether this is a step of decoding, which uses and leaves a `Window`: one token, no gradients, the
    memory as it is."""

    @staticmethod
    def of(
        config: ModelConfig, layout: Layout, dtype: torch.dtype, memory: MemoryMode, training: bool
    ) -> Call:
        """`dtype` is the model's floating type."""
        rotary = Rotary.of(config, layout, dtype)
        ranges = {name: KeyRange.of(config, name, layout, rotary) for name in config.held}
        banks = layout if config.slot_groups == 1 else layout.repeated(config.slot_groups)
        step = layout.single and memory == "on" and not (torch.is_grad_enabled() or training)
        return Call(
            layout=layout,
            banks=banks,
            rotary=rotary,
            ranges=ranges,
            memory=memory,
            training=training,
            step=step,
        )
