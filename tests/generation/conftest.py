"""A small byte model whose text is far from uniform, so that greedy and sampled texts differ."""

import pytest
import torch

from rmat.data.tokenizer import Tokenizer, load_tokenizer
from rmat.model import LanguageModel, ModelConfig


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig.preset(
        "tiny",
        vocab_size=tokenizer.vocab_size,
        n_layers=2,
        d_model=32,
        n_heads=2,
        segment_len=16,
        n_slots=8,
        tie_embeddings=False,
    )
    model = LanguageModel(config).eval()
    with torch.no_grad():
        model.head.weight.mul_(40)
        # Printable ASCII only, and never the end of a text: texts are as long as asked for.
        model.head.weight[:32] = 0
        model.head.weight[127:] = 0
    return model
