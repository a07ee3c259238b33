"""What a run shares with the process around it: the generators of random numbers, and torch's defaults."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), Python and numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every generator: torch's as tensors of bytes, Python's and numpy's as JSON-able values."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numpy_state = [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)]
    return tensors, {"python": [version, list(words), gauss], "numpy": numpy_state}


def restore(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Put back what `capture` gave; a generator whose state is not among the tensors goes on as it is."""
    if "torch" in tensors:
        torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = values["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever draws random numbers inside leaves the generators as they were."""
    kept = capture()
    try:
        yield
    finally:
        restore(*kept)


@contextlib.contextmanager
def own_defaults() -> Iterator[None]:
    """Inside, new tensors are float32 on the CPU, gradients are recorded and nothing is cast, whatever the
    process's defaults are."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    # Only where it is needed: this context sees every call of torch, which costs time.
    elsewhere = torch.get_default_device().type != "cpu"
    try:
        with (
            torch.device("cpu") if elsewhere else contextlib.nullcontext(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else contextlib.nullcontext(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
