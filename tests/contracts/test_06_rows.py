"""Contract 6: a row's result depends neither on its neighbours in the batch nor on padding."""

import random

import pytest
import torch

from rmat.model import StreamState
from tests.makers.configurations import quick, sampled_cases
from tests.makers.models import (
    CASES,
    assert_close,
    assert_same_state,
    make_model,
    make_tokens,
    schedules_of,
)

SAMPLED = sampled_cases(8, seed=6)
SEEDS = quick(range(12), 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [*CASES, *quick(SAMPLED, 2)])
@torch.no_grad()
def test_rows_of_any_age_in_one_batch_equal_rows_alone(name: str, seed: int) -> None:
    """Three rows at different positions of their segments, with padding anywhere, against each row without it."""
    rng = random.Random(f"{name} {seed}")
    model = make_model(SAMPLED.get(name, name), seed=seed % 3)
    length = rng.randint(2, 3 * model.config.segment_len)
    states = [model(make_tokens(1, rng.randint(1, 20), seed=seed + i))[1] for i in range(3)]
    tokens = make_tokens(3, length, seed=seed)
    valid = torch.rand(3, length, generator=torch.Generator().manual_seed(seed)) < rng.choice([0.3, 0.7, 1.0])
    alone = {b: model(tokens[b : b + 1, valid[b]], states[b]) for b in range(3) if valid[b].any()}
    for schedule in schedules_of(model.config):
        logits, final = model(tokens, StreamState.concat(states), valid=valid, schedule=schedule)
        assert bool((logits[~valid] == 0).all()), "logits of padding are zeros"
        for b in range(3):
            if b not in alone:
                assert_same_state(final.select([b]), states[b], f"row {b} of nothing but padding")
                continue
            expected, expected_state = alone[b]
            assert_close(logits[b : b + 1, valid[b]], expected, f"row {b}, {schedule}")
            assert_same_state(final.select([b]), expected_state, f"state of row {b}, {schedule}")


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_content_of_padding_does_not_matter(name: str) -> None:
    model = make_model(name)
    tokens = make_tokens(2, 20)
    valid = torch.ones(2, 20, dtype=torch.bool)
    valid[0, 3:9] = valid[1, 15:] = False
    other = torch.where(valid, tokens, make_tokens(2, 20, seed=4))
    for schedule in schedules_of(model.config):
        first, first_state = model(tokens, valid=valid, schedule=schedule)
        second, second_state = model(other, valid=valid, schedule=schedule)
        assert torch.equal(first, second)
        assert_same_state(first_state, second_state)


@pytest.mark.parametrize("name", ["recommended", "paper", "xl", "full"])
@torch.no_grad()
def test_a_neighbour_that_is_perturbed_changes_nothing(name: str) -> None:
    model = make_model(name)
    tokens = make_tokens(3, 23)
    changed = tokens.clone()
    changed[1] = make_tokens(1, 23, seed=8)[0]
    resets = torch.zeros(3, 23, dtype=torch.bool)
    more = resets.clone()
    more[1, [2, 7, 8]] = True
    for schedule in schedules_of(model.config):
        before, before_state = model(tokens, schedule=schedule)
        after, after_state = model(changed, resets=more, schedule=schedule)
        assert_close(after[[0, 2]], before[[0, 2]], f"neighbours, {schedule}")
        assert_same_state(after_state.select([0, 2]), before_state.select([0, 2]), f"neighbours, {schedule}")


@pytest.mark.parametrize("name", ["recommended", "paper"])
def test_no_gradient_crosses_rows(name: str) -> None:
    model = make_model(name, tie_embeddings=False, vocab_size=40)
    tokens = torch.arange(40).view(2, 20)
    for schedule in schedules_of(model.config):
        logits, _ = model(tokens, schedule=schedule)
        (gradient,) = torch.autograd.grad(logits[0].square().sum(), [model.embedding.weight])
        assert bool((gradient[tokens[1]] == 0).all())
        assert bool((gradient[tokens[0]].abs().sum(-1) > 0).all())


def test_a_reset_at_a_padded_place_is_no_reset() -> None:
    """Padding leaves a row's state untouched, whatever else is said about the place."""
    model = make_model("recommended")
    tokens = make_tokens(1, 17)
    valid = torch.ones(1, 17, dtype=torch.bool)
    valid[0, 5:8] = False
    resets = torch.zeros(1, 17, dtype=torch.bool)
    resets[0, 6] = True
    plain, plain_state = model(tokens, valid=valid)
    logits, state = model(tokens, valid=valid, resets=resets)
    assert torch.equal(plain, logits)
    assert_same_state(state, plain_state)
