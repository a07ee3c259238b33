"""A pretrained model as one of ours, and back to a folder of Hugging Face."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmat.data.tokenizer import Tokenizer
from rmat.model import LanguageModel
from rmat.model.config import EVICTION_FIELDS
from rmat.pretrained.architecture import Window, configuration, source_names
from rmat.pretrained.source import GATES_FILE as GATES_FILE
from rmat.pretrained.source import Source, open_source
from rmat.settings import choice, known_keywords
from rmat.storage import assigned, read_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

OPEN = 40.0
"""Score of every token before gates are fitted: all are admitted, and log g is as good as 0, so that the bank
is the most recent tokens behind the window."""


# What a program in inference mode loads can be trained later.
@torch.inference_mode(False)
@known_keywords()
def from_pretrained(
    source: str | Path,
    *,
    window: int | None = None,
    n_slots: int | None = None,
    n_sinks: int | None = None,
    dtype: str = "float32",
    gates: bool = True,
    device: torch.device | str = "cpu",
) -> tuple[LanguageModel, Tokenizer]:
    """A pretrained model whose state has one size: its weights, read through a window and a bank.

    Args:
        source: a folder of Hugging Face, a hub id (owner/name), a .gguf file, or `smollm2`.
        window: tokens of exact local attention that the state holds, even; the newest half to all of them are
            in sight. The trained context or more: full attention over the trained context, and no bank.
        n_slots: slots of every key head's bank. n_sinks: first tokens that stay in sight. Of all three None
            takes what the gates were fitted for, else what suits the trained context.
        dtype: "float32" or "bfloat16".
        gates: whether fitted gates are used where there are some: those of `smollm2` come with this package,
            a folder of `export_model` has its own. Otherwise all are open: the bank holds the newest tokens
            behind the window.

    Returns: the model in evaluation mode, and its tokenizer with its chat template.

    Raises ValueError that names what cannot be honoured, FileNotFoundError, and OSError without a network.
    """
    choice("dtype", dtype, DTYPES)
    found = open_source(source)
    window_ = Window(window, n_slots, n_sinks)
    return _model(found, window_, DTYPES[dtype], gates).to(device), found.tokenizer


def _model(source: Source, window: Window, dtype: torch.dtype, fitted: bool) -> LanguageModel:
    gates: dict[str, Tensor] = {}
    leaves: dict[str, Any] = {}
    if source.gates is not None:
        metadata, gates = read_tensors(source.gates)
        given = json.loads(metadata["rmat"])
        if window == Window():
            window = Window(given["window"], given["n_slots"], given["n_sinks"])
        if fitted:
            leaves = {name: given[name] for name in EVICTION_FIELDS if name in given}
        else:
            gates = {}
    config = configuration(source.config, window)
    if config.has_memory:
        config = dataclasses.replace(config, **leaves)
    if source.tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{source.name}: the tokenizer has {source.tokenizer.vocab_size} tokens, the weights are for "
            f"{config.vocab_size}: one of them belongs to another model"
        )
    left = {name for name in source.tensors.names() if "rotary_emb" not in name}
    tensors: dict[str, Tensor] = {}
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        expected = {name: parameter.shape for name, parameter in LanguageModel(config).named_parameters()}
    for name, theirs in source_names(iter(expected)):
        if theirs is None:  # of the memory: every token is admitted
            value = OPEN if name.endswith("score.bias") else 0.0
            tensors[name] = torch.full(expected[name], value, dtype=dtype, device="cpu")
            if name in gates:
                tensors[name].copy_(gates[name])
            continue
        if theirs not in left:
            raise ValueError(f"{source.name} lacks the tensor {theirs!r} that its config.json asks for")
        left.remove(theirs)
        tensor = source.tensors.get(theirs)
        if tensor.shape != expected[name]:
            raise ValueError(
                f"{source.name}: {theirs} has shape {tuple(tensor.shape)}, its config.json needs "
                f"{tuple(expected[name])}"
            )
        tensors[name] = tensor.to(dtype)
    left -= {"lm_head.weight"} if config.tie_embeddings else set()
    if left:
        raise ValueError(
            f"{source.name} has the tensor {min(left)!r}, which its config.json does not explain"
        )
    return assigned(config, tensors)
