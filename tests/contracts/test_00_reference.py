"""Contract 0: the model is what its equations say: every variant equals the token-by-token reference.

The reference reads one document with Python loops (`reference_model.py`), so it also says what a segment, a chunk, a
slot and an age are. Documents end anywhere in a segment.
"""

import pytest
import torch

from rmat.reference.model import reference_logits
from tests.makers.configurations import quick, sampled_cases
from tests.makers.models import CASES, assert_close, gradients, make_model, make_tokens, schedules_of

SAMPLED = sampled_cases(24)


@pytest.mark.parametrize("name", [*CASES, *quick(SAMPLED, 5)])
@torch.no_grad()
def test_logits_equal_the_reference(name: str) -> None:
    model = make_model(SAMPLED.get(name, name), seed=len(name))
    tokens = make_tokens(1, 4 * model.config.segment_len + 3, seed=7)
    expected = reference_logits(model.config, dict(model.named_parameters()), tokens[0])
    for schedule in schedules_of(model.config):
        logits, _ = model(tokens, schedule=schedule)
        assert_close(logits[0], expected, f"logits of the {schedule} schedule")


@pytest.mark.parametrize("name", ["recommended", "paper", "xl", "joint_both_gates", "pool_gru_token"])
def test_gradients_equal_the_reference(name: str) -> None:
    model = make_model(name, seed=3)
    tokens = make_tokens(1, 2 * model.config.segment_len + 5, seed=8)
    weights = torch.randn(tokens.shape[1], model.config.vocab_size, dtype=torch.float64)
    expected = dict(
        gradients(
            model, (reference_logits(model.config, dict(model.named_parameters()), tokens[0]) * weights).sum()
        )
    )
    for schedule in schedules_of(model.config):
        logits, _ = model(tokens, schedule=schedule)
        for parameter, gradient in gradients(model, (logits[0] * weights).sum()):
            assert_close(gradient, expected[parameter], f"gradient of {parameter} in the {schedule} schedule")
