"""What `perplexity` finds: totals with their interval, buckets by position, and the sums that pair two
results."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rmat.data.lanes import IGNORED
from rmat.evaluation.intervals import Interval, paired_bootstrap_ratio
from rmat.model.language_model import MemoryMode


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats (...) of targets (...) int64 under logits (..., V), in at least float32; 0 where a target is
    -100."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    nats = F.cross_entropy(wide, targets.to(wide.device).flatten(), reduction="none", ignore_index=IGNORED)
    return nats.view(targets.shape)


@dataclass(frozen=True, kw_only=True)
class PositionScore:
    """Bits per byte of the tokens that start in one range of positions, over the documents of all buckets."""

    start: int
    """First byte of the document that belongs to the bucket."""
    stop: int
    """First byte after the bucket."""
    score: Interval
    """Bits per byte with its bootstrap interval over documents."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; positions under the keys `from` and `to`, in bytes."""
        return {"from": self.start, "to": self.stop, **self.score.to_dict("bits_per_byte")}


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """Result of `perplexity`. Arrays are ordered as the documents of the store, so two results can be
    paired."""

    bits_per_byte: float
    """Nats of all scored tokens over ln 2 and over the bytes of all scored text."""
    low: float | None
    """Lower 95 % bound, bootstrap over documents; None for a single document."""
    high: float | None
    """Upper 95 % bound, bootstrap over documents; None for a single document."""
    nats_per_token: float
    """Nats of all scored tokens over their number."""
    tokens: int
    """Scored tokens."""
    bytes: int
    """Bytes of text the scored tokens stand for."""
    documents: int
    """Scored documents."""
    memory: MemoryMode
    """How the memory was used while scoring."""
    state_bytes: int
    """Size of the streaming state of one row."""
    by_position: tuple[PositionScore, ...]
    """Buckets of the position in bytes; all over the same documents, those at least as long as the last
    bucket."""
    position_documents: int
    """Number of documents `by_position` rests on."""
    document_nats: NDArray[np.float64] = field(repr=False)
    """(documents,) nats per document."""
    document_bytes: NDArray[np.float64] = field(repr=False)
    """(documents,) bytes per document."""
    position_nats: NDArray[np.float64] = field(repr=False)
    """(position_documents, buckets) nats of the tokens that start in each bucket."""
    position_bytes: NDArray[np.float64] = field(repr=False)
    """(position_documents, buckets) bytes of the same tokens."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able summary without the per-document arrays."""
        arrays = ("document_nats", "document_bytes", "position_nats", "position_bytes")
        summary = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in arrays}
        summary["by_position"] = [bucket.to_dict() for bucket in self.by_position]
        return summary | {"position_unit": "bytes"}

    def minus(self, baseline: PerplexityResult, *, seed: int = 0) -> Interval:
        """Difference in bits per byte, self - baseline, with the paired bootstrap interval.

        Raises ValueError if the two results do not rest on the same documents.
        """
        if not np.array_equal(self.document_bytes, baseline.document_bytes):
            raise ValueError(
                "the two results score different documents: take both on the same store and max_bytes"
            )
        return paired_bootstrap_ratio(
            self.document_nats, baseline.document_nats, self.document_bytes, scale=1 / math.log(2), seed=seed
        )

    def minus_by_position(self, baseline: PerplexityResult, *, seed: int = 0) -> tuple[PositionScore, ...]:
        """The paired difference self - baseline in each position bucket. Errors as in `minus`."""
        if not np.array_equal(self.position_bytes, baseline.position_bytes):
            raise ValueError(
                "the two results score different documents: take both on the same store and max_bytes"
            )
        return tuple(
            PositionScore(
                start=bucket.start,
                stop=bucket.stop,
                score=paired_bootstrap_ratio(
                    self.position_nats[:, k],
                    baseline.position_nats[:, k],
                    self.position_bytes[:, k],
                    scale=1 / math.log(2),
                    seed=seed,
                ),
            )
            for k, bucket in enumerate(self.by_position)
        )
