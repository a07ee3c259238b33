"""A model reads alike whatever the process around it does: torch's defaults, other threads, a wrong name, a print."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rmat.accounting import account
from rmat.model import LanguageModel, ModelConfig
from rmat.model.evaluating import evaluating, is_training
from rmat.storage import load_model, save_model
from tests.makers.models import make_model, make_tokens, schedules_of

NAMES = ["recommended", "paper", "joint_both_gates", "weakest_leaves_newest_first", "pool_gru_token", "full"]


@contextmanager
def default(kind: str) -> Iterator[None]:
    """torch's default device, or its default floating type, is another than the model's."""
    try:
        torch.set_default_device("meta") if kind == "device" else torch.set_default_dtype(torch.float64)
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def read(model: LanguageModel, tokens: Tensor, resets: Tensor, valid: Tensor) -> list[Tensor]:
    """What a model computes in every schedule and ablation, whole, ragged and token by token."""
    found = []
    for schedule in schedules_of(model.config):
        for memory in ("on", "zeroed", "frozen", "shuffled"):
            logits, state = model(tokens, schedule=schedule, memory=memory)
            more, state = model(tokens, state, resets=resets, valid=valid, memory=memory)
            one, state = model(tokens[:, :1], state, memory=memory)
            found += [logits, more, one, *state.select([1, 0]).to(torch.float32).detach().tensors().values()]
    return found


@pytest.mark.parametrize("kind", ["device", "type"])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_reads_alike_under_other_defaults_of_torch(name: str, kind: str) -> None:
    model, tokens = make_model(name, dtype=torch.float32), make_tokens(2, 21)
    resets, valid = torch.zeros(2, 21, dtype=torch.bool), torch.zeros(2, 21, dtype=torch.bool)
    resets[0, 5], valid[:, :17] = True, True
    expected = read(model, tokens, resets, valid)
    with default(kind):
        found = read(model, tokens, resets, valid)
    for a, b in zip(found, expected, strict=True):
        assert a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("kind", ["device", "type"])
def test_files_copies_and_costs_are_the_same_under_other_defaults(kind: str, tmp_path: Path) -> None:
    model = make_model("recommended", dtype=torch.float32)
    save_model(model, tmp_path / "m")
    tokens, costs = make_tokens(1, 9), account(model.config)
    expected, state = model(tokens)
    state.save(tmp_path / "s.safetensors")
    with default(kind):
        assert account(model.config) == costs
        for other in (load_model(tmp_path / "m"), model.with_slots()):
            assert torch.equal(other(tokens)[0], expected)
        loaded = type(state).load(tmp_path / "s.safetensors", model.config)
        assert all(torch.equal(x, state.tensors()[name]) for name, x in loaded.tensors().items())


def test_parameters_are_float32_whatever_the_default_type() -> None:
    with default("type"):
        model = LanguageModel(ModelConfig.preset("tiny", "paper", vocab_size=9, d_model=16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def noisy() -> LanguageModel:
    """In training mode, where it drops values and adds noise to scores."""
    return make_model("recommended", dropout=0.5, gate_noise=1.0).train()


def test_reading_leaves_the_mode_alone_and_uses_neither_dropout_nor_noise() -> None:
    model, tokens = noisy(), make_tokens(2, 21)
    expected = model.eval()(tokens)[0]
    model.train()
    assert not torch.equal(model(tokens)[0], expected)
    with evaluating(model):
        assert model.training and not is_training(model)
        with evaluating(model):
            assert torch.equal(model(tokens)[0], expected)
        assert torch.equal(model(tokens)[0], expected)
        assert is_training(noisy()), "another model is not read"
    assert is_training(model) and not torch.equal(model(tokens)[0], expected)


def test_a_wrapped_model_is_read_too() -> None:
    model, tokens = noisy(), make_tokens(2, 9)
    wrapped = nn.Sequential(model).train()
    with evaluating(wrapped):
        assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_threads_read_while_another_trains() -> None:
    """Readers begin and end at any time; the training thread always uses dropout, the readers never do."""
    model, tokens = noisy(), make_tokens(2, 21)
    with evaluating(model):
        expected = model(tokens)[0]
    found: list[bool] = []

    def work() -> None:
        for _ in range(5):
            with evaluating(model):
                found.append(torch.equal(model(tokens)[0], expected))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    trained = [torch.equal(model(tokens)[0], expected) for _ in range(10)]
    for thread in threads:
        thread.join()
    assert found == [True] * 15 and trained == [False] * 10 and model.training


@pytest.mark.parametrize("call", ["forward", "hidden"])
def test_an_unknown_argument_is_answered_with_the_nearest(call: str) -> None:
    model = make_model("recommended")
    with pytest.raises(TypeError, match="takes no 'reset': did you mean 'resets'"):
        getattr(model, call)(make_tokens(1, 3), reset=None)


@pytest.mark.parametrize(
    ("make", "right"),
    [
        (lambda: ModelConfig.preset("tiny", varient="paper"), "variant"),
        (lambda: ModelConfig.preset("tiny", n_slot=4), "n_slots"),
        (lambda: ModelConfig(vocab_sise=4), "vocab_size"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(make: Any, right: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"did you mean '{right}'"):
        make()


def test_a_state_prints_as_one_line() -> None:
    model = make_model("recommended", dtype=torch.float32)
    _, state = model(make_tokens(2, 20))
    assert repr(state) == (
        f"StreamState(rows=2, position=[20, 20], layers=2, float32, {state.nbytes:,} bytes)"
    )
    many = repr(state.select([0] * 9))
    assert "rows=9, position=[20, 20, 20, 20, ...]" in many and len(many) < 120
    assert "position=on meta" in repr(state.to("meta"))
    layer = repr(state.layers[0])
    assert layer.startswith("LayerState(") and "slot_key" in layer and len(layer) < 220


def test_text_is_read_under_autocast() -> None:
    from rmat.generation.reader import read as read_rows

    model = make_model("recommended").float().eval()
    with torch.autocast("cpu", torch.bfloat16):
        last_BV, _ = read_rows(model, [[1, 2, 3], [4, 5]])
    assert last_BV.dtype == torch.float32 and last_BV.isfinite().all()


def test_rows_may_be_counted_by_numpy() -> None:
    import numpy as np

    assert make_model("recommended").initial_state(np.int64(2)).batch_size == 2  # type: ignore[arg-type]
