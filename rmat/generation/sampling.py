"""From the logits of one position to one token: biases, penalties, temperature, min-p, top-k, top-p, a
draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmat.generation.grammar import Constraint
from rmat.settings import number, refuse, string, whole


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen, in vLLM's order and with its definitions. Raises ValueError naming field,
    value and remedy.

    "Written" are the tokens drawn so far, without the prompt.
    """

    temperature: float = 0.8
    """Logits are divided by it; 0 always takes the likeliest token."""

    top_k: int | None = None
    """Only this many of the likeliest tokens can be drawn; None for all."""

    top_p: float | None = None
    """Only the fewest likeliest tokens that together have this probability can be drawn, in (0, 1]; None for
    all."""

    min_p: float = 0.0
    """Only tokens at least this many times as likely as the likeliest can be drawn, in [0, 1]; 0 for all."""

    repetition_penalty: float = 1.0
    """Positive logits of tokens already written are divided by it, negative ones multiplied; 1 changes
    nothing."""

    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens already written, in [-2, 2]; 0 changes nothing."""

    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it was written, in [-2, 2]; 0 changes nothing."""

    logit_bias: Mapping[int, float] | None = None
    """Token id to a number in [-100, 100] that is added to its logit; -100 all but forbids the token."""

    min_tokens: int = 0
    """Before so many tokens are written, no end of text is drawn and stop strings do not count."""

    grammar: str | None = None
    """Only texts of this grammar are written (`rmat.json_grammar`, or llguidance's variant of Lark's
    language); what max_new_tokens or a stop string cuts off is the beginning of one. None for all texts."""

    seed: int | None = None
    """Seed of the draws; the same seed gives the same text. None takes another one each time."""

    def __post_init__(self) -> None:
        take = self._take
        take("temperature", number, least=0, remedy="give 0 (the likeliest token) or a number above")
        take("top_k", whole, least=1, remedy="give a whole number, 1 or more, or leave it out")
        take("top_p", number, above=0, most=1, remedy="give a number above 0 and up to 1, or leave it out")
        take("min_p", number, least=0, most=1, remedy="give a number from 0 to 1; 0 changes nothing")
        remedy = "give a number from 0.01 to 100; 1 changes nothing, 1.1 is mild"
        take("repetition_penalty", number, least=0.01, most=100, remedy=remedy)
        for name in ("presence_penalty", "frequency_penalty"):
            take(name, number, least=-2, most=2, remedy="give a number from -2 to 2; 0 changes nothing")
        take("logit_bias", _biases)
        take("min_tokens", whole)
        take("grammar", string)
        take(
            "seed",
            whole,
            most=2**63 - 1,
            remedy=f"give a whole number from 0 to {2**63 - 1}, or leave it out",
        )

    def _take(self, name: str, rule: Callable[..., Any], **limits: Any) -> None:
        value = getattr(self, name)
        if value is not None or getattr(type(self), name) is not None:
            object.__setattr__(self, name, rule(name, value, **limits))


def _biases(name: str, value: Any) -> dict[int, float]:
    remedy = "give token ids with numbers from -100 to 100, such as {12: -100}"
    if not isinstance(value, Mapping):
        refuse(name, value, remedy)
    return {
        whole(name, token, remedy=remedy): number(name, bias, -100, 100, remedy=remedy)
        for token, bias in value.items()
    }


class Sampler:
    """Draws tokens one after the other, remembering which it drew. Works on the CPU, so that a seed means the
    same draws whatever device the model is on.

    Args:
        config: how to choose.
        vocab_size: ids lie in [0, vocab_size); logits beyond, which stand for no token, are never drawn.
        ends: tokens that end a text.
        constraint: what the grammar allows; None for everything.

    Raises ValueError for a bias of a token that there is not.
    """

    def __init__(
        self,
        config: SamplingConfig,
        vocab_size: int,
        ends: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self._config = config
        self._constraint = constraint
        self._written = torch.zeros(vocab_size, dtype=torch.int64, device="cpu")
        self._n_written = 0
        self._end_tokens = list(ends)
        biases = config.logit_bias or {}
        if max(biases, default=0) >= vocab_size:
            refuse("logit_bias", max(biases), f"token ids must be below {vocab_size}")
        self._biased = list(biases)
        self._biases = torch.tensor(list(biases.values()), dtype=torch.float32, device="cpu")
        self._generator = torch.Generator(device="cpu")
        if config.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(config.seed)

    def draw(self, logits: Tensor) -> int:
        """The next token from `logits` (V,), any float type and device. Raises GrammarError."""
        config = self._config
        scores = logits[: len(self._written)].detach().float().cpu()
        if self._biased:
            scores = scores.clone()
            scores[self._biased] += self._biases
        constraint = self._constraint
        if constraint is not None:
            scores = scores.masked_fill(~constraint.allowed(), -math.inf)
        if self._n_written < config.min_tokens and (constraint is None or not constraint.complete):
            scores = scores.clone()
            scores[self._end_tokens] = -math.inf
        scores = penalise(
            scores,
            self._written,
            config.repetition_penalty,
            presence=config.presence_penalty,
            frequency=config.frequency_penalty,
        )
        if config.temperature == 0:
            token = int(scores.argmax())
        else:
            # From the best score down and in float64: the smallest temperature divides without overflow.
            below = (scores.double() - scores.max()) / config.temperature
            kept = keep_likeliest(below.float(), config.top_k, config.top_p, config.min_p)
            token = int(torch.multinomial(kept.softmax(-1), 1, generator=self._generator))
        if constraint is not None:
            constraint.accept(token)
        self._written[token] += 1
        self._n_written += 1
        return token


def penalise(
    logits: Tensor, written: Tensor, repetition: float, *, presence: float = 0.0, frequency: float = 0.0
) -> Tensor:
    """Lower the `logits` (V,) of tokens that were `written` (V,) times, int or bool: for repetition as CTRL
    does (Keskar et al. 2019, section 4.1), for presence and frequency as OpenAI's API does."""
    divided = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(written > 0, divided, logits)
    if presence or frequency:
        logits = logits - frequency * written - presence * (written > 0)
    return logits


def keep_likeliest(logits: Tensor, top_k: int | None, top_p: float | None, min_p: float = 0.0) -> Tensor:
    """`logits` (V,) with -inf for tokens less than `min_p` times as likely as the likeliest, then outside the
    `top_k` likeliest tokens, then outside the nucleus of probability `top_p`.

    The likeliest token always stays. The nucleus is taken of what is left (Holtzman et al. 2020).
    """
    if min_p > 0:
        logits = logits.masked_fill(logits < logits.max() + math.log(min_p), -math.inf)
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
