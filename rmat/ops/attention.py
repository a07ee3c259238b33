"""Attention, rotary positions and the causal convolution as functions on tensors.

Axis letters are those of `rmat/model/notation.py`. Loop-level definitions: `rmat/reference/loops.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
        mask: bool, broadcastable to (B, 1, T, J); True where a query sees a key. At least one key each.
        causal: query t sees the keys 0..t (T == J); excludes the mask.
        key_bias: (B, J), or (B, J, K) by key head, added to every logit of its key; differentiable. It goes
            in as one more coordinate of the keys against a constant one of the queries, because the fused
            kernels give no gradient to an additive mask.

    Returns: (B, T, H, D), in the type of q.
    """
    width = q_BTHD.shape[3]
    k_BJKD, v_BJKD = k_BJKD.to(q_BTHD.dtype), v_BJKD.to(q_BTHD.dtype)  # under autocast what was held is wider
    if key_bias is not None:
        key_bias = (key_bias if key_bias.dim() == 3 else key_bias.unsqueeze(2)) * width**0.5
        extra_BJKD = _coordinates(key_bias, k_BJKD.dtype).expand(*k_BJKD.shape[:3], -1)
        n_extra = extra_BJKD.shape[3]
        q_BTHD = F.pad(q_BTHD, (0, n_extra), value=1.0)
        k_BJKD = torch.cat([k_BJKD, extra_BJKD], dim=3)
        v_BJKD = F.pad(v_BJKD, (0, n_extra))
    out_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BJKD.transpose(1, 2),
        v_BJKD.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=width**-0.5,
        enable_gqa=q_BTHD.shape[2] != k_BJKD.shape[2],
    )
    return out_BHTD.transpose(1, 2)[..., :width]


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

    cos, sin: broadcastable to (B, T, H, D/2). Returns the type and shape of x.
    """
    first, second = at_least_float32(x_BTHD).chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x_BTHD.dtype)


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


def causal_convolution(x_BTE: Tensor, held_BLE: Tensor, weight: Tensor, position: Tensor | None) -> Tensor:
    """Depthwise convolution over a token and the ones before it in its document.

    Args:
        x_BTE: inputs. held_BLE: the L = width - 1 inputs before them.
        weight: (width, E); weight[j] multiplies the input j tokens back.
        position: (B, T) int64 position in the document, which hides inputs of another document; None if
            every token has width - 1 predecessors in its own.

    Returns: (B, T, E).
    """
    n_held, n_tokens = held_BLE.shape[1], x_BTE.shape[1]
    joined_BXE = torch.cat([held_BLE.to(x_BTE.dtype), x_BTE], dim=1)
    out_BTE = x_BTE * weight[0]
    for back in range(1, n_held + 1):
        term_BTE = joined_BXE[:, n_held - back : n_held - back + n_tokens] * weight[back]
        if position is not None:
            term_BTE = torch.where((position >= back)[..., None], term_BTE, 0.0)
        out_BTE = out_BTE + term_BTE
    return out_BTE
