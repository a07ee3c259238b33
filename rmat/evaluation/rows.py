"""Scores of a model on rows of a synthetic task, with the right answers given as it goes (teacher forcing)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from rmat.data.lanes import IGNORED
from rmat.model import LanguageModel
from rmat.model.evaluating import evaluating
from rmat.tasks.corpus import HeldOutRows

VALIDATION_BATCHES = 4
"""Batches that a validation reads."""


def score_rows(
    model: LanguageModel, rows: HeldOutRows, batches: int = VALIDATION_BATCHES
) -> dict[str, float]:
    """`nats`: mean over scored tokens; `accuracy`: share of them right; `rows_right`: share of rows without a fault,
    among those with a scored token. Not a number where nothing is scored. The model's training mode is restored."""
    device = next(model.parameters()).device
    nats = right = scored = whole = read = 0.0
    with evaluating(model), torch.inference_mode():
        for batch in rows.batches(batches):
            targets = batch.targets.to(device)
            hidden, _ = model.hidden(batch.tokens.to(device))
            asked = targets != IGNORED
            logits = model.logits(hidden[asked]).float()
            nats += float(F.cross_entropy(logits, targets[asked], reduction="sum"))
            wrong = torch.zeros_like(asked)
            wrong[asked] = logits.argmax(-1) != targets[asked]
            right += int(asked.sum() - wrong.sum())
            scored += int(asked.sum())
            whole += int((asked.any(1) & ~wrong.any(1)).sum())
            read += int(asked.any(1).sum())
    if not scored:
        return {"nats": math.nan, "accuracy": math.nan, "rows_right": math.nan}
    return {"nats": nats / scored, "accuracy": right / scored, "rows_right": whole / read}
