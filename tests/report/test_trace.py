"""What the trace tells is what the model does: reads, writes and losses are checked against the model itself."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmat.model import LanguageModel
from rmat.ops.attention import attend
from rmat.report.memory_trace import MemoryTrace
from rmat.report.probe import Probe
from rmat.report.trace import Trace, trace
from tests.makers.models import CASES, WITH_MEMORY, bank_positions, make_config, make_model
from tests.makers.reports import random_document


def streams_of(model: LanguageModel) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Filled by hooks in every call: the mixed streams (T, H, D) of every block, and the memory's where it stands alone."""
    mixed: dict[int, Tensor] = {}
    memory: dict[int, Tensor] = {}
    for k, block in enumerate(model.blocks):

        def catch_mixed(_: Any, inputs: Any, __: Any, k: int = k) -> None:
            mixed[k] = inputs[0][0].unflatten(1, (model.config.n_heads, -1))

        def catch_memory(module: Any, inputs: Any, __: Any, k: int = k) -> None:
            memory[k] = inputs[1][model.config.streams.index("memory")][0]

        block.output.register_forward_hook(catch_mixed)
        if hasattr(block, "fusion") and block.config.has_memory:
            block.fusion.register_forward_hook(catch_memory)
    return mixed, memory


OWN = [case for case in CASES if make_config(case).memory_projections == "own"]
ADMITTED = [case for case in CASES if case not in OWN]
HEADS_SINKS_LOOKBACK = {
    **CASES["admitted_of_heads"],
    "n_sinks": 4,
    "chunk_lookback": 1,
    "null_slot": True,
    "memory_layers": (1,),
}


@pytest.mark.parametrize("case", OWN)
def test_attention_over_the_slots_gives_what_the_memory_read(case: str) -> None:
    model = make_model(case)
    config = model.config
    ids = torch.from_numpy(random_document(model, 3 * config.segment_len + 2))[None]
    mixed, memory = streams_of(model)
    state = None
    with torch.no_grad(), Probe(model) as probe:
        for start in range(0, ids.shape[1], config.segment_len):
            _, state = model(ids[:, start : start + config.segment_len], state)
            for k, view in enumerate(probe.views()):
                block = model.blocks[k]
                torch.testing.assert_close(view.fusion_ATH.sum(0), torch.ones_like(view.fusion_ATH[0]))
                if view.memory is None:
                    continue
                read = slots_times_values(block, probe, k)
                if k in memory:
                    torch.testing.assert_close(memory[k], read, rtol=1e-9, atol=1e-11)
                elif not config.local_streams:
                    torch.testing.assert_close(mixed[k], read, rtol=1e-9, atol=1e-11)
                else:  # one softmax: the share of the memory mixes its read with the local one
                    local = probe._caught[k].local
                    mask = local.range.seen(*block.config.local_streams)
                    alone = attend(local.q_RSHD, local.k_RJKD, local.v_RJKD, mask=mask)[0, : len(read)]
                    share = view.weight_TH("memory")[..., None]
                    torch.testing.assert_close(mixed[k], share * read + (1 - share) * alone)


@pytest.mark.parametrize("case", [*ADMITTED, HEADS_SINKS_LOOKBACK], ids=str)
def test_weights_of_one_softmax_give_what_the_block_mixed(case: Any) -> None:
    """The mix is the weights times the values that local attention had at the entries' sources."""
    model = make_model(case)
    config = model.config
    size, group = config.segment_len, config.n_heads // config.n_kv_heads
    ids = torch.from_numpy(random_document(model, 8 * size + 2))
    mixed, _ = streams_of(model)
    traces = [MemoryTrace.blank(config, len(ids), 9) for _ in model.blocks]
    values = [torch.zeros(0, config.n_kv_heads, config.head_dim, dtype=torch.float64) for _ in traces]
    state, read = None, 0.0
    with torch.no_grad(), Probe(model) as probe:
        for segment, start in enumerate(range(0, len(ids), size)):
            stop = min(start + size, len(ids))
            _, state = model(ids[None, start:stop], state)
            for k, view in enumerate(probe.views()):
                torch.testing.assert_close(view.fusion_ATH.sum(0), torch.ones_like(view.fusion_ATH[0]))
                local = probe._caught[k].local
                assert local is not None
                new_TKD = local.tokens.value[0, start - stop :]
                values[k] = torch.cat([values[k], new_TKD])
                if (memory := view.memory) is None:
                    continue
                mask = local.range.seen(*model.blocks[k].config.local_streams)
                alone_THD = attend(local.q_RSHD, local.k_RJKD, local.v_RJKD, mask=mask)[0, : stop - start]
                mix_THD = view.fusion_ATH[0][..., None] * alone_THD
                if config.null_slot:
                    null_HD = model.blocks[k].memory.null_value.repeat_interleave(group, 0)
                    mix_THD = mix_THD + memory.null_TH[..., None] * null_HD
                traces[k].note(config, view, start=start, stop=stop, segment=segment)
                entries = np.concatenate([traces[k].found[0], *found_before(traces[k], memory.banks, start)])
                filled = [bank.slot_THM[..., config.n_slots - bank.filled :] for bank in memory.banks]
                weight_THJ = torch.cat([memory.sink_THJ, *filled], dim=2)
                value_JHD = values[k][traces[k].source[entries]].repeat_interleave(group, 1)
                mix_THD = mix_THD + torch.einsum("thj,jhd->thd", weight_THJ, value_JHD)
                torch.testing.assert_close(mixed[k], mix_THD, rtol=1e-9, atol=1e-11)
                read += float(weight_THJ.sum())
    assert read > 1


