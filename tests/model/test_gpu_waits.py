"""No call of a model waits for a GPU's work: what decides on shapes is known on the CPU."""

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rmat
from rmat.model import LanguageModel
from tests.makers.models import make_model, make_tokens

CASES = ["recommended", "paper", "local", "full", "admitted", "admitted_of_heads", "admitted_all_with_sinks"]

ROOM = str(Path(rmat.__file__).parent)


def calls(model: LanguageModel, device: str) -> list[Callable[[], None]]:
    """Training from an empty state, steps of decoding, and rows with padding and document starts."""
    tokens = make_tokens(2, 25).to(device)
    resets = torch.zeros(2, 25, dtype=torch.bool)
    resets[0, 7] = resets[1, 0] = True
    valid = torch.arange(25) < torch.tensor([[25], [13]])

    def train() -> None:
        model(tokens)[0].sum().backward()

    def decode() -> None:
        with torch.no_grad():
            _, state = model(tokens)
            for _ in range(8):
                _, state = model(tokens[:, :1], state)

    def ragged() -> None:
        with torch.no_grad():
            _, state = model(tokens, resets=resets, valid=valid)
            model(tokens[:, :3], state, resets=resets[:, :3])

    return [train, decode, ragged]


def place(frames: traceback.StackSummary) -> str:
    """The innermost line of the package."""
    return next((f"{x.filename}:{x.lineno}" for x in reversed(frames) if x.filename.startswith(ROOM)), "")


class BlockingCopies(TorchDispatchMode):
    """Notes where tensors are copied between devices by a copy that a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if "copy" in func.name():
            devices = {x.device.type for x in (*args, found) if isinstance(x, torch.Tensor)}
            waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True))
            if len(devices) > 1 and waits:
                self.seen.append(f"{func.name()} at {place(traceback.extract_stack())}")
        return found


@pytest.mark.parametrize("case", CASES)
def test_calls_ask_nothing_of_the_device(case: str) -> None:
    """On `meta` there is nothing to ask for: a number that is wanted from there is an error."""
    for work in calls(make_model(case, dtype=torch.float32).to("meta"), "meta"):
        with BlockingCopies() as copies:
            work()
        assert not copies.seen, work.__name__


def waits(work: Callable[[], object]) -> list[str]:
    """What made the CPU wait for the GPU during `work`, and where."""
    torch.cuda.synchronize()
    found: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            found.append(f"{str(message).splitlines()[0]} at {place(traceback.extract_stack())}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        found.clear()  # that the mode is a prototype
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts what a GPU is waited for")
@pytest.mark.parametrize("case", CASES)
def test_calls_do_not_wait(case: str) -> None:
    for work in calls(make_model(case, dtype=torch.float32).to("cuda"), "cuda"):
        work()  # tables of angles and workspaces are made once
        assert not waits(work), work.__name__
