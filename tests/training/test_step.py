"""One update: how far gradients reach, what is added up, what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from rmat.data.lanes import IGNORED, Batch
from rmat.model import LanguageModel, ModelConfig, StreamState
from rmat.training.config import TrainConfig
from rmat.training.step import gradient_norm, training_step

WINDOW = 16
MARK = 9
"""A token that the tests put at one place only."""


def make_model(variant: str = "recommended") -> LanguageModel:
    torch.manual_seed(1)
    fields = {"vocab_size": 10, "d_model": 16, "n_layers": 2, "n_heads": 2, "segment_len": 8, "n_slots": 8}
    config = ModelConfig.preset("tiny", variant, **fields, tie_embeddings=False)
    return LanguageModel(config)


def make_batch(start: int, stop: int) -> Batch:
    """Tokens `start` to `stop` of one stream of text of two rows; the very first carries `MARK`."""
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(0, MARK, (2, 4 * WINDOW + 1), generator=generator)
    stream[:, 0] = MARK
    tokens, targets = stream[:, start:stop], stream[:, start + 1 : stop + 1].clone()
    return Batch(tokens, targets, torch.zeros_like(tokens, dtype=torch.bool))


def step(model: LanguageModel, batches: list[Batch], state: StreamState | None = None, **fields: Any) -> Any:
    config = TrainConfig(**{"clip": 0.0, **fields})
    return training_step(model, [SGD(model.parameters(), lr=0.1)], batches, state, config)


def mark_moved(model: LanguageModel, before: Tensor) -> bool:
    return not torch.equal(model.embedding.weight[MARK].detach(), before)


@pytest.mark.parametrize("variant", ["recommended", "paper", "xl", "local"])
def test_gradient_reaches_the_windows_start_and_nothing_before(variant: str) -> None:
    """The marked token is the stream's first. Scored from the second segment on, it gets a gradient in its
    own window and exactly none in the next, although the next reads what it left in the state."""
    model = make_model(variant)
    first, second = make_batch(0, WINDOW), make_batch(WINDOW, 2 * WINDOW)
    inside = first.targets.clone()
    inside[:, :8] = IGNORED
    before = model.embedding.weight[MARK].detach().clone()
    state = training_step(model, [], [first], None, TrainConfig()).state
    assert state is not None and not any(tensor.requires_grad for tensor in state.tensors().values())

    step(model, [second], state)
    assert not mark_moved(model, before)
    step(model, [Batch(first.tokens, inside, first.resets)])
    assert mark_moved(model, before)


def test_accumulated_windows_carry_the_state_but_not_the_gradient() -> None:
    model = make_model()
    before = model.embedding.weight[MARK].detach().clone()
    first = make_batch(0, WINDOW)
    unscored = Batch(first.tokens, torch.full_like(first.targets, IGNORED), first.resets)
    second = make_batch(WINDOW, 2 * WINDOW)
    result = step(model, [unscored, second])
    assert not mark_moved(model, before)
    assert result.scored == second.targets.numel()
    assert result.state.position.tolist() == [2 * WINDOW] * 2
    alone = step(make_model(), [second])
    assert alone.nats != result.nats, "the second window did not read what the first left"


def test_state_is_carried_only_if_wanted() -> None:
    second = make_batch(WINDOW, 2 * WINDOW)
    state = step(make_model(), [make_batch(0, WINDOW)]).state
    fresh = step(make_model(), [second]).nats
    assert step(make_model(), [second], state, carry_state=False).nats == fresh
    assert step(make_model(), [second], state).nats != fresh


def test_two_windows_weigh_as_their_scored_positions() -> None:
    """Gradients are of the mean over all scored positions, not of the mean of means."""
    model = make_model("local")
    batches = [make_batch(0, WINDOW), make_batch(WINDOW, 2 * WINDOW)]
    batches[0].targets[:, 3:] = IGNORED
    for batch in batches:
        batch.resets[:, 0] = True
    both = Batch(
        *(torch.cat([getattr(b, name) for b in batches]) for name in ("tokens", "targets", "resets"))
    )
    step(model, batches)
    other = make_model("local")
    step(other, [both])
    for (name, left), right in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7, msg=name)


def test_clipping_bounds_the_gradient() -> None:
    moved = []
    for clip in (0.0, 0.01):
        model = make_model()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        norm = step(model, [make_batch(0, WINDOW)], clip=clip).gradient_norm
        assert norm > 0.01
        changes = [a.detach() - b for a, b in zip(model.parameters(), before, strict=True)]
        moved.append(float(torch.cat([change.flatten() for change in changes]).norm()) / 0.1)
    assert moved[0] == pytest.approx(norm, rel=1e-3)
    assert moved[1] == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_never_reaches_the_weights(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    sound = model.hidden

    def broken(*arguments: Any, **more: Any) -> tuple[Tensor, StreamState]:
        hidden, state = sound(*arguments, **more)
        if where == "loss":
            return hidden * math.inf, state
        hidden.register_hook(lambda gradient: gradient * math.nan)
        return hidden, state

    monkeypatch.setattr(model, "hidden", broken)
    result = step(model, [make_batch(0, WINDOW)])
    assert result.skipped == f"the {where} is not finite"
    assert result.state is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert gradient_norm(model) == 0.0


def test_nothing_to_score_leaves_the_weights_alone() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = make_batch(0, WINDOW)
    batch.targets.fill_(IGNORED)
    result = step(model, [batch])
    assert (result.skipped, result.scored, result.nats) == (None, 0, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
