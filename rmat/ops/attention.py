"""Attention, rotary positions and the causal convolution as functions on tensors.

Axis letters are those of `rmat/model/notation.py`. Loop-level definitions: `rmat/reference/loops.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

MASKED = -1.0e4
"""Added to the logit of a key that must not be seen. exp(MASKED) is exactly 0 in every float type here, and
being finite it keeps gradients finite where all keys of a query are masked."""


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged if it is float64: the precision of softmax, gates and recurrent state."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attend(
    q_BTHD: Tensor,
    k_BJKD: Tensor,
    v_BJKD: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    key_bias: Tensor | None = None,
) -> Tensor:
    """Softmax attention, one call for all rows: softmax(q . k / sqrt(D) + bias of k) v.

    Args:
        q_BTHD: queries. k_BJKD, v_BJKD: keys and values; H / K query heads share a key head.
        mask: broadcastable to (B, 1, T, J): bool, True where a query sees a key, or a number that is added to
            the logit. At least one key each.
        causal: query t sees the keys 0..t (T == J); excludes the mask.
        key_bias: (B, J), or (B, J, K) by key head, added to every logit of its key; differentiable.

    Returns: (B, T, H, D), in the type of q.
    """
    width = q_BTHD.shape[3]
    k_BJKD, v_BJKD = k_BJKD.to(q_BTHD.dtype), v_BJKD.to(q_BTHD.dtype)  # under autocast what was held is wider
    if key_bias is not None:
        bias, coordinates = key_bias, mask is not None
        q_BTHD, k_BJKD, v_BJKD, bias_BHTJ = _biased(q_BTHD, k_BJKD, v_BJKD, bias, coordinates=coordinates)
        mask = mask if coordinates else bias_BHTJ
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q_BTHD.dtype)
    groups = q_BTHD.shape[2] // k_BJKD.shape[2]
    if groups > 1 and q_BTHD.device.type == "cuda":
        wide = q_BTHD.dtype.itemsize > 2 and not torch.is_autocast_enabled("cuda")
        if wide or (mask is not None and mask.requires_grad):
            # Its fused kernels share key heads in 16 bits only, and without a gradient of the mask; what
            # serves else keeps all logits.
            k_BJKD, v_BJKD = (x.repeat_interleave(groups, 2) for x in (k_BJKD, v_BJKD))
            groups = 1
    out_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BJKD.transpose(1, 2),
        v_BJKD.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=width**-0.5,
        enable_gqa=groups > 1,
    )
    return out_BHTD.transpose(1, 2)[..., :width]


def _biased(
    q_BTHD: Tensor, k_BJKD: Tensor, v_BJKD: Tensor, bias: Tensor, *, coordinates: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, keys and values whose attention adds `bias` to the logits, and the mask that they need for it.

    A bias that no gradient asks for is the mask. The fused kernels give no gradient to a mask and round it to
    the type of q: any other bias (or, with `coordinates`, every one) goes in as one more coordinate of the
    keys against a constant one of the queries.
    """
    bias = bias if bias.dim() == 3 else bias.unsqueeze(2)
    if not (coordinates or bias.requires_grad or bias.dtype != q_BTHD.dtype):
        heads_BJH = bias.repeat_interleave(q_BTHD.shape[2] // bias.shape[2], 2) if bias.shape[2] > 1 else bias
        # Contiguous: the kernel would expand a strided mask to all queries.
        return q_BTHD, k_BJKD, v_BJKD, heads_BJH.transpose(1, 2).contiguous()[:, :, None]
    extra_BJKD = _coordinates(bias * q_BTHD.shape[3] ** 0.5, k_BJKD.dtype).expand(*k_BJKD.shape[:3], -1)
    n_extra = extra_BJKD.shape[3]
    k_BJKD = torch.cat([k_BJKD, extra_BJKD], dim=3)
    return F.pad(q_BTHD, (0, n_extra), value=1.0), k_BJKD, F.pad(v_BJKD, (0, n_extra)), None


def attend_slots(
    q_BTHD: Tensor,
    k_BJKD: Tensor,
    v_BJKD: Tensor,
    mask: Tensor | None,
    slot_q_BTHD: Tensor,
    slot_k_BMKD: Tensor,
    slot_v_BMKD: Tensor,
    slot_bias: Tensor,
) -> Tensor:
    """One softmax over keys that a mask hides and over slots whose logits have a bias; arguments as in
    `attend`. Slots may be asked by queries of their own. Returns (B, T, H, D), in the type of q."""
    dtype = q_BTHD.dtype
    keys = (q_BTHD, k_BJKD.to(dtype), v_BJKD.to(dtype))
    slots = (slot_q_BTHD.to(dtype), slot_k_BMKD.to(dtype), slot_v_BMKD.to(dtype))
    return (_merged if q_BTHD.device.type == "cpu" else _joined)(*keys, *slots, mask, slot_bias)


def _merged(
    q_BTHD: Tensor,
    k_BJKD: Tensor,
    v_BJKD: Tensor,
    slot_q_BTHD: Tensor,
    slot_k_BMKD: Tensor,
    slot_v_BMKD: Tensor,
    mask: Tensor | None,
    slot_bias: Tensor,
) -> Tensor:
    """`attend_slots` by two calls of the kernel on a CPU, merged: nothing is copied to be joined, and the
    slots need no mask of their own for every query (docs/performance.md)."""
    *slots, bias_BHTJ = _biased(slot_q_BTHD, slot_k_BMKD, slot_v_BMKD, slot_bias)
    if mask is not None:
        mask = (additive(mask, q_BTHD.dtype) if mask.dtype == torch.bool else mask).to(q_BTHD.dtype)
    parts = [*(x.transpose(1, 2) for x in slots), bias_BHTJ]
    parts += [*(x.transpose(1, 2) for x in (q_BTHD, k_BJKD, v_BJKD)), mask]
    out_BHTD: Tensor = _Merged.apply(q_BTHD.shape[3] ** -0.5, *parts)  # type: ignore[no-untyped-call]
    return out_BHTD.transpose(1, 2)


def _joined(
    q_BTHD: Tensor,
    k_BJKD: Tensor,
    v_BJKD: Tensor,
    slot_q_BTHD: Tensor,
    slot_k_BMKD: Tensor,
    slot_v_BMKD: Tensor,
    mask: Tensor | None,
    slot_bias: Tensor,
) -> Tensor:
    """`attend_slots` by one call on any device, with slots and keys one behind the other."""
    width = q_BTHD.shape[3]
    if slot_q_BTHD is not q_BTHD:
        # Both queries stand side by side in a head of double width, and a key is zero in the half that is not
        # meant for it; `attend` divides by the root of the double width.
        q_BTHD = torch.cat([q_BTHD, slot_q_BTHD], dim=3) * 2**0.5
        k_BJKD, v_BJKD, slot_v_BMKD = (F.pad(x, (0, width)) for x in (k_BJKD, v_BJKD, slot_v_BMKD))
        slot_k_BMKD = F.pad(slot_k_BMKD, (width, 0))
    bias = F.pad(slot_bias, (0, 0) * (slot_bias.dim() - 2) + (0, k_BJKD.shape[1]))
    k_BJKD, v_BJKD = torch.cat([slot_k_BMKD, k_BJKD], dim=1), torch.cat([slot_v_BMKD, v_BJKD], dim=1)
    if mask is not None:
        mask = F.pad(mask, (slot_bias.shape[1], 0), value=mask.dtype == torch.bool)
    return attend(q_BTHD, k_BJKD, v_BJKD, mask=mask, key_bias=bias)[..., :width]


class _Merged(torch.autograd.Function):
    """Softmax attention over two sets of keys, from an attention call for each: o = (Z_1 o_1 + Z_2 o_2) /
    (Z_1 + Z_2) with their log Z. The gradient of each is that of its call, with the merged o and log Z in
    place of its own.

    Arguments: the scale, then of each set queries, keys, values (B, heads, tokens, width) and the additive
    mask. The first set may be wider; what it has more does not come out.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, *parts: Tensor | None) -> Tensor:
        (one_BHTD, log_one), (two_BHTD, log_two) = (
            _FLASH(*part[:3], 0.0, False, attn_mask=part[3], scale=scale) for part in (parts[:4], parts[4:])
        )
        log_z = torch.logaddexp(log_one, log_two)
        share_BHT = (log_two - log_z).exp()
        width = two_BHTD.shape[3]
        out_BHTD = torch.lerp(one_BHTD[..., :width], two_BHTD, share_BHT[..., None].to(two_BHTD.dtype))
        ctx.scale = scale
        ctx.save_for_backward(out_BHTD, log_z, *parts)
        return out_BHTD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        out_BHTD, log_z, *parts = ctx.saved_tensors
        found: list[Tensor | None] = [None]
        for part in (parts[:4], parts[4:]):
            more = part[0].shape[3] - out_BHTD.shape[3]
            wide, out = (F.pad(x, (0, more)) if more else x for x in (gradients[0], out_BHTD))
            found += _FLASH_BACKWARD(
                wide, *part[:3], out, log_z, 0.0, False, attn_mask=part[3], scale=ctx.scale
            )
            found.append(None)
        return tuple(found)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to logits: 0 where `seen`, minus infinity elsewhere."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))


def stick_breaking(logits_BHTJ: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of keys that stand oldest first: w_i = b_i prod_{j>i} (1 - b_j) with b = sigmoid(logit).

    The newest key takes its share first, so of two keys that fit a query alike the newer one wins, however
    many there are (stick-breaking attention, arXiv 2410.17980, with age in the bank for distance).

    Returns: w (B, H, T, J) and what no key took, prod_j (1 - b_j), (B, H, T); in at least float32. Together
    1.
    """
    logits_BHTJ = at_least_float32(logits_BHTJ)
    missed_BHTJ = -F.softplus(logits_BHTJ)  # log(1 - b)
    left_BHTJ = missed_BHTJ.flip(3).cumsum(3).flip(3)
    taken_BHTJ = (logits_BHTJ + left_BHTJ).exp()  # log b_i = logit_i + log(1 - b_i)
    return taken_BHTJ, left_BHTJ[..., 0].exp()


def attend_newest(
    q_BTHD: Tensor, k_BJKD: Tensor, v_BJKD: Tensor, key_bias: Tensor, head_bias: Tensor, rest: Tensor | None
) -> Tensor:
    """Stick-breaking attention: keys stand oldest first, logits are q . k / sqrt(D) + bias of k + bias of
    the head.

    Args:
        head_bias: (H,). rest: (K, D) value of what no key took; None: zero. The others as in `attend`.

    Returns: (B, T, H, D), in the type of q.
    """
    n_groups = k_BJKD.shape[2]
    q_BTKGD = q_BTHD.unflatten(2, (n_groups, -1))
    logits = torch.einsum("btkgd,bjkd->bkgtj", q_BTKGD, k_BJKD.to(q_BTHD.dtype)).flatten(1, 2)
    logits_BHTJ = at_least_float32(logits) * q_BTHD.shape[3] ** -0.5
    bias_BHTJ = key_bias[:, None, None] + head_bias[:, None, None].to(key_bias.dtype)
    weight_BHTJ, rest_BHT = stick_breaking(logits_BHTJ + bias_BHTJ)
    weight_BKGTJ = weight_BHTJ.unflatten(1, (n_groups, -1)).to(q_BTHD.dtype)
    out_BTKGD = torch.einsum("bkgtj,bjkd->btkgd", weight_BKGTJ, v_BJKD.to(q_BTHD.dtype))
    if rest is not None:
        rest_BTKG = rest_BHT.unflatten(1, (n_groups, -1)).movedim(3, 1).to(q_BTHD.dtype)
        out_BTKGD = out_BTKGD + rest_BTKG[..., None] * rest[:, None].to(q_BTHD.dtype)
    return out_BTKGD.flatten(2, 3)


def _coordinates(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as coordinates (..., 1 or 2) in `dtype` whose sum keeps it: what a narrow type rounds off goes into
    a second."""
    high = x.to(dtype)
    if torch.promote_types(dtype, x.dtype) == dtype:
        return high[..., None]
    return torch.stack([high, (x - high).to(dtype)], dim=-1)


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: the pair (i, i + D/2) of every head turns by its angle, in at least float32.

    cos, sin: broadcastable to (B, T, H, D), of every pair's angle at both places; the first half of sin is
    negative. Returns the type and shape of x.
    """
    wide_BTHD = at_least_float32(x_BTHD)
    swapped_BTHD = wide_BTHD.roll(x_BTHD.shape[3] // 2, -1)
    return torch.addcmul(wide_BTHD * cos, swapped_BTHD, sin).to(x_BTHD.dtype)


def fold_chunks(
    q_RSHD: Tensor, k_RJKD: Tensor, v_RJKD: Tensor, chunk: int, lookback: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay the chunks of every segment side by side as rows of their own.

    Args:
        q_RSHD: queries of R segments, S a multiple of `chunk`.
        k_RJKD, v_RJKD: keys and values, J = S + lookback * chunk: the chunk before the segment comes first.

    Returns: queries (R * S / chunk, chunk, H, D); keys and values (R * S / chunk, (1 + lookback) * chunk, K,
    D).
    """
    n_rows, n_cells = q_RSHD.shape[:2]
    n_chunks = n_cells // chunk
    q = q_RSHD.reshape(n_rows * n_chunks, chunk, *q_RSHD.shape[2:])

    def windows(x_RJKD: Tensor) -> Tensor:
        parts = x_RJKD.reshape(n_rows, n_chunks + lookback, chunk, *x_RJKD.shape[2:])
        if lookback:
            parts = torch.cat([parts[:, :-1], parts[:, 1:]], dim=2)
        return parts.reshape(n_rows * n_chunks, -1, *x_RJKD.shape[2:])

    return q, windows(k_RJKD), windows(v_RJKD)


def causal_convolution(joined_BXE: Tensor, weight: Tensor, position: Tensor | None) -> Tensor:
    """Depthwise convolution over a token and the ones before it in its document.

    Args:
        joined_BXE: T inputs behind the width - 1 before them.
        weight: (width, E); weight[j] multiplies the input j tokens back.
        position: (B, T) int64 position in the document, which hides inputs of another document; None if
            no document starts in this call, and what is held is zero before the start of its own.

    Returns: (B, T, E).
    """
    n_held = weight.shape[0] - 1
    n_tokens = joined_BXE.shape[1] - n_held
    out_BTE = joined_BXE[:, n_held:] * weight[0]
    for back in range(1, n_held + 1):
        tap_BTE = joined_BXE[:, n_held - back : n_held - back + n_tokens]
        if position is not None:
            tap_BTE = torch.where((position >= back)[..., None], tap_BTE, 0.0)
        out_BTE = torch.addcmul(out_BTE, tap_BTE, weight[back])
    return out_BTE
