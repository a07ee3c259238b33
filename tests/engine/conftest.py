"""A small byte model whose text is far from uniform and printable, shared by the tests of the engine."""

import copy

import pytest

from rmat.data.tokenizer import Tokenizer, load_tokenizer
from rmat.model import LanguageModel, ModelConfig
from tests.makers.engines import small_model


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> LanguageModel:
    return small_model("recommended", tokenizer)


@pytest.fixture(scope="session")
def exact_model(model: LanguageModel) -> LanguageModel:
    """The model in float64, where rounding cannot tip a draw: texts must be the same, whoever they are
    written with."""
    return copy.deepcopy(model).double()


@pytest.fixture(scope="session")
def other_model(tokenizer: Tokenizer) -> LanguageModel:
    """A model of another configuration."""
    return LanguageModel(ModelConfig.preset("tiny", n_layers=1, d_model=8, vocab_size=tokenizer.vocab_size))
