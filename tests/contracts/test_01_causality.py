"""Contract 1: no logit depends on a later token, in any variant, stream or schedule."""

import random

import pytest
import torch

from tests.makers.configurations import quick, sampled_cases
from tests.makers.models import CASES, assert_close, make_model, make_tokens, schedules_of

SAMPLED = sampled_cases(10, seed=1)
STREAMS = [("full",), ("chunked",), ("memory",), ("full", "chunked"), ("full", "chunked", "memory")]


@pytest.mark.parametrize("name", [*CASES, *quick(SAMPLED, 2)])
@torch.no_grad()
def test_changing_the_future_changes_nothing_before(name: str) -> None:
    model = make_model(SAMPLED.get(name, name))
    length = 4 * model.config.segment_len + 1
    rng = random.Random(name)
    places = [1, model.config.segment_len, *rng.sample(range(2, length), 3)]
    tokens = make_tokens(2, length).repeat(
        len(places) + 1, 1
    )  # as they were, then changed from each place on
    for number, p in enumerate(places, start=1):
        tokens[2 * number : 2 * number + 2, p:] = make_tokens(2, length - p, seed=p)
    for schedule in schedules_of(model.config):
        before, *changed = model(tokens, schedule=schedule)[0].split(2)
        for p, after in zip(places, changed, strict=True):
            assert_close(after[:, :p], before[:, :p], f"logits before token {p}, {schedule}", tolerance=1e-12)


@pytest.mark.parametrize("write_from", ["input", "output"])
@pytest.mark.parametrize("streams", STREAMS, ids="+".join)
def test_gradient_into_the_future_is_exactly_zero(streams: tuple[str, ...], write_from: str) -> None:
    """Every token is another word of an untied vocabulary, so a row of the embedding's gradient belongs to one token."""
    length = 27
    case = {"streams": streams, "write_from": write_from, "tie_embeddings": False, "vocab_size": length}
    model = make_model(case, conv_width=0 if len(streams) == 1 else 3)
    tokens = torch.randperm(length, generator=torch.Generator().manual_seed(0))[None]
    for schedule in schedules_of(model.config):
        logits, _ = model(tokens, schedule=schedule)
        for p in (0, 4, 5, 6, 13, 25):
            (gradient,) = torch.autograd.grad(
                logits[0, p].square().sum(), [model.embedding.weight], retain_graph=True
            )
            reach = gradient[tokens[0]].abs().sum(-1)
            assert reach[p] > 0, f"token {p} does not see itself"
            assert bool((reach[p + 1 :] == 0).all()), (
                f"token {p} sees later tokens: {reach[p + 1 :].nonzero().tolist()}"
            )


def test_each_stream_reaches_as_far_as_it_should() -> None:
    """What one layer sees back: its segment, its chunk with the one before, or whole closed segments through memory."""
    length, p = 23, 15  # segment 2 (12 .. 17), chunk 5 (15 .. 17)
    tokens = torch.randperm(length, generator=torch.Generator().manual_seed(1))[None]
    seen = {}
    for streams in (("full",), ("chunked",), ("memory",)):
        model = make_model(
            {
                "streams": streams,
                "writer": "all",
                "gate": "none",
                "n_slots": 12,
                "n_layers": 1,
                "chunk_lookback": 1,
            },
            tie_embeddings=False,
            vocab_size=length,
            conv_width=0,
        )
        logits, _ = model(tokens)
        (gradient,) = torch.autograd.grad(logits[0, p].square().sum(), [model.embedding.weight])
        seen[streams[0]] = gradient[tokens[0]].abs().sum(-1).nonzero().flatten().tolist()
    assert seen["full"] == [12, 13, 14, 15]
    assert seen["chunked"] == [12, 13, 14, 15]
    assert seen["memory"] == [*range(12), 15]


def test_look_back_crosses_the_segment_edge_only_where_asked() -> None:
    length, p = 23, 13  # segment 2, chunk 4 (12 .. 14); the chunk before is 9 .. 11 in segment 1
    tokens = torch.randperm(length, generator=torch.Generator().manual_seed(2))[None]
    for lookback, expected in ((0, [12, 13]), (1, [9, 10, 11, 12, 13])):
        model = make_model(
            {"streams": ("chunked",), "n_layers": 1, "chunk_lookback": lookback},
            tie_embeddings=False,
            vocab_size=length,
            conv_width=0,
        )
        logits, _ = model(tokens)
        (gradient,) = torch.autograd.grad(logits[0, p].square().sum(), [model.embedding.weight])
        assert gradient[tokens[0]].abs().sum(-1).nonzero().flatten().tolist() == expected
