"""Writers: what a segment leaves behind for the memory (the paper's h, and beyond it).

A writer keeps a summary of the segment that is still open (`Pending`), takes up new tokens in any portions,
and offers its candidates when the segment is complete. Rows here are segments: R = rows of the batch times
segments of the call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmat.model.config import ModelConfig
from rmat.model.parameters import adapted, is_plain, linear, parameter
from rmat.model.state import NEVER, PENDING, Pending
from rmat.ops.attention import at_least_float32
from rmat.ops.fifo import take_rows

RANK_STEPS = 256
"""Scores are ranked in steps of 1/256, the earlier token first among equals: tokens that repeat the same
text have the same score up to rounding, and rounding must not decide which of them is kept."""


def ranked(score: Tensor) -> Tensor:
    """Scores in whole steps, int64."""
    return (score * RANK_STEPS).floor().clamp(-(2.0**30), 2.0**30).long()


@dataclass(frozen=True)
class Tokens:
    """Tokens that R segments take up."""

    vector_RSE: Tensor
    offset: Tensor
    """(R, S) int64 offsets in the segment."""
    live: Tensor
    """(R, S) false for padding."""


@dataclass(frozen=True)
class Candidates:
    """What R complete segments offer, in time order."""

    vector_RWE: Tensor
    score: Tensor | None
    """(R, W) scores of the write gate in at least float32; None where nothing is scored."""
    offset: Tensor
    """(R, W) where in its segment a candidate comes from."""
    present: Tensor
    """(R, W) false for places without a candidate."""


class Writer(nn.Module, ABC):
    """What the writers have in common: score_t = w . x_t + b, where writes are scored."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.segment_len = config.segment_len
        self.n_writes = config.writes_per_segment
        if config.writer == "pool":
            self.queries = parameter(config.writes_per_segment, config.d_model)
        if config.scores_writes:
            self.score = linear(config.d_model, 1, bias=True)

    @abstractmethod
    def absorb(self, pending: Pending, new: Tokens, noise: float = 0.0) -> Pending:
        """The summary after further tokens of the same segments; `noise` is the deviation of what scores
        get."""

    @abstractmethod
    def candidates(self, pending: Pending, dtype: torch.dtype, noise: float = 0.0) -> Candidates:
        """What complete segments offer, vectors in `dtype`."""

    def scores(self, x_RSE: Tensor, noise: float = 0.0) -> Tensor:
        """Write scores (R, S) in at least float32."""
        x_RSE = at_least_float32(x_RSE)
        if is_plain(self.score):
            score = x_RSE @ self.score.weight[0].to(x_RSE.dtype) + self.score.bias.to(x_RSE.dtype)
        else:
            score = adapted(x_RSE, self.score)[..., 0]
        return score + noise * torch.randn_like(score) if noise else score

    def _offer(self, vector_RWE: Tensor, dtype: torch.dtype, noise: float, last: bool = True) -> Candidates:
        """All places as candidates, from the segment's last token or (`last` false) each from its own."""
        n_rows, n_writes = vector_RWE.shape[:2]
        offset = torch.arange(n_writes, device=vector_RWE.device).expand(n_rows, -1)
        present = torch.ones_like(offset, dtype=torch.bool)
        offset = torch.full_like(offset, self.segment_len - 1) if last else offset
        score = self.scores(vector_RWE, noise) if hasattr(self, "score") else None
        return Candidates(vector_RWE.to(dtype), score, offset, present)


class MeanWriter(Writer):
    """h = (1 / S) sum_t x_t: the reading of the paper's "hidden state of the segment". Keeps the sum."""

    def absorb(self, pending: Pending, new: Tokens, noise: float = 0.0) -> Pending:
        total_R1E = torch.where(new.live[..., None], at_least_float32(new.vector_RSE), 0.0).sum(
            1, keepdim=True
        )
        return (pending[0] + total_R1E,)

    def candidates(self, pending: Pending, dtype: torch.dtype, noise: float = 0.0) -> Candidates:
        return self._offer(pending[0] / self.segment_len, dtype, noise)


