"""From the logits of one position to one token: repetition penalty, temperature, top-k, top-p, a draw."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen. Raises ValueError naming field, value and remedy."""

    temperature: float = 0.8
    """Logits are divided by it; 0 always takes the likeliest token."""

    top_k: int | None = None
    """Only this many of the likeliest tokens can be drawn; None for all."""

    top_p: float | None = None
    """Only the fewest likeliest tokens that together have this probability can be drawn, in (0, 1]; None for all."""

    repetition_penalty: float = 1.0
    """Positive logits of tokens already generated are divided by it, negative ones multiplied; 1 changes nothing."""

    seed: int | None = None
    """Seed of the draws; the same seed gives the same text. None takes another one each time."""

    def __post_init__(self) -> None:
        temperature_fits = _is(numbers.Real, self.temperature) and 0 <= self.temperature < math.inf
        self._require("temperature", temperature_fits, "give 0 (the likeliest token) or a number above")
        top_k_fits = self.top_k is None or (_is(numbers.Integral, self.top_k) and self.top_k >= 1)
        self._require("top_k", top_k_fits, "give a whole number, 1 or more, or leave it out")
        top_p_fits = self.top_p is None or (_is(numbers.Real, self.top_p) and 0 < self.top_p <= 1)
        self._require("top_p", top_p_fits, "give a number above 0 and up to 1, or leave it out")
        penalty = self.repetition_penalty
        penalty_fits = _is(numbers.Real, penalty) and 0.01 <= penalty <= 100
        self._require(
            "repetition_penalty",
            penalty_fits,
            "give a number from 0.01 to 100; 1 changes nothing, 1.1 is mild",
        )
        seed_fits = self.seed is None or (_is(numbers.Integral, self.seed) and 0 <= self.seed < 2**63)
        self._require("seed", seed_fits, "give a whole number from 0 to 9223372036854775807, or leave it out")

    def _require(self, name: str, holds: bool, remedy: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {getattr(self, name)!r}: {remedy}")


def _is(kind: type, value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


class Sampler:
    """Draws tokens one after the other, remembering which it drew. Works on the CPU, so that a seed means the same
    draws whatever device the model is on.

    Args:
        config: how to choose.
        vocab_size: ids lie in [0, vocab_size); logits beyond, which stand for no token, are never drawn.
    """

    def __init__(self, config: SamplingConfig, vocab_size: int) -> None:
        self._config = config
        self._drawn = torch.zeros(vocab_size, dtype=torch.bool)
        self._generator = torch.Generator()
        if config.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(config.seed)

    def draw(self, logits: Tensor) -> int:
        """The next token from `logits` (V,), any float type and device."""
        scores = penalise(
            logits[: len(self._drawn)].detach().float().cpu(), self._drawn, self._config.repetition_penalty
        )
        if self._config.temperature == 0:
            token = int(scores.argmax())
        else:
            # From the best score down and in float64: the smallest temperature divides without overflow.
            below = (scores.double() - scores.max()) / self._config.temperature
            kept = keep_likeliest(below.float(), self._config.top_k, self._config.top_p)
            token = int(torch.multinomial(kept.softmax(-1), 1, generator=self._generator))
        self._drawn[token] = True
        return token


def penalise(logits: Tensor, drawn: Tensor, penalty: float) -> Tensor:
    """Lower the `logits` (V,) where `drawn` (V,) bool holds, as CTRL does (Keskar et al. 2019, section 4.1)."""
    return torch.where(drawn, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_likeliest(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """`logits` (V,) with -inf outside the `top_k` likeliest tokens and outside the nucleus of probability `top_p`.

    The likeliest token always stays. The nucleus is taken of what `top_k` leaves (Holtzman et al. 2020).
    """
    if top_k is not None and top_k < len(logits):
        kept = torch.full_like(logits, -math.inf)
        best = logits.topk(top_k)
        logits = kept.scatter(0, best.indices, best.values)
    if top_p is not None:
        ordered, order = logits.sort(descending=True, stable=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        outside = before >= top_p
        outside[0] = False
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(0, order, outside), -math.inf)
    return logits
