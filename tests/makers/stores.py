"""A small store, a tokenizer whose tokens have known widths, and tiny models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rmat.model import LanguageModel, ModelConfig
from rmat.model.evaluating import is_training

VOCAB = 40
DOCUMENT = 0
"""Id of the document token; it stands for no text."""


class Widths:
    """A tokenizer by its byte counts alone: token i stands for 1 + i % 3 bytes."""

    vocab_size = VOCAB
    byte_lengths: NDArray[np.int64] = np.array([0, *(1 + i % 3 for i in range(1, VOCAB))], dtype=np.int64)

    def byte_counts(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        return self.byte_lengths[ids]


class Store:
    """Documents in memory: each the document token and then the given tokens."""

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        self._documents = [np.array([DOCUMENT, *tokens], dtype=np.int32) for tokens in documents]

    def __len__(self) -> int:
        return len(self._documents)

    def view(self, index: int) -> NDArray[Any]:
        return self._documents[index]

    def document_bytes(self, index: int) -> int:
        return int(Widths.byte_lengths[self._documents[index]].sum())


class Rows(list[Any]):
    """What stands for a state: a list of what was read by every row."""

    nbytes = 17

    def position_on_cpu(self) -> torch.Tensor:
        return torch.tensor([len(row) for row in self])


class StandIn(torch.nn.Module):
    """A model by its `forward` alone, for the reader: what stands for hidden vectors are its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def hidden(
        self,
        tokens: torch.Tensor,
        state: Any = None,
        *,
        valid: torch.Tensor | None = None,
        memory: str = "on",
    ) -> Any:
        assert not is_training(self) and not torch.is_grad_enabled()
        state = self.initial_state(batch_size=len(tokens)) if state is None else state
        return self(tokens, state, valid=valid, memory=memory)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def random_store(lengths: Sequence[int], seed: int = 0) -> Store:
    """Documents of random tokens; `lengths` in tokens, without the document token."""
    random = np.random.default_rng(seed)
    return Store([random.integers(1, VOCAB, size=length).tolist() for length in lengths])


def tiny_model(variant: str = "recommended", **fields: Any) -> LanguageModel:
    """A float64 model with segments of 8 tokens, with weights far enough from zero that the memory matters."""
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "d_model": 16, "n_heads": 2, "segment_len": 8, "n_slots": 8, "vocab_size": VOCAB}
    model = LanguageModel(ModelConfig.preset("tiny", variant=variant, **{**sizes, **fields})).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()
