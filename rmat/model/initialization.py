"""The distribution of every parameter, in one table."""

from __future__ import annotations

import math
from collections.abc import Collection
from fnmatch import fnmatch
from typing import TYPE_CHECKING

import torch
from torch import nn

from rmat.model.config import ModelConfig

if TYPE_CHECKING:
    from rmat.model.language_model import LanguageModel

OPEN = 1.0
"""Bias of the GRU gate: a new memory takes writes, and learns what to keep."""


def table(config: ModelConfig) -> list[tuple[str, float, float]]:
    """(pattern of names, mean, standard deviation); the first pattern that matches a name holds. A deviation
    of 0 makes a constant."""
    width = config.d_model**-0.5
    residual = (2 * config.n_layers) ** -0.5  # every layer adds two terms to the residual stream
    return [
        ("embedding.weight", 0.0, width),
        ("head.weight", 0.0, width),
        ("*norm.weight", 1.0, 0.0),
        ("*norm.bias", 0.0, 0.0),
        ("*.convolution.weight", 0.0, 0.3),
        ("*.writer.score.weight", 0.0, 0.1 * width),
        ("*.writer.score.bias", config.gate_bias, 0.0),
        ("*.writer.queries", 0.0, 1.0),
        ("*.memory.gate.candidate.bias", OPEN, 0.0),
        ("*.memory.null_*", 0.0, 0.02),
        ("*.memory.place_key", 0.0, 0.02),
        (
            "*.memory.read_bias",
            -math.log(config.n_slots),
            0.0,
        ),  # a new query passes over slots that are not meant
        ("*.fusion.logits", 0.0, 0.0),
        ("*.fusion.map.weight", 0.0, 0.1 * width),
        ("*.output.weight", 0.0, residual * width),
        ("*.feedforward.down.weight", 0.0, residual * config.d_ff**-0.5),
        ("*.bias", 0.0, 0.0),
        ("*.weight", 0.0, width),
    ]


def initialize(model: LanguageModel, names: Collection[str] | None = None) -> None:
    """Draw every parameter, or those of `names`, from its row of the table. The convolution's tap on the
    token itself starts at 1. Nothing is drawn on the device meta."""
    rows = table(model.config)
    for name, parameter in model.named_parameters():
        if parameter.is_meta or (names is not None and name not in names):
            continue
        mean, deviation = next((mean, std) for pattern, mean, std in rows if fnmatch(name, pattern))
        with torch.no_grad():
            nn.init.normal_(parameter, mean, deviation) if deviation else nn.init.constant_(parameter, mean)
            if name.endswith("convolution.weight"):
                parameter[0] = 1.0
            assert math.isfinite(float(parameter.abs().sum())), name
    _align_memory(model, names)


def _align_memory(model: LanguageModel, names: Collection[str] | None) -> None:
    """Let the first query head of every group ask in the terms of its key head: what a token stored is found
    by a token like it from the first step on, and recall need not wait until two random projections meet."""
    config = model.config
    group = config.n_heads // config.n_kv_heads
    for name, query in model.named_parameters():
        if name.endswith("memory.query.weight") and (names is None or name in names):
            key = model.get_parameter(name.replace("query", "key"))
            with torch.no_grad():
                heads = query.view(config.n_kv_heads, group, config.head_dim, config.d_model)
                heads[:, 0] = key.view(config.n_kv_heads, config.head_dim, config.d_model)
