"""A place in a text on disk: the state, and the logits of the token that comes next.

The file is one that `StreamState.load` reads; the logits stand in its metadata, because they are no part of a
state but let a text go on without a prompt.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmat.model import ModelConfig, StreamState

LOGITS_KEY = "rmat.next_logits"
"""Metadata entry: base64 of V little-endian float32."""


def save_place(path: str | Path, state: StreamState, next_logits: Tensor) -> None:
    """Write `state` and `next_logits` (V,) to a safetensors file, whole or not at all."""
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} to write {target.name} into: make it first")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        state.save(unfinished)
        with safe_open(str(unfinished), framework="pt") as file:
            metadata = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        raw = next_logits.detach().float().cpu().numpy().astype("<f4").tobytes()
        save_file(tensors, str(unfinished), {**metadata, LOGITS_KEY: base64.b64encode(raw).decode()})
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def load_place(path: str | Path, config: ModelConfig) -> tuple[StreamState, Tensor | None]:
    """The state in a file of `save_place`, on the CPU, and the logits (V,); None for a file of `StreamState.save`.

    Errors as in `StreamState.load`.
    """
    state = StreamState.load(path, config)
    with safe_open(str(path), framework="pt") as file:
        encoded = (file.metadata() or {}).get(LOGITS_KEY)
    if encoded is None:
        return state, None
    logits = torch.from_numpy(np.frombuffer(base64.b64decode(encoded), dtype="<f4").astype(np.float32))
    if logits.shape != (config.vocab_size,):
        raise ValueError(
            f"{path} is damaged: it has logits for {len(logits)} tokens, the model has {config.vocab_size}"
        )
    return state, logits
