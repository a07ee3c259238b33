"""How gates and queries start, and what a price on writing adds to the gradient."""

import pytest
import torch

from rmat.model import LanguageModel, ModelConfig

COST = 0.25


def model_of(**fields: object) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 31,
        "d_model": 16,
        "n_layers": 2,
        "segment_len": 8,
        "n_slots": 8,
        "gate_noise": 0.0,
    }
    return LanguageModel(ModelConfig.preset("tiny", **{**sizes, **fields})).double()


def score_gradient(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """Gradient of the biases of the gates, (layers,)."""
    logits, _ = model.train()(tokens)
    biases = [block.memory.writer.score.bias for block in model.blocks]
    return torch.cat(torch.autograd.grad(logits.square().mean(), biases))


@pytest.mark.parametrize("way", ["value", "logit"])
def test_a_price_adds_its_own_gradient_for_what_entered(way: str) -> None:
    """d(cost * g)/d score = cost * g * (1 - g), summed over all tokens that passed the gate."""
    free, priced = (model_of(write_cost=cost, gate_gradient=way, n_layers=1) for cost in (0.0, COST))
    tokens = torch.randint(0, 31, (2, 33), generator=torch.Generator().manual_seed(1))
    added = score_gradient(priced, tokens) - score_gradient(free, tokens)
    seen: list[torch.Tensor] = []
    for block in free.blocks:
        scores = block.memory.writer.scores
        block.memory.writer.scores = lambda x, _, scores=scores: seen.append(scores(x)) or seen[-1]
    free(tokens)
    for layer, score in enumerate(seen):
        closed = score.view(2, -1, 8)[:, :4]  # the fifth segment stays open
        best = closed.topk(free.config.writes_per_segment, dim=2).values
        gate = torch.sigmoid(best[best > 0])
        torch.testing.assert_close(added[layer], (COST * gate * (1 - gate)).sum())


@pytest.mark.parametrize(("of_share", "paid"), [(1.5, 0.0), (1.0, 0.0), (0.8, 0.25), (0.5, 1.0), (0.1, 1.0)])
def test_within_the_budget_writing_is_free(of_share: float, paid: float) -> None:
    """The price begins where the call writes as much as the budget allows and is full at twice that."""
    tokens = torch.randint(0, 31, (2, 33), generator=torch.Generator().manual_seed(1))
    free = model_of(n_layers=1)
    _, state = free(tokens)
    assert state.layers[0].memory is not None
    # The token behind the last whole segment does not count.
    share = float(state.layers[0].memory.pushed.sum()) / (2 * 32)
    budget = share * of_share
    full, limited = (model_of(n_layers=1, write_cost=COST, **more) for more in ({}, {"write_budget": budget}))
    whole, part = (score_gradient(model, tokens) - score_gradient(free, tokens) for model in (full, limited))
    assert whole > 0
    torch.testing.assert_close(part, paid * whole)


def test_a_price_is_paid_for_what_nobody_reads() -> None:
    """Also by a model that writes from the block output, after the last token of the call."""
    tokens = torch.randint(0, 31, (2, 8), generator=torch.Generator().manual_seed(1))
    free, priced = (model_of(n_layers=1, write_from="output", **more) for more in ({}, {"write_cost": COST}))
    assert score_gradient(free, tokens) == 0 < score_gradient(priced, tokens)


def test_a_budget_without_a_price_is_refused() -> None:
    with pytest.raises(ValueError, match=r"write_budget=0.1 is not possible: .* set that too"):
        model_of(write_budget=0.1)


def test_a_price_acts_in_training_only() -> None:
    priced, free = model_of(write_cost=COST).eval(), model_of().eval()
    tokens = torch.randint(0, 31, (1, 20), generator=torch.Generator().manual_seed(1))
    gradients = []
    for model in (priced, free):
        logits, _ = model(tokens)
        gradients.append(torch.autograd.grad(logits.sum(), model.blocks[0].memory.writer.score.bias)[0])
    assert torch.equal(*gradients)


def test_gates_start_where_the_configuration_says() -> None:
    model = model_of(gate_bias=-1.5)
    assert all(float(block.memory.writer.score.bias.detach()) == -1.5 for block in model.blocks)


def test_the_first_query_head_of_a_group_starts_equal_to_its_key_head() -> None:
    model = model_of(n_heads=4, n_kv_heads=2)
    for block in model.blocks:
        query = block.memory.query.weight.unflatten(0, (2, 2, -1))
        key = block.memory.key.weight.unflatten(0, (2, -1))
        assert torch.equal(query[:, 0], key)
        assert not torch.equal(query[:, 1], key)
