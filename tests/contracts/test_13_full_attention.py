"""Contract 13: a bank of local keys that admits every token and evicts none is full attention."""

import random

import pytest
import torch

from rmat.model import LanguageModel
from tests.contracts.test_02_schedules import random_layout
from tests.makers.models import (
    ADMITTED,
    assert_close,
    assert_same_state,
    banks,
    gate_bias,
    make_model,
    make_tokens,
    split_points,
    stream,
)

LENGTH = 50
LOCAL = {
    "chunks": {"chunk_len": 6},
    "chunks_without_look_back": {"chunk_len": 6, "chunk_lookback": 0},
    "segment": {"streams": ("full", "memory")},
    "segment_and_chunks": {"streams": ("full", "chunked", "memory"), "chunk_lookback": 0},
}
"""Local streams whose tokens, in one segment, lose sight of the same tokens."""

POINTS = [
    {"slots_per": slots_per, "n_sinks": n_sinks, **gate}
    for slots_per in ("layer", "key_head")
    for n_sinks in (0, 4)
    for gate in (
        {"writer": "all", "gate": "none"},
        {"writer": "select", "gate": "push", "writes_per_segment": 6},
    )
]


def pair(seed: int = 0, **fields: object) -> tuple[LanguageModel, LanguageModel]:
    """A model whose bank holds a whole document, all gates open, and full attention with the same weights."""
    case = {
        **ADMITTED,
        "null_slot": False,
        "n_slots": LENGTH,
        "rope_theta": (10.0, 10.0, 500.0, 500.0),
        **fields,
    }
    model = make_model(case, seed=seed)
    if model.config.scores_writes:
        with torch.no_grad():
            for layer in banks(model.config):
                gate_bias(model, layer).fill_(40.0)
    full = make_model({"variant": "full", "rope_theta": case["rope_theta"]}, segment_len=LENGTH)
    (name,) = model.config.held
    weights = model.state_dict()
    full.load_state_dict(
        {key: weights[key.replace("local.full", f"local.{name}")] for key in full.state_dict()}
    )
    return model, full


@pytest.mark.parametrize("local", LOCAL)
@pytest.mark.parametrize("number", range(len(POINTS)))
def test_logits_are_those_of_full_attention(local: str, number: int) -> None:
    model, full = pair(number, **LOCAL[local], **POINTS[number])
    tokens = make_tokens(2, LENGTH, seed=number)
    rng = random.Random(number)
    with torch.no_grad():
        expected, _ = full(tokens)
        for schedule in ("parallel", "sequential"):
            logits, state = model(tokens, schedule=schedule)
            assert_close(logits, expected, f"logits, {schedule}", tolerance=1e-9)
        for ends in (split_points(LENGTH, rng, 7), list(range(1, LENGTH + 1))):
            pieces, final = stream(model, tokens, ends)
            assert_close(pieces, expected, f"logits, split at {ends}", tolerance=1e-9)
            assert_same_state(final, state, f"state, split at {ends}")


@pytest.mark.parametrize("local", LOCAL)
@pytest.mark.parametrize("n_sinks", [0, 9])
@pytest.mark.parametrize("slots_per", ["layer", "key_head"])
def test_rows_documents_and_padding_too(local: str, n_sinks: int, slots_per: str) -> None:
    """Documents that begin anywhere, rows of any age, padding anywhere; more sinks than a segment has tokens."""
    model, full = pair(**LOCAL[local], slots_per=slots_per, n_sinks=n_sinks, writer="all", gate="none")
    for seed in range(3):
        rng = random.Random(seed)
        tokens, layout = make_tokens(3, 35, seed=seed), random_layout(rng, 3, 35)
        before = make_tokens(3, LENGTH - 35, seed=seed + 9)
        ragged = torch.arange(LENGTH - 35) < torch.tensor([[15], [7], [1]])
        with torch.no_grad():
            expected, _ = full(tokens, full(before, valid=ragged)[1], **layout)
            for schedule in ("parallel", "sequential"):
                logits, _ = model(tokens, model(before, valid=ragged)[1], schedule=schedule, **layout)
                assert_close(logits, expected, f"logits, {schedule}", tolerance=1e-9)


@pytest.mark.parametrize("slots_per", ["layer", "key_head"])
def test_gradients_are_those_of_full_attention(slots_per: str) -> None:
    model, full = pair(**LOCAL["chunks"], slots_per=slots_per, writer="all", gate="none", n_sinks=4)
    tokens = make_tokens(2, LENGTH)
    gradients = []
    for each in (model, full):
        each.zero_grad()
        each(tokens)[0].square().sum().backward()
        gradients.append(
            {k.replace("local.chunked", "local.full"): p.grad for k, p in each.named_parameters()}
        )
    for name, expected in gradients[1].items():
        assert expected is not None
        found = gradients[0][name]
        assert found is not None
        assert_close(found, expected, f"gradient of {name}", tolerance=1e-9)


def test_a_refused_or_evicted_token_is_missed() -> None:
    """The equality above is no accident of short documents: one slot fewer, or one closed gate, and it is gone."""
    tokens = make_tokens(1, LENGTH)
    with torch.no_grad():
        for fields in ({"n_slots": 30}, {"gate": "push"}):
            model, full = pair(**LOCAL["chunks"], **{"writer": "all", "gate": "none", **fields})
            if fields.get("gate"):
                gate_bias(model, 0).fill_(-40.0)
            difference = (model(tokens)[0] - full(tokens)[0]).abs().amax(2)[0]
            assert float(difference[-1]) > 1e-6
            assert float(difference[:12].max()) < 1e-9
