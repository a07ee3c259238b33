"""Intervals against values computed elsewhere or by hand."""

import math

import numpy as np
import pytest

from rmat.evaluation.intervals import Interval, bootstrap_ratio, paired_bootstrap_ratio, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe (1998), table I, method 3 (Wilson without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_bounds(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson(successes, trials)
    assert found.value == successes / trials
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_wilson_is_symmetric_and_stays_within_0_and_1() -> None:
    none, all_right = wilson(0, 50), wilson(50, 50)
    assert none.low == 0.0 and all_right.high == 1.0
    assert all_right.low == pytest.approx(1 - none.high)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"successes={successes} of trials={trials}"):
        wilson(successes, trials)


def test_bootstrap_value_is_the_ratio_of_sums() -> None:
    found = bootstrap_ratio([1.0, 5.0], [10.0, 10.0], scale=2.0)
    assert found.value == pytest.approx(2.0 * 6.0 / 20.0)


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(10.0, 2.0, size=400)
    found = bootstrap_ratio(values, np.ones(400), resamples=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_of_two_documents_spans_their_values() -> None:
    """Of two equal documents a resample is one of three mixes; a quarter each repeats one document."""
    found = bootstrap_ratio([1.0, 3.0], [1.0, 1.0])
    assert (found.low, found.high) == (1.0, 3.0)


def test_bootstrap_is_seeded_and_does_not_depend_on_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    above, below = np.random.default_rng(0).random((2, 30))
    first = bootstrap_ratio(above, below, seed=5)
    assert bootstrap_ratio(above, below, seed=5) == first
    assert bootstrap_ratio(above, below, seed=6) != first
    monkeypatch.setattr("rmat.evaluation.intervals._COUNTS_PER_BLOCK", 30)
    in_blocks = bootstrap_ratio(above, below, seed=5)
    assert (in_blocks.low, in_blocks.high) == pytest.approx((first.low, first.high))


def test_single_document_has_no_interval() -> None:
    assert bootstrap_ratio([2.0], [4.0]) == Interval(value=0.5, low=None, high=None)
    assert not bootstrap_ratio([2.0], [4.0]).excludes_zero


def test_document_without_bytes_is_no_division_by_zero() -> None:
    found = bootstrap_ratio([0.0, 2.0], [0.0, 1.0])
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    """Documents differ far more than the systems do: only pairing shows the steady gain."""
    random = np.random.default_rng(1)
    hard = random.normal(100.0, 30.0, size=40)
    better = hard - random.normal(1.0, 0.1, size=40)
    sizes = np.full(40, 50.0)
    ours, theirs = bootstrap_ratio(better, sizes), bootstrap_ratio(hard, sizes)
    assert ours.high > theirs.low
    difference = paired_bootstrap_ratio(better, hard, sizes)
    assert difference.value == pytest.approx(ours.value - theirs.value)
    assert difference.high < 0 and difference.excludes_zero


@pytest.mark.parametrize(
    ("above", "below", "words"),
    [
        ([], [], "one pair per document"),
        ([1.0], [1.0, 2.0], "one pair per document"),
        ([1.0], [0.0], "sum to zero"),
    ],
)
def test_bootstrap_refuses_what_has_no_ratio(above: list[float], below: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bootstrap_ratio(above, below)


def test_paired_refuses_other_documents() -> None:
    with pytest.raises(ValueError, match="same documents"):
        paired_bootstrap_ratio([1.0], [1.0, 2.0], [1.0, 1.0])


def test_confidence_must_be_a_share() -> None:
    with pytest.raises(ValueError, match=r"confidence=95"):
        wilson(1, 2, confidence=95)
