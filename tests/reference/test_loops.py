"""The loop-level definitions themselves, at values that can be worked out by hand."""

import math

import pytest
import torch

from rmat.reference import loops as ref


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_which_tokens_a_token_sees() -> None:
    assert ref.segment_keys(0, 6) == [0]
    assert ref.segment_keys(8, 6) == [6, 7, 8]
    assert ref.segment_keys(11, 6) == [6, 7, 8, 9, 10, 11]
    assert ref.chunk_keys(8, 3, 0) == [6, 7, 8]
    assert ref.chunk_keys(7, 3, 1) == [3, 4, 5, 6, 7]
    assert ref.chunk_keys(1, 3, 1) == [0, 1]


def test_rotation_by_a_quarter_turn() -> None:
    assert torch.allclose(ref.rotate(vector(1.0, 0.0), 1, 7.0), vector(math.cos(1), math.sin(1)))
    turned = ref.rotate(vector(1.0, 1.0, 0.0, 0.0), 5, 100.0)
    assert torch.allclose(turned, vector(math.cos(5), math.cos(0.5), math.sin(5), math.sin(0.5)))
    assert torch.equal(ref.rotate(vector(1.0, 2.0, 3.0, 4.0), 0, 10.0), vector(1.0, 2.0, 3.0, 4.0))


def test_rotated_products_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 6, dtype=torch.float64)
    near = ref.rotate(q, 5, 50.0) @ ref.rotate(k, 2, 50.0)
    far = ref.rotate(q, 1, 50.0) @ ref.rotate(k, -2, 50.0)
    assert float(near) == pytest.approx(float(far), abs=1e-12)


def test_reading_is_a_softmax() -> None:
    entries = [
        ref.Entry(logit=vector(math.log(w))[0], value=vector(v)) for w, v in ((1.0, 10.0), (3.0, 20.0))
    ]
    found = ref.read(entries)
    assert found is not None and float(found) == pytest.approx(17.5)
    assert ref.read([]) is None
    huge = [
        ref.Entry(logit=vector(1e4)[0], value=vector(1.0)),
        ref.Entry(logit=vector(-1e4)[0], value=vector(9.0)),
    ]
    found = ref.read(huge)
    assert found is not None and float(found) == 1.0


def test_a_slots_gate_weighs_its_reading() -> None:
    key = torch.zeros(1, 2, dtype=torch.float64)
    slots = [
        ref.Slot(key=key, value=torch.full((1, 1), value), log_gate=vector(math.log(gate))[0], position=0)
        for gate, value in ((0.25, 4.0), (0.75, 8.0))
    ]
    found = ref.read(ref.memory_entries(torch.ones(2, 2, dtype=torch.float64), slots, 1))
    assert found is not None and float(found) == pytest.approx(7.0)
    null = ref.Entry(logit=vector(0.0)[0], value=vector(0.0))
    found = ref.read(ref.memory_entries(torch.ones(2, 2, dtype=torch.float64), slots, 0, null=null))
    assert found is not None and float(found) == pytest.approx(3.5)


def test_ranks_and_ages() -> None:
    assert [ref.slot_rank(index, 3) for index in range(3)] == [2, 1, 0]
    starts_and_buckets = [(6, 5, 0), (6, 0, 0), (12, 5, 1), (18, 5, 1), (24, 5, 2), (12, 0, 1), (600, 0, 4)]
    for start, position, bucket in starts_and_buckets:
        assert ref.age_bucket(start, position, 6, 5) == bucket, (start, position)


def test_fusion_weighs_streams_and_skips_what_is_empty() -> None:
    scores = [vector(math.log(1.0))[0], vector(math.log(3.0))[0]]
    assert float(ref.fuse([vector(8.0), vector(4.0)], scores)) == pytest.approx(5.0)
    assert float(ref.fuse([vector(8.0), None], scores)) == pytest.approx(2.0)


def test_convolution_looks_back_only() -> None:
    x = torch.tensor([[1.0], [10.0], [100.0]])
    taps = torch.tensor([[3.0, 2.0, 1.0]])
    assert ref.causal_depthwise_convolution(x, taps).flatten().tolist() == [1.0, 12.0, 123.0]
    assert ref.causal_depthwise_convolution(x, taps, torch.tensor([0.5])).flatten().tolist() == [
        1.5,
        12.5,
        123.5,
    ]


def test_writers() -> None:
    w = torch.tensor([[1.0], [4.0], [2.0], [3.0]], dtype=torch.float64)
    scorer = (vector(1.0), vector(-1.5)[0])
    (mean,) = ref.write_mean(w, 8)
    assert (float(mean.vector), mean.position, mean.score) == (2.5, 11, None)
    chosen = ref.write_select(w, 8, 2, scorer)
    assert [(float(c.vector), c.position) for c in chosen] == [(4.0, 9), (3.0, 11)]
    tied = ref.write_select(torch.tensor([[1.001], [1.002], [1.0]], dtype=torch.float64), 0, 2, scorer)
    assert [c.position for c in tied] == [0, 1]
    every = ref.write_all(w, 8, scorer)
    assert [c.position for c in every] == [8, 9, 10, 11]
    assert [ref.gate_is_open(c, True) for c in every] == [False, True, True, True]
    assert all(ref.gate_is_open(c, False) for c in every)
    pooled = ref.write_pool(w, 8, torch.tensor([[0.0], [100.0]], dtype=torch.float64))
    assert [float(c.vector) for c in pooled] == pytest.approx([2.5, 4.0])


def test_log_gate() -> None:
    candidate = ref.Candidate(vector=vector(1.0), score=vector(0.0)[0], position=0)
    assert float(ref.log_gate(candidate)) == pytest.approx(math.log(0.5))
    assert float(ref.log_gate(ref.Candidate(vector=vector(1.0), score=None, position=0))) == 0.0


def test_gru_gate_keeps_and_replaces() -> None:
    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert float(ref.gru_gate(vector(2.0), vector(6.0), zero, zero, vector(0.0))) == 4.0
    assert float(ref.gru_gate(vector(2.0), vector(6.0), zero, zero, vector(50.0))) == pytest.approx(2.0)
    assert float(ref.gru_gate(vector(2.0), vector(6.0), zero, zero, vector(-50.0))) == pytest.approx(6.0)


def test_push_evicts_the_oldest() -> None:
    bank: list[ref.Slot] = []
    for t in range(5):
        number = torch.full((1, 1), float(t))
        bank = ref.push(bank, ref.Slot(key=number, value=number, log_gate=number[0, 0], position=t), 3)
        assert [slot.position for slot in bank] == list(range(max(0, t - 2), t + 1))
