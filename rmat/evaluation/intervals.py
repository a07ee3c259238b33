"""95 % intervals: Wilson for shares of right answers, bootstrap over documents for ratios of sums.

Both give an `Interval`. The bootstrap resamples whole documents, because bytes of one document are not
independent of each other; a difference between two systems is bootstrapped on the pairs (same documents on
both sides), which is what makes small differences visible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
"""Bootstrap resamples; the 2.5 % tails then rest on 50 values each."""

TAIL = (1 - 0.95) / 2
"""Share of the resampled values below the lower and above the upper bound."""

_COUNTS_PER_BLOCK = 4_000_000
"""Resampling counts held at once (32 MB), so that a split of many documents needs no more memory than a small
one."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A measured value with the bounds of its confidence interval."""

    value: float
    """The measurement itself, over all samples."""
    low: float | None
    """Lower bound; None where one sample alone gives no interval."""
    high: float | None
    """Upper bound; None where one sample alone gives no interval."""

    def to_dict(self, name: str) -> dict[str, float | None]:
        """JSON-able: the value under `name`, `low` and `high`."""
        return {name: self.value, "low": self.low, "high": self.high}

    @property
    def excludes_zero(self) -> bool:
        """True if the interval exists and lies wholly on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a share (E. B. Wilson, 1927): sound at shares near 0 and 1 and for few trials.

    Raises ValueError if `successes` does not lie in 0..trials or there are no trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(
            f"successes={successes} of trials={trials} is not a share: "
            "give at least one trial and 0..trials successes"
        )
    z = _quantile(confidence)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At a share of exactly 0 or 1 the bound equals the share; rounding must not put it on the wrong side.
    return Interval(
        value=share, low=max(0.0, min(share, centre - half)), high=min(1.0, max(share, centre + half))
    )


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    scale: float = 1.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of `scale * sum(numerators) / sum(denominators)` over documents.

    Args:
        numerators: (documents,) one sum per document, for example nats.
        denominators: (documents,) what it is divided by, for example bytes; not negative, not all zero.
        scale: constant factor, for example 1 / ln 2 to turn nats into bits.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling; the same seed gives the same bounds.

    Raises ValueError for unequal lengths, no documents or denominators that sum to zero.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.asarray(denominators, dtype=np.float64)
    if above.ndim != 1 or above.shape != below.shape or above.size == 0:
        raise ValueError(
            f"numerators of shape {above.shape} and denominators of shape {below.shape} are not one pair "
            "per document: give two vectors of equal length >= 1"
        )
    if not below.sum() > 0:
        raise ValueError(
            "the denominators sum to zero: give at least one document that has something to count"
        )
    value = float(scale * above.sum() / below.sum())
    if above.size == 1:
        return Interval(value=value, low=None, high=None)
    ratios = scale * _resampled_ratios(above, below, resamples, np.random.default_rng(seed))
    low, high = np.quantile(ratios, [TAIL, 1 - TAIL])
    return Interval(value=value, low=float(low), high=float(high))


def paired_bootstrap_ratio(
    numerators: ArrayLike,
    baseline: ArrayLike,
    denominators: ArrayLike,
    *,
    scale: float = 1.0,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the difference `numerators - baseline` per denominator, on the same documents.

    Each resample draws documents and takes both systems' sums on exactly these, so what makes a document hard
    for both cancels. Arguments and errors as in `bootstrap_ratio`.
    """
    ours = np.asarray(numerators, dtype=np.float64)
    theirs = np.asarray(baseline, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{ours.shape} values against a baseline of {theirs.shape} cannot be paired: "
            "score both on the same documents"
        )
    return bootstrap_ratio(ours - theirs, denominators, scale=scale, seed=seed)


def _resampled_ratios(
    above: NDArray[np.float64], below: NDArray[np.float64], resamples: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """(resamples,) ratio of sums over documents drawn with replacement; a draw without bytes is drawn
    again."""
    documents = above.size
    chances = np.full(documents, 1 / documents)
    found: list[NDArray[np.float64]] = []
    missing = resamples
    while missing > 0:
        rows = min(missing, max(1, _COUNTS_PER_BLOCK // documents))
        counts = random.multinomial(documents, chances, size=rows)
        bytes_drawn = counts @ below
        keep = bytes_drawn > 0
        found.append((counts @ above)[keep] / bytes_drawn[keep])
        missing -= int(keep.sum())
    return np.concatenate(found)


def _quantile(confidence: float) -> float:
    """Two-sided normal quantile, 1.96 for 0.95. Raises ValueError outside 0..1."""
    if not 0 < confidence < 1:
        raise ValueError(
            f"confidence={confidence} is not a share: give a number between 0 and 1, for example 0.95"
        )
    return NormalDist().inv_cdf(0.5 + confidence / 2)
