"""Contract 5: documents packed in one row are isolated exactly and may begin anywhere; a reset equals a fresh start."""

import random

import pytest
import torch

from tests.makers.configurations import quick, sampled_cases
from tests.makers.models import (
    CASES,
    assert_close,
    assert_same_state,
    make_model,
    make_tokens,
    schedules_of,
)

SAMPLED = sampled_cases(10, seed=5)


def pack(lengths: list[int]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Resets (1, T) of documents of these lengths, and their (start, end)."""
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    resets = torch.zeros(1, ends[-1], dtype=torch.bool)
    for start, _ in spans:
        resets[0, start] = True
    return resets, spans


@pytest.mark.parametrize("name", [*CASES, *quick(SAMPLED, 2)])
@torch.no_grad()
def test_a_document_inside_a_row_equals_the_document_alone(name: str) -> None:
    model = make_model(SAMPLED.get(name, name))
    length = model.config.segment_len
    rng = random.Random(name)
    resets, spans = pack(
        [2 * length + 1, 1, length, 1, rng.randint(2, 3 * length), length - 1, 2 * length + 2]
    )
    tokens = make_tokens(1, resets.shape[1])
    _, earlier = model(make_tokens(1, 2 * length + 3, seed=3))
    alone = [model(tokens[:, start:end]) for start, end in spans]
    for schedule in schedules_of(model.config):
        for state in (None, earlier):
            logits, final = model(tokens, state, resets=resets, schedule=schedule)
            for (start, end), (expected, _) in zip(spans, alone, strict=True):
                assert_close(logits[:, start:end], expected, f"document at {start}, {schedule}")
            assert_same_state(final, alone[-1][1], f"final state, {schedule}")


@pytest.mark.parametrize("name", [*CASES, *quick(SAMPLED, 2)])
@torch.no_grad()
def test_perturbing_a_document_changes_nothing_in_the_next(name: str) -> None:
    model = make_model(SAMPLED.get(name, name))
    length = model.config.segment_len
    for cut in (1, length - 1, length, 2 * length + 2):
        resets, _ = pack([cut, 2 * length + 1])
        tokens = make_tokens(1, resets.shape[1]).repeat(2, 1)
        tokens[1, :cut] = make_tokens(1, cut, seed=99)
        for schedule in schedules_of(model.config):
            logits, _ = model(tokens, resets=resets.expand(2, -1), schedule=schedule)
            before, after = logits[:, cut:]
            assert_close(after, before, f"document after {cut} others, {schedule}", tolerance=1e-12)


@pytest.mark.parametrize("name", ["recommended", "paper", "xl", "joint_both_gates", "select_gru_wide_conv"])
def test_no_gradient_crosses_a_document_start(name: str) -> None:
    cut, length = 8, 25
    model = make_model(name, tie_embeddings=False, vocab_size=length)
    resets, _ = pack([cut, length - cut])
    tokens = torch.randperm(length, generator=torch.Generator().manual_seed(5))[None]
    for schedule in schedules_of(model.config):
        logits, _ = model(tokens, resets=resets, schedule=schedule)
        (gradient,) = torch.autograd.grad(logits[:, cut:].square().sum(), [model.embedding.weight])
        reach = gradient[tokens[0]].abs().sum(-1)
        assert bool((reach[:cut] == 0).all())
        assert bool((reach[cut:] > 0).any())


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_reset_clears_an_incoming_state(name: str) -> None:
    model = make_model(name)
    _, state = model(make_tokens(2, 3 * model.config.segment_len + 1))
    tokens = make_tokens(2, 2 * model.config.segment_len + 1, seed=2)
    resets = torch.zeros_like(tokens, dtype=torch.bool)
    resets[0, 0] = True
    logits, final = model(tokens, state, resets=resets)
    fresh, fresh_final = model(tokens[:1])
    carried, carried_final = model(tokens[1:], state.select([1]))
    assert_close(logits, torch.cat([fresh, carried]), "logits")
    assert_same_state(final.select([0]), fresh_final, "state after the reset")
    assert_same_state(final.select([1]), carried_final, "state of the row without reset")
    assert final.position.tolist() == [tokens.shape[1], 5 * model.config.segment_len + 2]
