from pathlib import Path

import pytest
import torch

from rmat.data.tokenizer import Tokenizer
from rmat.generation.resume import load_place, save_place
from rmat.generation.stream import generate
from rmat.model import LanguageModel, StreamState


def test_a_text_goes_on_from_disk_as_if_never_interrupted(
    model: LanguageModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = generate(model, tokenizer, "once upon", max_new_tokens=30, temperature=0)
    list(whole)
    first = generate(model, tokenizer, "once upon", max_new_tokens=11, temperature=0)
    list(first)
    assert first.state is not None and first.next_logits is not None
    save_place(tmp_path / "place", first.state, first.next_logits)
    state, logits = load_place(tmp_path / "place", model.config)
    second = generate(model, tokenizer, "", max_new_tokens=19, temperature=0, state=state, next_logits=logits)
    list(second)
    assert first.tokens + second.tokens == whole.tokens


def test_the_file_is_also_a_plain_state(model: LanguageModel, tmp_path: Path) -> None:
    state = model.initial_state(batch_size=1)
    save_place(tmp_path / "place", state, torch.arange(model.config.vocab_size).double())
    loaded = StreamState.load(tmp_path / "place", model.config)
    assert all(torch.equal(tensor, loaded.tensors()[name]) for name, tensor in state.tensors().items())
    assert [path.name for path in tmp_path.iterdir()] == ["place"], "no unfinished file is left"


def test_a_plain_state_has_no_logits(model: LanguageModel, tmp_path: Path) -> None:
    model.initial_state(batch_size=1).save(tmp_path / "state")
    assert load_place(tmp_path / "state", model.config)[1] is None


def test_errors_say_where(model: LanguageModel, tmp_path: Path) -> None:
    state = model.initial_state(batch_size=1)
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_place(tmp_path / "missing" / "place", state, torch.zeros(model.config.vocab_size))
    save_place(tmp_path / "place", state, torch.zeros(3))
    with pytest.raises(ValueError, match="logits for 3 tokens"):
        load_place(tmp_path / "place", model.config)
