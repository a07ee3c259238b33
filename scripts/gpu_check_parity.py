"""The device's numbers against the CPU in float64: logits, gradients and final states of several
configurations."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmat.model import LanguageModel, ModelConfig
from rmat.model.state import NEVER

TOLERANCE = {
    "float32": {"logits": 1e-4, "gradient": 1e-4, "state": 1e-4},
    "bfloat16": {"logits": 1e-1, "gradient": 2e-1, "state": 5e-1},
}
"""Largest error relative to the norm of the float64 reference. A state in bfloat16 gets the most room: where
two tokens are scored nearly alike, rounding decides which of them is written, and a slot then holds another
token."""

PARITY: dict[str, dict[str, Any]] = {
    "recommended": {"variant": "recommended"},
    "paper": {"variant": "paper"},
    "local": {"variant": "local"},
    "xl": {"variant": "xl"},
    "full": {"variant": "full"},
    "joint softmax, pooled writes, both gates": {
        "variant": "recommended",
        "fusion": "joint",
        "writer": "pool",
        "gate": "both",
    },
    "separate projections, slot age": {
        "variant": "recommended",
        "projections": "separate",
        "memory_position": "age",
        "fusion": "token",
    },
}
"""Configurations whose results on the device are compared with the reference."""


def parity_float32(device: str, quick: bool) -> dict[str, Any]:
    """The device in float32 without TF32 against float64 on the CPU."""
    return _parity(device, "float32", quick)


def parity_bfloat16(device: str, quick: bool) -> dict[str, Any]:
    """The device in bfloat16 autocast against float64 on the CPU."""
    return _parity(device, "bfloat16", quick)


def _parity(device: str, dtype: str, quick: bool) -> dict[str, Any]:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    sizes = {"d_model": 32, "segment_len": 16} if quick else {"d_model": 128, "segment_len": 64}
    errors: dict[str, Any] = {}
    for name, fields in PARITY.items():
        torch.manual_seed(0)
        config = ModelConfig.preset(
            "tiny", **{"n_layers": 2, "vocab_size": 97, "n_slots": 64, **sizes, **fields}
        )
        model = LanguageModel(config).eval()
        expected = _outputs(copy.deepcopy(model).double(), "cpu", "float64")
        found = _outputs(model.to(device), device, dtype)
        errors[name] = {what: relative_error(found[what], expected[what]) for what in expected}
    allowed = TOLERANCE[dtype]
    share, name, what = max(
        (error / allowed[what], name, what) for name, row in errors.items() for what, error in row.items()
    )
    summary = (
        f"nearest to its bound: {what} of {name}, {errors[name][what]:.1e} of {allowed[what]:.0e} allowed"
    )
    return {"ok": share <= 1, "summary": summary, "tolerance": allowed, "relative_error": errors}


def _outputs(model: LanguageModel, device: str, dtype: str) -> dict[str, Tensor]:
    """Logits, gradient and final state of three calls: documents that begin inside, ragged rows, single
    tokens."""
    segment = model.config.segment_len
    length = 4 * segment + 5
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(model.config.vocab_size, (3, length), generator=generator).to(device)
    resets_BT = (torch.rand(3, length, generator=generator) < 0.5 / segment).to(device)
    valid_BT = (torch.arange(length) < torch.tensor([length, length - 7, length - segment])[:, None]).to(
        device
    )
    state, pieces = None, []
    precision = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    with precision:
        for piece in ((0, length - 2), (length - 2, length - 1), (length - 1, length)):
            part = slice(*piece)
            logits_BTV, state = model(
                tokens_BT[:, part], state, resets=resets_BT[:, part], valid=valid_BT[:, part]
            )
            pieces.append(logits_BTV)
    logits_BTV = torch.cat(pieces, 1)
    scored_BT = valid_BT[:, :-1] & valid_BT[:, 1:]
    wide = logits_BTV[:, :-1][scored_BT].to(torch.promote_types(logits_BTV.dtype, torch.float32))
    F.cross_entropy(wide, tokens_BT[:, 1:][scored_BT]).backward()
    gradient = torch.cat([p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None])
    assert state is not None
    floats = [t.detach().flatten().cpu().double() for t in state.tensors().values() if t.is_floating_point()]
    values = torch.cat(floats)
    # Empty places hold a huge negative score, beside which every other number would vanish.
    values = torch.where(values < NEVER / 2, 0.0, values)
    return {"logits": logits_BTV.detach().cpu().double(), "gradient": gradient, "state": values}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected; infinite if a value is not finite."""
    error = float((found - expected).norm() / expected.norm())
    return error if math.isfinite(error) else math.inf
