"""How far a slot's key has come again in a newer slot of its bank. Loop-level definition: `rmat/ops/reference.py`."""

from __future__ import annotations

import torch
from torch import Tensor

SIMILAR = 0.5
"""Cosine of two keys above which the newer one begins to stand for the older."""


def superseded(key_BNMKD: Tensor, filled_BNM: Tensor) -> Tensor:
    """For every slot the likeness of the most similar newer key: 0 up to a cosine of SIMILAR, 1 for an equal key.

    Args:
        key_BNMKD: keys of each segment's bank, oldest first; the cosine is over all key heads together.
        filled_BNM: bool; slots that are not filled supersede nothing.

    Returns: (B, N, M) in at least float32, in [0, 1].
    """
    flat_BNMX = key_BNMKD.flatten(3).to(torch.promote_types(key_BNMKD.dtype, torch.float32))
    unit_BNMX = torch.nn.functional.normalize(flat_BNMX, dim=-1)
    cosine_BNMM = unit_BNMX @ unit_BNMX.transpose(2, 3)
    n_slots = key_BNMKD.shape[2]
    newer_MM = torch.ones(n_slots, n_slots, dtype=torch.bool, device=key_BNMKD.device).triu(1)
    counts_BNMM = newer_MM & filled_BNM[:, :, None, :]
    nearest_BNM = torch.where(counts_BNMM, cosine_BNMM, SIMILAR).amax(3)
    return ((nearest_BNM - SIMILAR) / (1 - SIMILAR)).clamp(min=0.0)
