"""Writers: what a segment leaves behind for the memory (the paper's h, and beyond it).

A writer keeps a summary of the segment that is still open, takes up new tokens in any portions, and offers its
candidates when the segment is complete. Rows here are segments: R = rows of the batch times segments of the call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmat.model.config import ModelConfig
from rmat.model.state import EMPTY, NEVER
from rmat.ops.attention import at_least_float32
from rmat.ops.fifo import take_rows

RANK_STEPS = 256
"""Scores are ranked in steps of 1/256, the earlier token first among equals: tokens that repeat the same text have the
same score up to rounding, and rounding must not decide which of them is kept."""


@dataclass(frozen=True)
class Pending:
    """What is kept of R open segments; see `LayerState.pending*`."""

    vector_RPE: Tensor
    score_RP: Tensor | None = None
    offset_RP: Tensor | None = None


@dataclass(frozen=True)
class Candidates:
    """What R complete segments offer, in time order."""

    vector_RWE: Tensor
    score_RW: Tensor | None
    """Scores of the write gate in at least float32; None where nothing is scored."""
    offset_RW: Tensor
    """Where in its segment a candidate comes from."""
    present_RW: Tensor
    """False for places without a candidate."""


class Writer(nn.Module):
    """The four writers, by `config.writer`.

    mean     h = mean of the segment's S vectors (the reading of the paper's "hidden state of the segment")
    pool     h_j = sum_t softmax_t(query_j . x_t / sqrt(E)) x_t, W learned queries
    select   the W tokens with the best scores w . x_t + b
    all      every token
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.writer
        self.segment_len = config.segment_len
        self.n_writes = config.writes_per_segment
        self.noise = config.gate_noise
        if self.kind == "pool":
            self.queries = nn.Parameter(torch.empty(config.writes_per_segment, config.d_model))
        if config.scores_writes:
            self.score = nn.Linear(config.d_model, 1)

    def absorb(self, pending: Pending, x_RSE: Tensor, offset_RS: Tensor, live_RS: Tensor) -> Pending:
        """The summary after further tokens of the same segments.

        Args:
            x_RSE: vectors of the tokens. offset_RS: int64 offsets in the segment. live_RS: False for padding.
        """
        if self.kind == "mean":
            total_R1E = torch.where(live_RS[..., None], at_least_float32(x_RSE), 0.0).sum(1, keepdim=True)
            return Pending(pending.vector_RPE + total_R1E)
        if self.kind == "pool":
            return self._absorb_pool(pending, x_RSE, live_RS)
        if self.kind == "select":
            return self._absorb_best(pending, x_RSE, offset_RS, live_RS)
        place_RS = torch.where(live_RS, offset_RS, self.segment_len)
        cells = pending.vector_RPE.new_zeros(x_RSE.shape[0], self.segment_len + 1, x_RSE.shape[2])
        cells = cells.scatter(1, place_RS[..., None].expand_as(x_RSE), x_RSE.to(cells.dtype))
        new_RS = torch.zeros_like(cells[..., 0], dtype=torch.bool).scatter(1, place_RS, True)
        return Pending(torch.where(new_RS[:, :-1, None], cells[:, :-1], pending.vector_RPE))

    def _absorb_pool(self, pending: Pending, x_RSE: Tensor, live_RS: Tensor) -> Pending:
        """Softmax pooling in portions: weighted means, and the log of the sum of their weights."""
        assert pending.score_RP is not None
        x_RSE = at_least_float32(x_RSE)
        logit_RWS = self.queries.to(x_RSE.dtype) @ x_RSE.transpose(1, 2) * x_RSE.shape[2] ** -0.5
        logit_RWS = torch.where(live_RS[:, None], logit_RWS, NEVER)
        score_RW = torch.logaddexp(pending.score_RP, logit_RWS.logsumexp(2))
        weight_RWS = torch.where(live_RS[:, None], (logit_RWS - score_RW[..., None]).exp(), 0.0)
        kept_RW1 = (pending.score_RP - score_RW).exp()[..., None]
        return Pending(pending.vector_RPE * kept_RW1 + weight_RWS @ x_RSE, score_RW)

    def _absorb_best(self, pending: Pending, x_RSE: Tensor, offset_RS: Tensor, live_RS: Tensor) -> Pending:
        """The best W of those kept and the new tokens, in time order; empty places last."""
        assert pending.score_RP is not None and pending.offset_RP is not None
        score_RS = torch.where(live_RS, self.scores(x_RSE), NEVER)
        score_RX = torch.cat([pending.score_RP, score_RS], dim=1)
        offset_RX = torch.cat([pending.offset_RP, offset_RS.expand_as(score_RS)], dim=1)
        steps_RX = (score_RX * RANK_STEPS).floor().clamp(-(2.0**30), 2.0**30).long()
        rank_RX = steps_RX * 2**20 - offset_RX
        rank_RX = torch.where(score_RX > NEVER / 2, rank_RX, torch.iinfo(torch.int64).min)
        best_RW = rank_RX.topk(self.n_writes, dim=1, sorted=False).indices
        empty_RW = score_RX.gather(1, best_RW) <= NEVER / 2
        when_RW = torch.where(empty_RW, self.segment_len, offset_RX.gather(1, best_RW))
        order_RW = when_RW.argsort(dim=1, stable=True)
        best_RW, empty_RW = best_RW.gather(1, order_RW), empty_RW.gather(1, order_RW)
        x_RXE = torch.cat([pending.vector_RPE, x_RSE.to(pending.vector_RPE.dtype)], dim=1)
        return Pending(
            torch.where(empty_RW[..., None], 0.0, take_rows(x_RXE, best_RW)),
            torch.where(empty_RW, EMPTY["pending_score"], score_RX.gather(1, best_RW)),
            torch.where(empty_RW, EMPTY["pending_offset"], offset_RX.gather(1, best_RW)),
        )

    def scores(self, x_RSE: Tensor) -> Tensor:
        """Write scores (R, S) in at least float32; in training with `config.gate_noise` on them."""
        x_RSE = at_least_float32(x_RSE)
        score_RS = x_RSE @ self.score.weight[0].to(x_RSE.dtype) + self.score.bias.to(x_RSE.dtype)
        if self.training and self.noise:
            score_RS = score_RS + self.noise * torch.randn_like(score_RS)
        return score_RS

    def candidates(self, pending: Pending, dtype: torch.dtype) -> Candidates:
        """What complete segments offer, vectors in `dtype`."""
        vector_RWE = pending.vector_RPE
        n_rows, n_writes = vector_RWE.shape[:2]
        device = vector_RWE.device
        present_RW = torch.ones(n_rows, n_writes, dtype=torch.bool, device=device)
        if self.kind == "select":
            assert pending.score_RP is not None and pending.offset_RP is not None
            present_RW = pending.score_RP > NEVER / 2
            return Candidates(vector_RWE.to(dtype), pending.score_RP, pending.offset_RP, present_RW)
        if self.kind == "mean":
            vector_RWE = vector_RWE / self.segment_len
        offset_RW = torch.arange(n_writes, device=device).expand(n_rows, -1)
        if self.kind != "all":
            offset_RW = torch.full_like(offset_RW, self.segment_len - 1)
        score_RW = self.scores(vector_RWE) if hasattr(self, "score") else None
        return Candidates(vector_RWE.to(dtype), score_RW, offset_RW, present_RW)


def price_of_writes(
    config: ModelConfig, entered_BNW: Tensor, log_gate_BNW: Tensor, n_tokens: Tensor
) -> Tensor:
    """The gradient of write_cost * sum(g) over what entered, (B, N, W).

    Added to the gradient of log g and not to a loss: so it is, without a budget, the same however tokens are split into
    calls, and the gates need not leave the model. With a budget it begins where more than that share of the call's
    `n_tokens` (of segments that closed) entered: a constant price would in time close what is useful too.
    """
    price_BNW = config.write_cost * torch.where(entered_BNW, log_gate_BNW.exp(), 0.0)
    if not config.write_budget:
        return price_BNW
    share = entered_BNW.sum() / n_tokens.clamp(min=1)
    return price_BNW * (share / config.write_budget - 1).clamp(0, 1)
