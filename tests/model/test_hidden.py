"""`hidden` and `logits` are the two halves of `forward`."""

from typing import Any

import pytest
import torch

from rmat.model import LanguageModel, ModelConfig


def build(variant: str = "recommended", **fields: Any) -> LanguageModel:
    small = {"vocab_size": 29, "d_model": 16, "n_layers": 2, "n_heads": 2, "segment_len": 4, "n_slots": 8}
    model = LanguageModel(ModelConfig.preset("tiny", variant=variant, **{**small, **fields})).double()
    return model.eval()


TOKENS = torch.randint(0, 29, (3, 18), generator=torch.Generator().manual_seed(1))
RESETS = torch.zeros(3, 18, dtype=torch.bool).index_fill_(1, torch.tensor([0, 7]), True)
VALID = torch.arange(18) < torch.tensor([18, 5, 11])[:, None]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"resets": RESETS},
        {"schedule": "sequential"},
        {"memory": "zeroed"},
        {"memory": "shuffled", "resets": RESETS},
    ],
    ids=lambda arguments: "-".join(arguments) or "plain",
)
@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": False}, {"variant": "paper"}], ids=str)
def test_logits_of_hidden_are_those_of_forward(fields: dict[str, Any], arguments: dict[str, Any]) -> None:
    model = build(**fields)
    with torch.no_grad():
        _, start = model(TOKENS[:, :5])
        expected, after = model(TOKENS, start, **arguments)
        hidden, state = model.hidden(TOKENS, start, **arguments)
        assert hidden.shape == (3, 18, 16)
        assert torch.equal(model.logits(hidden), expected)
    assert all(torch.equal(one, after.tensors()[name]) for name, one in state.tensors().items())


def test_logits_of_few_places_are_those_of_all() -> None:
    model = build()
    with torch.no_grad():
        expected, _ = model(TOKENS)
        hidden, _ = model.hidden(TOKENS)
        some = torch.rand(3, 18) < 0.3
        torch.testing.assert_close(model.logits(hidden[some]), expected[some], rtol=1e-12, atol=1e-12)
        assert model.logits(hidden[0, 0]).shape == (29,)
        assert model.logits(hidden[:0, 0]).shape == (0, 29)


@pytest.mark.parametrize("schedule", ["parallel", "sequential"])
def test_padding_has_zero_logits_and_leaves_the_rest_alone(schedule: Any) -> None:
    model = build()
    with torch.no_grad():
        logits, state = model(TOKENS, valid=VALID, schedule=schedule)
        hidden, _ = model.hidden(TOKENS, valid=VALID, schedule=schedule)
        assert not logits[~VALID].any() and hidden.shape == (3, 18, 16)
        assert torch.equal(model.logits(hidden)[VALID], logits[VALID])
        for row, length in enumerate((18, 5, 11)):
            alone, _ = model(TOKENS[row : row + 1, :length])
            torch.testing.assert_close(logits[row, :length], alone[0], rtol=1e-9, atol=1e-9)
    assert state.position.tolist() == [18, 5, 11]


def test_padding_that_is_all_valid_is_no_padding() -> None:
    model = build()
    with torch.no_grad():
        assert torch.equal(model(TOKENS, valid=torch.ones_like(VALID))[0], model(TOKENS)[0])


def test_hidden_refuses_what_forward_refuses() -> None:
    for name, value in (("memory", "off"), ("schedule", "wavefront"), ("resets", RESETS[:, :3])):
        with pytest.raises(ValueError, match=name):
            build().hidden(TOKENS, **{name: value})


def test_gradients_of_scored_places_are_those_of_a_masked_loss() -> None:
    """What training relies on: the head at the scored places alone learns the same."""
    model = build().train()
    scored = torch.rand(3, 18) < 0.4
    weights = torch.randn(3, 18, 29, dtype=torch.float64)
    ((model(TOKENS)[0] * weights)[scored]).sum().backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    hidden, _ = model.hidden(TOKENS)
    (model.logits(hidden[scored]) * weights[scored]).sum().backward()
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == (expected[name] is None), name
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, expected[name], rtol=1e-9, atol=1e-9)
