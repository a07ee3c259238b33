"""Scores of a model on rows of a synthetic task, with the right answers given as it goes (teacher forcing)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rmat.data.corpus import Rows
from rmat.data.lanes import IGNORED, Batch
from rmat.generation.reader import Piece, scan
from rmat.model import LanguageModel
from rmat.model.language_model import MemoryMode

VALIDATION_BATCHES = 4
"""Batches that a validation reads."""


@dataclass(frozen=True)
class RowScores:
    """Scores of each of B rows."""

    nats: float
    """Sum over all scored tokens."""
    right: Tensor
    """(B,) int64: scored tokens that the model would have said."""
    scored: Tensor
    """(B,) int64: scored tokens."""

    @property
    def shares(self) -> Tensor:
        """(B,) share of the scored tokens that are right."""
        return self.right / self.scored


def row_scores(model: LanguageModel, batch: Batch, *, memory: MemoryMode = "on") -> RowScores:
    """Read rows from an empty state; the head sees the scored places alone."""
    nats: list[float] = []
    right, scored = (torch.zeros(len(batch.tokens), dtype=torch.int64) for _ in range(2))

    def add(piece: Piece) -> None:
        targets = batch.targets[:, piece.start :][:, : max(piece.lengths)].to(piece.hidden_BTE.device)
        asked = targets != IGNORED
        logits = piece.model.logits(piece.hidden_BTE[asked])
        nats.append(float(F.cross_entropy(logits.float(), targets[asked], reduction="sum")))
        hit = torch.zeros_like(asked)
        hit[asked] = logits.argmax(-1) == targets[asked]
        right.add_(hit.sum(1).cpu())
        scored.add_(asked.sum(1).cpu())

    scan(model, batch.tokens.numpy(), size=batch.tokens.shape[1], memory=memory, each=add)
    return RowScores(sum(nats), right, scored)


def score_rows(model: LanguageModel, rows: Rows, batches: int = VALIDATION_BATCHES) -> dict[str, float]:
    """`nats`: mean over scored tokens; `accuracy`: share of them right; `rows_right`: share of rows without a fault,
    among those with a scored token. Not a number where nothing is scored. The model's training mode is restored."""
    found = [row_scores(model, batch) for batch in rows.batches(batches)]
    right, scored = (torch.cat([getattr(one, name) for one in found]) for name in ("right", "scored"))
    if not scored.any():
        return {"nats": math.nan, "accuracy": math.nan, "rows_right": math.nan}
    asked = scored > 0
    return {
        "nats": sum(one.nats for one in found) / int(scored.sum()),
        "accuracy": int(right.sum()) / int(scored.sum()),
        "rows_right": int((right == scored)[asked].sum()) / int(asked.sum()),
    }
