"""The ablation scores the same documents in each mode and pairs the differences."""

import math

import pytest

from rmat.evaluation import perplexity as perplexity_module
from rmat.evaluation.ablation import MODES, ablation
from rmat.evaluation.perplexity import perplexity
from tests.makers.stores import Widths, random_store, tiny_model

STORE = random_store((60, 90, 40, 75))
WIDTHS = Widths()


def test_each_mode_is_scored_and_differs_from_on() -> None:
    model = tiny_model()
    found = ablation(model, WIDTHS, STORE)
    assert tuple(found.modes) == MODES
    on = found.modes["on"]
    assert on.minus_on.value == 0.0 and (on.minus_on.low, on.minus_on.high) == (0.0, 0.0)
    for mode in ("zeroed", "frozen", "shuffled"):
        score = found.modes[mode]
        assert score.result.bits_per_byte == perplexity(model, WIDTHS, STORE, memory=mode).bits_per_byte
        difference = score.result.bits_per_byte - on.result.bits_per_byte
        assert abs(difference) > 1e-4
        assert score.minus_on.value == pytest.approx(difference, rel=1e-9)
        assert score.minus_on.low < score.minus_on.value < score.minus_on.high


def test_difference_is_paired_by_document() -> None:
    """The interval of a paired difference is that of the per-document differences, not of two separate
    draws."""
    found = ablation(tiny_model(), WIDTHS, STORE, modes=("zeroed",))
    on, zeroed = found.modes["on"].result, found.modes["zeroed"]
    per_byte = (zeroed.result.document_nats - on.document_nats) / on.document_bytes / math.log(2)
    assert per_byte.min() <= zeroed.minus_on.low <= zeroed.minus_on.high <= per_byte.max()


def test_model_without_memory_is_indifferent() -> None:
    found = ablation(tiny_model("local"), WIDTHS, STORE)
    for score in found.modes.values():
        assert score.minus_on.value == pytest.approx(0.0, abs=1e-12)


def test_json_has_a_score_with_interval_a_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity_module, "FIRST_BUCKET_BYTES", 32)
    found = ablation(tiny_model(), WIDTHS, STORE, modes=("on", "zeroed")).to_dict()
    assert {"on", "zeroed", "tokens", "bytes", "documents", "state_bytes"} <= found.keys()
    assert {"bits_per_byte", "low", "high", "minus_on"} <= found["zeroed"].keys()
    assert found["zeroed"]["minus_on"].keys() == {"bits_per_byte", "low", "high"}
    differences = found["zeroed"]["minus_on_by_position"]
    gap = found["zeroed"]["by_position"][0]["bits_per_byte"] - found["on"]["by_position"][0]["bits_per_byte"]
    assert differences[0]["bits_per_byte"] == pytest.approx(gap)
