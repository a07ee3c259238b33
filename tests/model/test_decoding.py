"""Steps of decoding keep what they need beside the state: it changes no number, and no state."""

import random

import pytest
import torch
from torch import Tensor

from rmat.model import LanguageModel, StreamState
from tests.makers.models import CASES, assert_close, assert_same_state, make_model, make_tokens

STEPS = 26


def plain(model: LanguageModel, state: StreamState) -> StreamState:
    """The state as a file would give it back."""
    return StreamState.from_tensors(model.config, state.tensors())


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_what_it_is_from_the_saved_state(case: str) -> None:
    model = make_model(case)
    tokens = make_tokens(2, STEPS + 3)
    with torch.no_grad():
        _, state = model(tokens[:, :3])
        for t in range(3, STEPS + 3):
            expected, after = model(tokens[:, t : t + 1], plain(model, state))
            logits, state = model(tokens[:, t : t + 1], state)
            assert_close(logits, expected, f"logits at {t}", tolerance=1e-12)
            assert_same_state(state, after, f"state at {t}", tolerance=1e-12)


@pytest.mark.parametrize("case", ["recommended", "local", "full", "admitted_of_heads"])
def test_every_state_of_a_text_stays_valid(case: str) -> None:
    """Two texts go on from every state of a first one, in any order; the states are what they were."""
    model, tokens = make_model(case), make_tokens(1, STEPS)
    with torch.no_grad():
        states: list[StreamState] = [model.initial_state(1)]
        logits: list[Tensor] = []
        for t in range(STEPS):
            found, state = model(tokens[:, t : t + 1], states[-1])
            states.append(state)
            logits.append(found)
        saved = [plain(model, state) for state in states]
        order = [*range(STEPS)] * 2
        random.Random(0).shuffle(order)
        for t in order:
            assert_close(model(tokens[:, t : t + 1], states[t])[0], logits[t], f"again at {t}", tolerance=0.0)
            other = (tokens[:, t : t + 1] + 1) % model.config.vocab_size
            expected, _ = model(other, saved[t])
            assert_close(model(other, states[t])[0], expected, f"another text at {t}", tolerance=1e-12)
        for state, before in zip(states, saved, strict=True):
            assert_same_state(state, before, tolerance=0.0)


def test_what_is_kept_is_not_used_where_it_does_not_hold() -> None:
    """Not with an ablated memory, other rows, a fresh document, learned slots that have changed, or gradients."""
    model = make_model("admitted_of_heads")
    tokens = make_tokens(2, 30)
    with torch.no_grad():
        _, state = model(tokens[:, :27])
        _, state = model(tokens[:, 27:28], state)
        assert state.layers[0].windows
        token = tokens[:, 28:29]
        resets = torch.tensor([[True], [False]])
        for options in ({"memory": "zeroed"}, {"memory": "shuffled"}, {"resets": resets}):
            found, expected = (model(token, s, **options)[0] for s in (state, plain(model, state)))
            assert_close(found, expected, str(options), tolerance=1e-12)
        assert not state.select([1, 0]).layers[0].windows
        model.get_parameter("blocks.0.memory.null_value").add_(1.0)
        found, expected = (model(token, s)[0] for s in (state, plain(model, state)))
        assert_close(found, expected, "another null slot", tolerance=1e-12)
    assert not model(token, state)[1].layers[0].windows


def test_bytes_do_not_grow() -> None:
    model = make_model("admitted_of_heads")
    with torch.inference_mode():
        state = model.initial_state(1)
        for token in make_tokens(1, 40)[0]:
            _, state = model(token.view(1, 1), state)
            assert state.nbytes == model.initial_state(1).nbytes