class PoolWriter(Writer):
    """h_j = sum_t softmax_t(query_j . x_t / sqrt(E)) x_t with W learned queries.

    Keeps the weighted means so far, and the log of the sum of their weights.
    """

    def absorb(self, pending: Pending, new: Tokens, noise: float = 0.0) -> Pending:
        mean_RWE, weight = pending
        x_RSE, live = at_least_float32(new.vector_RSE), new.live
        logit_RWS = self.queries.to(x_RSE.dtype) @ x_RSE.transpose(1, 2) * x_RSE.shape[2] ** -0.5
        logit_RWS = torch.where(live[:, None], logit_RWS, NEVER)
        total = torch.logaddexp(weight, logit_RWS.logsumexp(2))
        share_RWS = torch.where(live[:, None], (logit_RWS - total[..., None]).exp(), 0.0)
        kept_RW1 = (weight - total).exp()[..., None]
        return mean_RWE * kept_RW1 + share_RWS @ x_RSE, total

    def candidates(self, pending: Pending, dtype: torch.dtype, noise: float = 0.0) -> Candidates:
        return self._offer(pending[0], dtype, noise)


class SelectWriter(Writer):
    """The W tokens x_t with the best scores, in time order. Keeps the best so far, with scores and
    offsets."""

    def absorb(self, pending: Pending, new: Tokens, noise: float = 0.0) -> Pending:
        kept_RWE, kept_score, kept_offset = pending
        score = torch.where(new.live, self.scores(new.vector_RSE, noise), NEVER)
        score = torch.cat([kept_score, score], dim=1)
        offset = torch.cat([kept_offset, new.offset], dim=1)
        rank = ranked(score) * 2**20 - offset
        rank = torch.where(score > NEVER / 2, rank, torch.iinfo(torch.int64).min)
        best = rank.topk(self.n_writes, dim=1, sorted=False).indices
        empty = score.gather(1, best) <= NEVER / 2
        when = torch.where(empty, self.segment_len, offset.gather(1, best))
        order = when.argsort(dim=1, stable=True)
        best, empty = best.gather(1, order), empty.gather(1, order)
        x_RXE = torch.cat([kept_RWE, new.vector_RSE.to(kept_RWE.dtype)], dim=1)
        return (
            torch.where(empty[..., None], PENDING["pending"], take_rows(x_RXE, best)),
            torch.where(empty, PENDING["pending_score"], score.gather(1, best)),
            torch.where(empty, PENDING["pending_offset"], offset.gather(1, best)),
        )

    def candidates(self, pending: Pending, dtype: torch.dtype, noise: float = 0.0) -> Candidates:
        vector_RWE, score, offset = pending
        return Candidates(vector_RWE.to(dtype), score, offset, score > NEVER / 2)


class AllWriter(Writer):
    """Every token x_t, W = S. Keeps them at their offsets."""

    def absorb(self, pending: Pending, new: Tokens, noise: float = 0.0) -> Pending:
        kept_RWE, x_RSE = pending[0], new.vector_RSE
        place = torch.where(new.live, new.offset, self.segment_len)  # what is not live shares a spare place
        new_RXE = kept_RWE.new_zeros(x_RSE.shape[0], self.segment_len + 1, x_RSE.shape[2])
        new_RXE = new_RXE.scatter(1, place[..., None].expand_as(x_RSE), x_RSE.to(new_RXE.dtype))
        is_new = torch.zeros_like(new_RXE[..., 0], dtype=torch.bool).scatter(1, place, True)
        return (torch.where(is_new[:, :-1, None], new_RXE[:, :-1], kept_RWE),)

    def candidates(self, pending: Pending, dtype: torch.dtype, noise: float = 0.0) -> Candidates:
        return self._offer(pending[0], dtype, noise, last=False)


WRITERS: dict[str, type[Writer]] = {
    "mean": MeanWriter,
    "pool": PoolWriter,
    "select": SelectWriter,
    "all": AllWriter,
}


def price_of_writes(
    config: ModelConfig, entered_BNW: Tensor, log_gate_BNW: Tensor, written: Tensor
) -> Tensor:
    """The gradient of write_cost * sum(g) over what entered, (B, N, W).

    Added to the gradient of log g and not to a loss: so it is, without a budget, the same however tokens are
    split into calls, and the gates need not leave the model. With a budget it begins where more than that
    share of the call's tokens (of segments that closed) entered: a constant price would in time close what is
    useful too. `written` (2,): what entered, and those tokens.
    """
    price_BNW = config.write_cost * torch.where(entered_BNW, log_gate_BNW.exp(), 0.0)
    if not config.write_budget:
        return price_BNW
    share = (written[0] / written[1].clamp(min=1)).to(price_BNW.dtype)
    return price_BNW * (share / config.write_budget - 1).clamp(0, 1)
