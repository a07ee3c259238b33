"""Contract 11: the size of the state does not depend on how much was read."""

import pytest
import torch

from tests.makers.models import CASES, make_model, make_tokens, schedules_of


@pytest.mark.parametrize("name", CASES)
def test_state_bytes_stay_the_same(name: str) -> None:
    model = make_model(name, dtype=torch.float32)
    sizes = {model.initial_state(2).nbytes}
    shapes = {key: tensor.shape for key, tensor in model.initial_state(2).tensors().items()}
    for schedule in schedules_of(model.config):
        state = None
        with torch.no_grad():
            for length in (1, 9, 40, 3, 111):
                _, state = model(make_tokens(2, length, seed=length), state, schedule=schedule)
                sizes.add(state.nbytes)
                assert {key: tensor.shape for key, tensor in state.tensors().items()} == shapes
    assert len(sizes) == 1, f"state bytes vary: {sorted(sizes)}"


@pytest.mark.parametrize("name", ["recommended", "paper", "xl", "full"])
def test_a_state_does_not_keep_larger_tensors_alive(name: str) -> None:
    """A slice counts few bytes and holds the whole tensor it was cut from: what is really held must be small too."""
    model = make_model(name, dtype=torch.float32)
    held = []
    for length in (30, 600 if schedules_of(model.config) == ("sequential",) else 3000):
        with torch.no_grad():
            _, state = model(make_tokens(1, length))
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.tensors().values()
        }
        held.append(sum(storages.values()))
    assert held[1] <= 2 * max(held[0], state.nbytes), f"bytes held alive: {held}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recommended", "xl"])
def test_state_bytes_after_a_million_tokens(name: str) -> None:
    model = make_model(name, dtype=torch.float32, n_layers=1, segment_len=60, chunk_len=30, n_slots=60)
    _, state = model(make_tokens(1, 10))
    before = state.nbytes
    with torch.no_grad():
        for piece in range(10):
            _, state = model(make_tokens(1, 100_000, seed=piece), state)
    assert state.position.item() == 1_000_010
    assert state.nbytes == before