def found_before(memory: MemoryTrace, banks: Any, start: int) -> list[np.ndarray]:
    """The entries of every bank, oldest first, that a segment at `start` found, from the lives told of them."""
    every = np.arange(memory.n_entries)
    gone = (memory.evicted[every] >= 0) & (memory.evicted[every] <= start)
    alive = every[(memory.entered[every] <= start) & ~gone & ~np.isin(every, memory.found[0])]
    head = memory.key_head[alive]
    return [alive[head == k] for k in range(len(banks))] if len(banks) > 1 else [alive]


def test_lives_and_shares_of_a_memory_of_local_keys() -> None:
    model = make_model(HEADS_SINKS_LOOKBACK)
    config, length = model.config, 61
    ids = random_document(model, length)
    found = trace(model, [ids, ids[:40]])
    assert found.layers[0].memory is None and found.layers[1].streams == (
        "chunked",
        "memory",
        "sinks",
        "null",
    )
    memory = found.layers[1].memory
    assert memory is not None
    with torch.no_grad():
        _, state = model(torch.from_numpy(ids)[None])
    first = memory.source < length
    sinks = memory.source - np.where(first, 0, length) < config.n_sinks
    # Found when the segment after the one that local attention lost sight of begins; never evicted.
    assert memory.source[sinks].tolist() == [0, 1, 2, 3, 61, 62, 63, 64]
    assert memory.entered[sinks].tolist() == [12] * 4 + [73] * 4
    assert (memory.evicted[sinks] < 0).all() and np.isnan(memory.gate[sinks]).all()
    assert (memory.key_head[sinks] == -1).all()
    held = first & ~sinks & (memory.evicted < 0)
    by_head = [memory.source[held & (memory.key_head == k)].tolist() for k in range(config.n_kv_heads)]
    assert [*by_head[0], *by_head[1]] == bank_positions(state, 1)[0] and by_head[0] != by_head[1]
    score = np.take_along_axis(memory.write[memory.source], np.maximum(memory.key_head, 0)[:, None], 1)[:, 0]
    assert (score[~sinks] > 0).all()
    np.testing.assert_allclose(memory.gate[~sinks], 1 / (1 + np.exp(-score[~sinks])), rtol=1e-5)
    for k in range(config.n_kv_heads):
        own = ~sinks & first & (memory.key_head == k)
        lag = memory.entered[own] - memory.source[own]
        assert ((lag > config.write_lag) & (lag <= config.write_lag + config.segment_len)).all()
        leaves = np.append(memory.entered[own][config.n_slots :], np.full(config.n_slots, -1))[: own.sum()]
        assert memory.evicted[own].tolist() == leaves.tolist()
        heads = memory.read_head[np.isin(memory.read_entry, np.flatnonzero(~sinks & (memory.key_head == k)))]
        assert set((heads // 2).tolist()) == {k}
    assert memory.total_read.sum() == pytest.approx(float((memory.share + memory.sinks).sum()), rel=1e-4)
    parts = found.layers[1].fusion.mean(1)
    assert parts.sum() == pytest.approx(1)
    for part, each in zip(parts[1:], (memory.share, memory.sinks, memory.null), strict=True):
        assert part == pytest.approx(float(each.mean()), rel=1e-5) and part > 0
    pushed = int(state.layers[1].memory.pushed.sum())
    assert round(float(np.nansum(memory.openness[:11])) * config.segment_len * 2) == pushed
    assert memory.evicted_ages.sum() == (memory.evicted >= 0).sum() > 0


def slots_times_values(block: Any, probe: Probe, layer: int) -> Tensor:
    """The read (T, H, D) as the view's attention weights times the values of the bank."""
    view = probe.views()[layer].memory
    assert view is not None
    _, value, _ = block.memory.keys(probe._caught[layer].before.memory.bank())
    weight = view.banks[0].slot_THM
    if block.config.null_slot:
        weight = torch.cat([view.null_TH[..., None], weight], dim=2)
        if block.config.memory_read == "stick_breaking":
            # What no slot took has a value, but no key beside theirs.
            value = torch.cat([block.memory.null_value[None, None, None], value], dim=2)
    value = value[0, 0].repeat_interleave(block.config.n_heads // block.config.n_kv_heads, 1)
    return torch.einsum("thj,jhd->thd", weight, value)


@pytest.mark.parametrize("case", [case for case in WITH_MEMORY if case in OWN])
def test_entries_are_the_slots_of_the_state(case: str) -> None:
    model = make_model(case)
    segment, n_slots = model.config.segment_len, model.config.n_slots
    ids = random_document(model, 9 * segment + 1)
    found = trace(model, [ids])
    with torch.no_grad():
        _, state = model(torch.from_numpy(ids)[None])
    for k, layer in enumerate(found.layers):
        if layer.memory is None:
            assert not model.config.of_layer(k).has_memory
            continue
        memory = layer.memory
        held = memory.evicted < 0
        assert memory.source[held].tolist() == bank_positions(state, k, segment)[0]
        if model.config.eviction == "weakest":
            assert n_slots < memory.n_entries <= int(state.layers[k].memory.pushed)
            if not (model.config.fade or model.config.newest_share):
                assert memory.gate[held].mean() > memory.gate[~held].mean()
        else:
            assert memory.n_entries == int(state.layers[k].memory.pushed)
            # First in, first out: an entry leaves when the M-th after it enters.
            leaves = np.append(memory.entered[n_slots:], np.full(n_slots, -1))[: memory.n_entries]
            assert memory.evicted.tolist() == leaves.tolist()
        assert memory.evicted_ages.sum() == (~held).sum()
        per_segment = memory.openness[~np.isnan(memory.openness)] * segment
        assert round(float(per_segment.sum())) == memory.n_entries


def test_only_the_best_tokens_with_a_score_above_zero_enter() -> None:
    model = make_model("recommended")
    segment, writes = model.config.segment_len, model.config.writes_per_segment
    found = trace(model, [random_document(model, 12 * segment)])
    refused = 0
    for layer in found.layers:
        assert layer.memory is not None
        for start in range(0, 12 * segment, segment):
            score = layer.memory.write[start : start + segment]
            best = sorted(np.argsort(-score, kind="stable")[:writes] + start)
            entered = [t for t in layer.memory.source.tolist() if start <= t < start + segment]
            assert entered == [t for t in best if score[t - start] > 0]
            refused += writes - len(entered)
    assert refused


def test_reads_of_a_token() -> None:
    """Kept slots are the greatest of the mean over heads, and never newer than the segment."""
    model = make_model("recommended")
    segment = model.config.segment_len
    ids = random_document(model, 5 * segment)
    memory = trace(model, [ids]).layers[1].memory
    assert memory is not None
    state = None
    with torch.no_grad(), Probe(model) as probe:
        for start in range(0, len(ids), segment):
            before = int(state.layers[1].memory.pushed) if state is not None else 0
            _, state = model(torch.from_numpy(ids[start : start + segment])[None], state)
            view = probe.views()[1].memory
            assert view is not None
            (bank,) = view.banks
            low = before - bank.filled
            mean = bank.slot_THM[..., model.config.n_slots - bank.filled :].mean(1)
            for t in range(segment):
                kept = memory.read_entry[start + t]
                kept = kept[kept >= 0]
                wanted = [
                    low + j for j in mean[t].argsort(descending=True)[:5].tolist() if mean[t, j] >= 0.002
                ]
                assert kept.tolist() == wanted
                assert (memory.source[kept] < start).all()
                np.testing.assert_allclose(
                    memory.read_weight[start + t, : len(kept)], mean[t, kept - low], rtol=1e-5
                )
    shares = memory.share[segment:]
    assert (shares > 0).all() and memory.read_ages.sum() == pytest.approx(1)


def test_sums_over_the_text() -> None:
    """What all tokens gave is what all entries got."""
    model = make_model("xl")
    found = trace(model, [random_document(model, 40), random_document(model, 25, seed=1)])
    for layer in found.layers:
        memory = layer.memory
        assert memory is not None
        given = 1 - memory.null
        empty = np.concatenate([np.arange(40) < 6, np.arange(25) < 6])
        assert memory.total_read.sum() == pytest.approx(float(given[~empty].sum()), rel=1e-4)
        assert (memory.null[empty] == 1).all() and (memory.share[empty] == 0).all()
        assert (memory.most_read <= memory.total_read + 1e-6).all()


def losses(model: LanguageModel, ids: np.ndarray, memory: Any) -> np.ndarray:
    tokens = torch.from_numpy(ids)[None]
    with torch.no_grad():
        logits, _ = model(tokens, memory=memory)
    nats = F.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none")
    return np.append(nats.numpy() / math.log(2), np.nan)


@pytest.mark.parametrize("case", ["recommended", "paper", "full"])
def test_bits_are_those_of_the_model(case: str) -> None:
    model = make_model(case)
    ids = random_document(model, 33)
    found = trace(model, [ids])
    np.testing.assert_allclose(found.bits, losses(model, ids, "on"), rtol=1e-5)
    if model.config.has_memory:
        assert found.bits_zeroed is not None
        np.testing.assert_allclose(found.bits_zeroed, losses(model, ids, "zeroed"), rtol=1e-5)
        assert not np.allclose(found.bits, found.bits_zeroed, equal_nan=True)
    else:
        assert found.bits_zeroed is None and all(layer.memory is None for layer in found.layers)


def test_targets_of_a_task_need_not_be_the_next_tokens() -> None:
    model = make_model("recommended")
    ids = random_document(model, 20)
    targets = np.full(20, -100)
    targets[[4, 13]] = [7, 8]
    found = trace(model, [ids], [targets])
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(ids)[None])
    bits = -logits[0].log_softmax(1) / math.log(2)
    assert np.flatnonzero(~np.isnan(found.bits)).tolist() == [4, 13]
    assert found.bits[4] == pytest.approx(float(bits[4, 7]), rel=1e-5)
    assert found.bits[13] == pytest.approx(float(bits[13, 8]), rel=1e-5)


def test_a_document_knows_nothing_of_the_one_before() -> None:
    model = make_model("recommended")
    first, second = random_document(model, 31), random_document(model, 28, seed=1)
    both, alone = trace(model, [first, second]), trace(model, [second])
    np.testing.assert_array_equal(both.bits[31:], alone.bits)
    for together, single in zip(both.layers, alone.layers, strict=True):
        assert together.memory is not None and single.memory is not None
        before = together.memory.n_entries - single.memory.n_entries
        assert (together.memory.source[before:] - 31).tolist() == single.memory.source.tolist()
        entries = together.memory.read_entry[31:]
        assert (entries[entries >= 0] >= before).all()
        np.testing.assert_array_equal(np.where(entries < 0, -1, entries - before), single.memory.read_entry)


def test_the_gate_of_the_paper() -> None:
    """z is told for every token of a segment that closed: the mean over candidates and width."""
    model = make_model("paper")
    segment = model.config.segment_len
    ids = random_document(model, 2 * segment + 3)
    memory = trace(model, [ids]).layers[0].memory
    assert memory is not None
    caught: list[Tensor] = []
    model.blocks[0].register_forward_hook(lambda _, __, out: caught.append(out[0][0]))
    with torch.no_grad():
        model(torch.from_numpy(ids)[None])
        gate, m = model.blocks[0].memory.gate, torch.zeros(model.config.d_model, dtype=torch.float64)
        for n in range(2):
            h = caught[n].mean(0)
            z = torch.sigmoid(gate.candidate(h) + gate.recurrent(m))
            np.testing.assert_allclose(
                memory.write[n * segment : (n + 1) * segment], float(z.mean()), rtol=1e-5
            )
            m = z * h + (1 - z) * m
    assert np.isnan(memory.write[2 * segment :]).all()
    assert memory.source.tolist() == [segment - 1, 2 * segment - 1]


def test_the_model_is_left_as_it_was() -> None:
    model = make_model("recommended").train()
    steps: list[int] = []
    found: Trace = trace(model, [random_document(model, 20)], None, steps.append)
    assert model.training and not any(block._forward_hooks for block in model.blocks)
    assert sum(steps) == 40 and len(found.segments) == 4
