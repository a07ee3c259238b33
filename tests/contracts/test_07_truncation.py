"""Contract 7: gradients stop exactly where the state was detached, and flow through memory inside a call."""

import pytest
import torch

from tests.makers.models import WITH_MEMORY, make_config, make_model, schedules_of

LENGTH = 24


def reach(name: str, detach: bool, schedule: str) -> torch.Tensor:
    """How much the last token's logits of a second call depend on every token of both calls (2 * LENGTH,)."""
    model = make_model(name, tie_embeddings=False, vocab_size=2 * LENGTH, seed=11)
    tokens = torch.randperm(2 * LENGTH, generator=torch.Generator().manual_seed(3))[None]
    _, state = model(tokens[:, :LENGTH], schedule=schedule)
    logits, _ = model(tokens[:, LENGTH:], state.detach() if detach else state, schedule=schedule)
    (gradient,) = torch.autograd.grad(logits.square().sum(), [model.embedding.weight])
    return gradient[tokens[0]].abs().sum(-1)


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_detach_stops_gradients_exactly(name: str) -> None:
    for schedule in schedules_of(make_config(name)):
        found = reach(name, True, schedule)
        assert bool((found[:LENGTH] == 0).all())
        assert bool((found[LENGTH:] > 0).any())


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_without_detach_gradients_flow_through_memory(name: str) -> None:
    """Streams that cross the segment's edge carry a gradient too: that memory alone does is the next test."""
    for schedule in schedules_of(make_config(name)):
        assert bool((reach(name, False, schedule)[:LENGTH] > 0).any())


@pytest.mark.parametrize("name", ["memory_only", "paper", "xl"])
def test_inside_a_call_gradients_flow_through_memory(name: str) -> None:
    """Segment 2 reads segment 0 through the bank: there is no other way (look-back reaches one chunk)."""
    model = make_model(name, tie_embeddings=False, vocab_size=LENGTH, n_layers=1, conv_width=0, n_slots=13)
    tokens = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(3))[None]
    for schedule in schedules_of(model.config):
        logits, _ = model(tokens, schedule=schedule)
        (gradient,) = torch.autograd.grad(
            logits[0, 2 * model.config.segment_len :].square().sum(), [model.embedding.weight]
        )
        assert bool((gradient[tokens[0, : model.config.segment_len]].abs().sum(-1) > 0).any())


def test_detach_keeps_the_numbers() -> None:
    model = make_model("joint_both_gates")
    _, state = model(torch.arange(20)[None])
    for name, tensor in state.detach().tensors().items():
        assert not tensor.requires_grad
        assert torch.equal(tensor, state.tensors()[name].detach())
