"""A place in a text on disk: the text goes on from it as if it had never been interrupted."""

from pathlib import Path

import pytest
import torch

from rmat.data.tokenizer import Tokenizer, load_tokenizer
from rmat.generation.stream import generate
from rmat.model import LanguageModel, ModelConfig, StreamState
from rmat.storage import load_state, save_state


@pytest.fixture
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@pytest.fixture
def model(tokenizer: Tokenizer) -> LanguageModel:
    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 2, "segment_len": 16, "n_slots": 8}
    config = ModelConfig.preset("tiny", vocab_size=tokenizer.vocab_size, tie_embeddings=False, **sizes)
    model = LanguageModel(config).eval()
    with torch.no_grad():
        model.head.weight.mul_(40)
        # Printable ASCII only, and never the end of a text: texts are as long as asked for.
        model.head.weight[:32] = 0
        model.head.weight[127:] = 0
    return model


def test_a_text_goes_on_from_disk_as_if_never_interrupted(
    model: LanguageModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = generate(model, tokenizer, "once upon", max_new_tokens=30, temperature=0)
    list(whole)
    first = generate(model, tokenizer, "once upon", max_new_tokens=11, temperature=0)
    list(first)
    assert first.state is not None and first.next_logits is not None
    save_state(tmp_path / "place", first.state, first.next_logits)
    state, logits = load_state(tmp_path / "place", model.config)
    second = generate(model, tokenizer, "", max_new_tokens=19, temperature=0, state=state, next_logits=logits)
    list(second)
    assert first.tokens + second.tokens == whole.tokens


def test_the_file_is_also_a_plain_state(model: LanguageModel, tmp_path: Path) -> None:
    state = model.initial_state(batch_size=1)
    save_state(tmp_path / "place", state, torch.arange(model.config.vocab_size).double())
    loaded = StreamState.load(tmp_path / "place", model.config)
    assert all(torch.equal(tensor, loaded.tensors()[name]) for name, tensor in state.tensors().items())
    assert [path.name for path in tmp_path.iterdir()] == ["place"], "no unfinished file is left"


def test_a_plain_state_has_no_logits(model: LanguageModel, tmp_path: Path) -> None:
    model.initial_state(batch_size=1).save(tmp_path / "state")
    assert load_state(tmp_path / "state", model.config)[1] is None


def test_errors_say_where(model: LanguageModel, tmp_path: Path) -> None:
    state = model.initial_state(batch_size=1)
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_state(tmp_path / "missing" / "place", state, torch.zeros(model.config.vocab_size))
    save_state(tmp_path / "place", state, torch.zeros(3))
    with pytest.raises(ValueError, match="logits for 3 tokens"):
        load_state(tmp_path / "place", model.config)
