"""Random points of the space of axes, beside the cases that `makers.py` names."""

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest

from tests.makers.models import Overrides


def sampled_cases(count: int, seed: int = 0) -> dict[str, Overrides]:
    """`count` random points of the space of axes, the same for the same seed."""
    rng, other = random.Random(seed), random.Random(seed + 1)
    streams = [s for n in (1, 2, 3) for s in itertools.combinations(("full", "chunked", "memory"), n)]
    cases: dict[str, Overrides] = {}
    for number in range(count):
        segment_len, chunk_len = rng.choice([(6, 3), (6, 2), (8, 4), (9, 3), (4, 2)])
        writer = rng.choice(["mean", "pool", "select", "all"])
        heads, kv_heads = rng.choice([(4, 4), (4, 2), (2, 1), (3, 3), (6, 2)])
        chosen = rng.choice(streams[2:])
        projections = rng.choice(["separate", "shared"])
        fusions = ["scalar", "head", "token", "joint"]
        if projections == "separate" and {"full", "chunked"} <= set(chosen):
            fusions.remove("joint")  # one softmax needs one query
        fusion = rng.choice(fusions)
        reads = ("softmax", "softmax" if fusion == "joint" else "stick_breaking")
        cases[f"sample{number}"] = {
            "streams": chosen,
            "segment_len": segment_len,
            "chunk_len": chunk_len,
            "chunk_lookback": rng.choice([0, 1]),
            "projections": projections,
            "n_heads": heads,
            "n_kv_heads": kv_heads,
            "writer": writer,
            "n_slots": rng.choice([segment_len, segment_len + 3, 2 * segment_len + 1]),
            "gate": rng.choice(["none", "gru", "push", "both"]),
            "gate_gradient": rng.choice(["logit", "value"]),
            "memory_layers": rng.choice([None, (0,), (1,)]) if chosen != ("memory",) else None,
            "write_from": rng.choice(["input", "input", "output"]),
            "memory_position": rng.choice(["none", "rank", "age"]),
            "memory_read": rng.choice(reads),
            "null_slot": rng.choice([True, False]),
            "fusion": fusion,
            "norm": rng.choice(["layernorm", "rmsnorm"]),
            "mlp": rng.choice(["gelu", "swiglu"]),
            "conv_width": rng.choice([0, 2, 3, 5]),
            "tie_embeddings": rng.choice([True, False]),
            "rope_theta": rng.choice([100.0, 10000.0]),
        }
        evictions = ["oldest", "weakest"]
        scored = writer == "select" or cases[f"sample{number}"]["gate"] in ("push", "both")
        cases[f"sample{number}"]["eviction"] = rng.choice(evictions if scored else evictions[:1])
        if chosen != ("memory",) and "memory" in chosen and other.random() < 0.4:
            cases[f"sample{number}"] |= of_local_keys(cases[f"sample{number}"], other)
        if cases[f"sample{number}"]["eviction"] == "weakest":
            cases[f"sample{number}"]["fade"] = rng.choice([0.0, 5.0, 40.0])
            cases[f"sample{number}"]["newest_share"] = other.choice([0.0, 0.3, 0.6])
    return cases


def of_local_keys(case: Overrides, rng: random.Random) -> dict[str, object]:
    """What makes a case one whose slots keep the keys of local attention."""
    writer = rng.choice(["select", "all"])
    gate = rng.choice(["none", "push"])
    scored = writer == "select" or gate == "push"
    streams, chunk_len, lookback = case["streams"], case["chunk_len"], case["chunk_lookback"]
    when = rng.choice(["closed", "unseen"])
    if when == "unseen" and {"full", "chunked"} <= set(streams):
        lookback = 0
    elif when == "unseen":
        chunk_len = case["segment_len"]
    return {
        "memory_projections": "local",
        "memory_position": rng.choice(["none", "rotary", "rotary"]),
        "memory_read": "softmax",
        "fusion": "joint",
        "projections": "shared",
        "write_from": "input",
        "write_when": when,
        "chunk_len": chunk_len,
        "chunk_lookback": lookback,
        "slots_per": rng.choice(["layer", "key_head"]),
        "n_sinks": rng.choice([0, 1, 3]),
        "writer": writer,
        "gate": gate,
        "eviction": rng.choice(["oldest", "weakest"]) if scored else "oldest",
    }


def quick(values: Iterable[Any], count: int) -> list[Any]:
    """Values for `parametrize`: the first `count` are always run, the others by `make slow`."""
    first, others = [*values][:count], [*values][count:]
    return [*first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]
