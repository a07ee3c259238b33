"""What holds for all tests: one thread, a fixed seed, and no network."""

import os

# Before torch is imported here or in a subprocess: tiny tensors are slower on several threads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Random numbers do not depend on which tests ran before."""
    torch.manual_seed(0)
    yield
