"""Contract 8: a stream read for ten million tokens gives the same numbers as at token 0."""

import pytest
import torch

from rmat.model import StreamState
from tests.makers.models import CASES, make_model, make_tokens, schedules_of, shifted

AGES = (10**7, 10**12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_state_moved_to_a_great_age_goes_on_with_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    model = make_model(name, dtype=dtype)
    length = model.config.segment_len
    _, young = model(make_tokens(2, 3 * length + 2))
    tokens = make_tokens(2, 3 * length + 1, seed=1)
    for schedule in schedules_of(model.config):
        expected, expected_state = model(tokens, young, schedule=schedule)
        for age in AGES:
            shift = age // length * length
            logits, state = model(tokens, shifted(young, model.config, shift), schedule=schedule)
            assert state.position.tolist() == (young.position + shift + tokens.shape[1]).tolist()
            assert torch.equal(logits, expected), f"logits at age {age}, {schedule}"
            moved = dict(shifted(expected_state, model.config, shift).tensors())
            for key, tensor in state.tensors().items():
                if not key.endswith("pushed"):
                    assert torch.equal(tensor, moved[key]), f"{key} at age {age}, {schedule}"


@pytest.mark.parametrize("name", ["recommended", "paper", "xl"])
def test_a_repeated_segment_gives_repeated_logits(name: str) -> None:
    """Read for real, not by moving a state: once the bank holds nothing but copies of one segment, nothing drifts."""
    case = dict(CASES[name], gate="none", write_from="input", conv_width=0, chunk_lookback=0, n_layers=1)
    model = make_model({"variant": name, **case})
    segment = make_tokens(1, model.config.segment_len)
    state: StreamState | None = None
    with torch.no_grad():
        _, state = model(segment.repeat(1, 30), state)
        early, state = model(segment, state)
        _, state = model(segment.repeat(1, 2000), state)
        late, state = model(segment, state)
    assert state.position.item() == 2032 * model.config.segment_len
    assert float((late - early).abs().max()) < 1e-11
