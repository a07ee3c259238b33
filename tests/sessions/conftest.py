"""A small byte model whose answers are as long as asked for, and its tokenizer."""

import pytest

from rmat.data.tokenizer import Tokenizer, load_tokenizer
from rmat.model import LanguageModel
from tests.makers.engines import small_model


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> LanguageModel:
    return small_model("recommended", tokenizer)
