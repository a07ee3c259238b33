"""The fast attention functions against their loop-level definitions, forward and gradients."""

import math
from typing import Any

import pytest
import torch

from rmat.ops.attention import (
    MASKED,
    _coordinates,
    _joined,
    _merged,
    additive,
    attend,
    attend_newest,
    causal_convolution,
    fold_chunks,
    rotate,
    stick_breaking,
)
from rmat.reference import loops as ref

HEADS = [(1, 1), (4, 2), (3, 3), (6, 1)]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def angles(positions: range, width: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.tensor(list(positions), dtype=torch.float64)[:, None, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], 2), torch.cat([-sin, sin], 2)


def agree(fast: torch.Tensor, slow: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    """Equal values and equal gradients of a random projection."""
    assert torch.allclose(fast, slow, atol=1e-11)
    weights = torch.randn_like(fast)
    left = torch.autograd.grad((fast * weights).sum(), inputs)
    right = torch.autograd.grad((slow * weights).sum(), inputs)
    for a, b in zip(left, right, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("theta", [3.0, 10000.0])
def test_rotation(theta: float) -> None:
    x = draw(1, 7, 2, 6)
    cos, sin = angles(range(-3, 4), 6, theta)
    slow = torch.stack(
        [torch.stack([ref.rotate(x[0, t, h], t - 3, theta) for h in range(2)]) for t in range(7)]
    )
    agree(rotate(x, cos, sin)[0], slow, [x])


def test_rotation_is_exact_in_narrow_types() -> None:
    x = draw(1, 3, 1, 4).detach()
    cos, sin = angles(range(3), 4, 10.0)
    narrow = rotate(x.bfloat16(), cos.float(), sin.float())
    assert narrow.dtype == torch.bfloat16
    assert torch.allclose(narrow.double(), rotate(x.bfloat16().double(), cos, sin), atol=2e-2)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_causal_attention_inside_a_segment(heads: int, kv_heads: int) -> None:
    length, width = 7, 6
    q, k, v = (
        draw(1, length, heads, width),
        draw(1, length, kv_heads, width, seed=1),
        draw(1, length, kv_heads, width, seed=2),
    )
    cos, sin = angles(range(length), width, 20.0)
    fast = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, causal=True)
    slow = ref.local_attention(
        q[0], k[0], v[0], lambda p: ref.segment_keys(p, length), length, [20.0] * heads
    )
    agree(fast[0], slow, [q, k, v])


@pytest.mark.parametrize("chunk", [1, 3, 9])
@pytest.mark.parametrize("lookback", [0, 1])
def test_chunks_laid_side_by_side(chunk: int, lookback: int) -> None:
    """Two segments of nine tokens: the second also sees the last chunk of the first."""
    size, width = 9, 4
    q, k, v = (
        draw(1, 2 * size, 2, width),
        draw(1, 2 * size, 1, width, seed=1),
        draw(1, 2 * size, 1, width, seed=2),
    )
    before = lookback * chunk
    cos, sin = angles(range(size), width, 20.0)
    key_cos, key_sin = angles(range(-before, size), width, 20.0)
    second = slice(size - before, 2 * size)
    folded = fold_chunks(
        rotate(q[:, size:], cos, sin), rotate(k[:, second], key_cos, key_sin), v[:, second], chunk, lookback
    )
    cells = torch.arange(chunk)
    mask = torch.cat([torch.ones(chunk, chunk * lookback, dtype=torch.bool), cells[:, None] >= cells], dim=1)
    fast = attend(*folded, mask=mask).reshape(size, 2, width)
    slow = ref.local_attention(
        q[0], k[0], v[0], lambda p: ref.chunk_keys(p, chunk, lookback), size, [20.0] * 2
    )
    agree(fast, slow[size:], [q, k, v])


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_attention_with_a_bias_is_the_memory_read(heads: int, kv_heads: int) -> None:
    tokens, slots, width = 3, 5, 6
    q, k, v = (
        draw(1, tokens, heads, width),
        draw(1, slots, kv_heads, width, seed=1),
        draw(1, slots, kv_heads, width, seed=2),
    )
    score = draw(slots)
    fast = attend(q, k, v, key_bias=torch.nn.functional.logsigmoid(score)[None])
    rows = []
    for t in range(tokens):
        bank = [
            ref.Slot(key=k[0, j], value=v[0, j], log_gate=-torch.log(1 + torch.exp(-score[j])), position=j)
            for j in range(slots)
        ]
        found = [ref.read(ref.memory_entries(q[0, t], bank, head)) for head in range(heads)]
        rows.append(torch.stack([each for each in found if each is not None]))
    agree(fast[0], torch.stack(rows), [q, k, v, score])


def test_a_mask_and_a_bias_together() -> None:
    q, k, v = draw(1, 2, 1, 4), draw(1, 3, 1, 4, seed=1), draw(1, 3, 1, 4, seed=2)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    bias = torch.tensor([0.5, 5.0, -1.0], dtype=torch.float64)
    fast = attend(q, k, v, mask=mask[None, None], key_bias=bias[None])
    for t in range(2):
        entries = [
            ref.Entry(logit=q[0, t, 0] @ k[0, j, 0] / math.sqrt(4) + bias[j], value=v[0, j, 0])
            for j in range(3)
            if mask[t, j]
        ]
        found = ref.read(entries)
        assert found is not None and torch.allclose(fast[0, t, 0], found, atol=1e-12)


@pytest.mark.parametrize("way", [_merged, _joined])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("own_query", [True, False])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("by_head", [True, False])
def test_one_softmax_over_keys_and_slots(
    way: Any, heads: int, kv_heads: int, own_query: bool, learned: bool, by_head: bool
) -> None:
    """Two calls of the kernel merged, and one over all keys: values and gradients are those of the sum."""
    n_tokens, n_keys, n_slots, width = 3, 4, 5, 6
    q, k = draw(2, n_tokens, heads, width), draw(2, n_keys, kv_heads, width, seed=1)
    v, slot_q = draw(2, n_keys, kv_heads, width, seed=2), draw(2, n_tokens, heads, width, seed=3)
    slot_k = draw(2, n_slots, kv_heads, width, seed=4)
    slot_v = draw(2, n_slots, kv_heads, width, seed=5)
    bias = draw(2, n_slots, *[kv_heads] * by_head, seed=6)
    inputs = [q, k, v, slot_k, slot_v, *[slot_q] * own_query, *[bias] * learned]
    bias = bias if learned else bias.detach()
    with torch.no_grad():
        bias[0, 1] = MASKED
    slot_q = slot_q if own_query else q
    seen = torch.arange(n_keys) <= torch.arange(n_tokens)[:, None]
    mask = seen if way is _joined else additive(seen, torch.float64)
    fast = way(q, k, v, slot_q, slot_k, slot_v, mask.expand(2, 1, -1, -1), bias)
    group = heads // kv_heads
    of_slots = torch.einsum("bthd,bjhd->bthj", slot_q, slot_k.repeat_interleave(group, 2)) / width**0.5
    of_slots = of_slots + (bias.repeat_interleave(group, 2).mT if by_head else bias[:, None])[:, None]
    of_keys = torch.einsum("bthd,bjhd->bthj", q, k.repeat_interleave(group, 2)) / width**0.5
    of_keys = of_keys.masked_fill(~seen[:, None], float("-inf"))
    weights = torch.cat([of_slots, of_keys], 3).softmax(3)
    values = torch.cat([slot_v, v], 1).repeat_interleave(group, 2)
    agree(fast, torch.einsum("bthj,bjhd->bthd", weights, values), inputs)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_convolution_with_held_inputs_and_document_starts(width: int) -> None:
    """Eleven inputs of one document, the last seven in this call; then a document that starts inside the call."""
    x, weight = draw(1, 11, 3), draw(width, 3, seed=1)
    held = x[:, 4 - (width - 1) : 4]
    fast = causal_convolution(torch.cat([held, x[:, 4:]], 1), weight, torch.arange(4, 11)[None])
    agree(fast[0], ref.causal_depthwise_convolution(x[0], weight.flip(0).T)[4:], [x, weight])
    position = torch.tensor([[4, 5, 6, 0, 1, 2, 3]])
    fast = causal_convolution(torch.cat([held, x[:, 4:]], 1), weight, position)
    slow = torch.cat(
        [
            ref.causal_depthwise_convolution(x[0, :7], weight.flip(0).T)[4:],
            ref.causal_depthwise_convolution(x[0, 7:], weight.flip(0).T),
        ]
    )
    agree(fast[0], slow, [x, weight])


def test_a_bias_keeps_its_precision_under_bfloat16() -> None:
    """The log of a gate was rounded to the eight bits of the keys' type before it met the logits."""
    bias = torch.linspace(-7.0, 0.0, 101)[None]
    narrow = _coordinates(bias, torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float().sum(2) - bias).abs().max() < 2**-14 * 7
    assert (bias.bfloat16().float() - bias).abs().max() > 2**-9 * 4
    assert torch.equal(_coordinates(bias, torch.float32)[..., 0], bias)
    q, k, v = (torch.zeros(1, n, 1, 8, dtype=torch.bfloat16) for n in (1, 2, 2))
    v[0, 1] = 1.0
    bias = torch.tensor([[0.0, -0.3017]], requires_grad=True)
    weight = attend(q, k, v, key_bias=bias)[0, 0, 0, 0]
    expected = torch.sigmoid(torch.tensor(-0.3017))
    assert abs(weight - expected) < 2**-8
    weight.backward()
    assert bias.grad is not None
    assert abs(bias.grad[0, 1] - expected * (1 - expected)) < 2**-6


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("with_rest", [True, False])
def test_newest_first(heads: int, kv_heads: int, with_rest: bool) -> None:
    n_queries, n_keys, width = 3, 7, 6
    q, k = draw(2, n_queries, heads, width), draw(2, n_keys, kv_heads, width, seed=1)
    v, bias = draw(2, n_keys, kv_heads, width, seed=2), draw(2, n_keys, seed=3)
    head_bias, rest = draw(heads, seed=4), draw(kv_heads, width, seed=5)
    rows = []
    for b in range(2):
        for t in range(n_queries):
            for h in range(heads):
                group = h // (heads // kv_heads)
                entries = []
                for j in range(n_keys):
                    logit = (q[b, t, h] * k[b, j, group]).sum() / math.sqrt(width) + bias[b, j] + head_bias[h]
                    entries.append(ref.Entry(logit=logit, value=v[b, j, group]))
                rows.append(ref.read_newest(entries, rest[group] if with_rest else torch.zeros_like(rest[0])))
    slow = torch.stack(rows).view(2, n_queries, heads, width)
    fast = attend_newest(q, k, v, bias, head_bias, rest if with_rest else None)
    agree(fast, slow, [q, k, v, bias, head_bias] + [rest] * with_rest)


def test_of_two_keys_alike_the_newer_one_wins_at_any_distance() -> None:
    logits = torch.full((1, 1, 1, 500), -12.0)
    logits[..., 7] = logits[..., 400] = 12.0
    logits[..., 499] = MASKED
    weight, rest = stick_breaking(logits)
    assert weight[..., 400] > 0.999 and weight[..., 7] < 1e-4 and weight[..., 499] == 0
    assert torch.allclose(weight.sum(3) + rest, torch.ones(1, 1, 1))


def test_newest_first_finds_nothing_in_an_empty_bank() -> None:
    q, k = draw(1, 2, 2, 4), draw(1, 5, 2, 4, seed=1)
    rest = draw(2, 4, seed=2)
    bias = torch.full((1, 5), MASKED, dtype=torch.float64)
    found = attend_newest(q, k, k, bias, torch.zeros(2, dtype=torch.float64), rest)
    assert torch.equal(found, rest.expand(1, 2, 2, 4))
    assert not attend_newest(q, k, k, bias, torch.zeros(2, dtype=torch.float64), None).any()
