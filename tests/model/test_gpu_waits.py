"""No call of a model waits for a GPU's work: what decides on shapes is known on the CPU."""

import warnings
from collections.abc import Callable

import pytest
import torch

from tests.makers.models import make_model, make_tokens

CASES = ["recommended", "paper", "local", "full", "admitted", "admitted_of_heads", "admitted_all_with_sinks"]


def waits(work: Callable[[], object]) -> list[str]:
    """What made the CPU wait for the GPU during `work`."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [str(w.message) for w in seen if "synchroniz" in str(w.message)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts what a GPU is waited for")
@pytest.mark.parametrize("case", CASES)
def test_calls_do_not_wait(case: str) -> None:
    """Training from an empty state, a step of decoding, and rows with padding and document starts."""
    model = make_model(case, dtype=torch.float32).to("cuda")
    tokens = make_tokens(2, 25).to("cuda")
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

    for work in (train, decode, ragged):
        work()  # tables of angles and workspaces are made once
        assert not waits(work), work.__name__
