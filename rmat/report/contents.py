"""All that a report tells, as one tree of values that JSON can hold (arrays as `Series`). docs/report.md
lists the keys."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rmat.accounting import account
from rmat.data.corpus import Reading
from rmat.data.lanes import IGNORED
from rmat.model import LanguageModel, ModelConfig
from rmat.report.memory_trace import READ, MemoryTrace
from rmat.report.series import Series
from rmat.report.trace import LayerTrace, Trace

FORMAT, FORMAT_VERSION = "rmat-report", 1

FIRST_BUCKET = 256
"""Width of the first bucket of positions, in bytes or tokens; each further one ends at twice the position the
one before it ends at."""

_SHARE, _WEIGHT, _BITS = 0.004, 0.001, 0.01
"""Steps in which shares, attention to single slots, and bits are told."""


class TextOfTokens(Protocol):
    """The part of a tokenizer that is needed here."""

    def byte_counts(self, ids: NDArray[Any], /) -> NDArray[np.int64]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...

    @property
    def special_names(self) -> dict[int, str]: ...


def contents(
    model: LanguageModel,
    tokenizer: TextOfTokens,
    found: Trace,
    *,
    reading: Reading,
    model_name: str,
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The report's data.

    Args:
        found: what `trace` found in the documents of `reading`.
        model_name: where the model lies.
        training: what `training_contents` made of a run.
    """
    widths = tokenizer.byte_counts(found.tokens)
    asked = found.targets != IGNORED
    is_task = reading.targets is not None
    units = asked.astype(np.int64) if is_task else np.where(asked, np.append(widths[1:], 0), 0)
    specials = {token: name.strip("<|>") for token, name in tokenizer.special_names.items()}
    at_special = np.flatnonzero(np.isin(found.tokens, list(specials)))
    lengths = np.diff([*found.starts, len(found.tokens)])
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": _model(model.config, model_name),
        "training": training,
        "text": {
            "name": reading.name,
            "unit": "answer token" if is_task else "byte",
            "documents": [
                {"name": name, "start": start, "tokens": int(length)}
                for name, start, length in zip(reading.names, found.starts, lengths, strict=True)
            ],
            "tokens": texts(tokenizer, found.tokens.tolist()),
            "specials": {str(at): specials[int(found.tokens[at])] for at in at_special},
            "answers": {
                str(at): tokenizer.decode([int(found.targets[at])])
                for at in (np.flatnonzero(asked) if is_task else ())
            },
            "bits": Series(found.bits, _BITS),
            "bits_zeroed": None if found.bits_zeroed is None else Series(found.bits_zeroed, _BITS),
        },
        "segments": Series(np.array(found.segments, dtype=np.int64)),
        "positions": _positions(found, units, np.ones_like(widths) if is_task else widths, lengths),
        "total": {
            "tokens": len(found.tokens),
            "bytes": int(widths.sum()),
            **_bits(found, units, np.ones(len(units), dtype=np.bool_)),
        },
        "layers": [_layer(model.config, layer, found) for layer in found.layers],
    }


def texts(tokenizer: TextOfTokens, ids: Sequence[int]) -> list[str]:
    """The text of every token; a character whose bytes are spread over tokens belongs to the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(tokenizer.decode_bytes([token])) for token in ids]


def training_contents(
    config: dict[str, Any], data: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What a run's files config.json, data.json and metrics.jsonl tell about its training."""
    splits = {name: data[name] for name in ("train", "valid", "test") if name in data}
    train = ("step", "tokens", "loss", "bits_per_byte", "openness")
    return {
        "preset": config.get("preset"),
        "variant": config.get("variant"),
        "data": config.get("data", {}).get("specs", []),
        "splits": {
            name: {key: split.get(key) for key in ("documents", "tokens", "bytes")}
            for name, split in splits.items()
        },
        "train": [{key: row.get(key) for key in train} for row in rows if row.get("kind") == "train"],
        "eval": [
            {key: value for key, value in row.items() if _is_finite(value)}
            for row in rows
            if row.get("kind") == "eval"
        ],
    }


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _model(config: ModelConfig, name: str) -> dict[str, Any]:
    costs = account(config)
    lag = {"write_lag": config.write_lag} if config.memory_projections == "local" else {}
    return {
        **lag,
        "name": name,
        "config": config.to_dict(),
        "parameters": costs.parameters,
        "state_bytes": costs.state_bytes,
        "horizon": costs.horizon,
        "fusion_is_measured": config.fusion in ("token", "joint"),
        "write": _write_kind(config),
        "entry_tokens": config.segment_len if config.writer in ("mean", "pool") else 1,
        "read_threshold": READ,
    }


def _write_kind(config: ModelConfig) -> str | None:
    """What `layers.write` holds: the score of a token, of a segment, the mean of the GRU gate, or nothing."""
    if config.scores_writes:
        return "token_score" if config.writer in ("select", "all") else "segment_score"
    return "gru_gate" if config.recurrent_gate else None


def _layer(config: ModelConfig, layer: LayerTrace, found: Trace) -> dict[str, Any]:
    return {
        "streams": list(layer.streams),
        "fusion": np.round(layer.fusion.T, 4).tolist(),
        "memory": None if layer.memory is None else _memory(config, layer.memory, found),
    }


def _memory(config: ModelConfig, memory: MemoryTrace, found: Trace) -> dict[str, Any]:
    of_head = config.slots_per == "key_head"
    ends = np.append(found.starts[1:], len(found.tokens))
    document = np.searchsorted(found.starts, memory.source, side="right") - 1
    written = memory.source - np.array(found.starts)[document] >= config.n_sinks  # the others are sinks
    readable = written & (memory.entered < ends[document])
    dead = readable & (memory.most_read.round(3) <= READ)  # as the page sees it
    shown = np.flatnonzero(memory.held_ages + memory.read_ages + memory.evicted_ages)
    buckets = range(int(shown.min()), int(shown.max()) + 1) if len(shown) else range(0)
    return {
        "share": Series(memory.share, _SHARE),
        "null": Series(memory.null, _SHARE) if config.null_slot else None,
        "null_of_head": np.round(memory.null_of_head, 4).tolist() if config.null_slot else None,
        **({"sinks": Series(memory.sinks, _SHARE)} if config.n_sinks else {}),
        "write": Series(memory.write, 0.004 if _write_kind(config) == "gru_gate" else _BITS),
        "reads": {
            "entry": Series(memory.read_entry, index=True),
            "weight": Series(memory.read_weight, _WEIGHT),
            "head": Series(memory.read_head, index=True) if config.n_heads > 1 else None,
        },
        "entries": {
            "source": Series(memory.source),
            "entered": Series(memory.entered),
            "evicted": Series(memory.evicted, index=True),
            **({"key_head": Series(memory.key_head, index=True)} if of_head else {}),
            "gate": Series(memory.gate, _SHARE) if config.scores_writes else None,
            "most_read": Series(memory.most_read, _WEIGHT),
            "total_read": Series(memory.total_read, _BITS),
        },
        "openness": Series(memory.openness, 0.001),
        "ages": [
            {
                "from": 2**k,
                "to": 2 ** (k + 1),
                "held": round(float(memory.held_ages[k]), 3),
                "read": round(float(memory.read_ages[k]), 5),
                "evicted": int(memory.evicted_ages[k]),
            }
            for k in buckets
        ],
        "written": int(written.sum()),
        "evicted": int((memory.evicted >= 0).sum()),
        "readable": int(readable.sum()),
        "dead": int(dead.sum()),
    }


def _positions(
    found: Trace, units: NDArray[np.int64], widths: NDArray[np.int64], lengths: NDArray[np.int64]
) -> list[dict[str, float | int | None]]:
    """Bits by the position in the document, counted in `widths`, at which what is foretold begins: in buckets
    of doubling end."""
    ends = np.cumsum(widths)
    at = ends - np.repeat((ends - widths)[found.starts], lengths)
    bucket = np.ceil(np.log2(np.maximum(at + 1, FIRST_BUCKET) / FIRST_BUCKET)).astype(int)
    told = [
        {
            "from": FIRST_BUCKET * 2 ** (k - 1) if k else 0,
            "to": FIRST_BUCKET * 2**k,
            **_bits(found, units, bucket == k),
        }
        for k in range(int(bucket.max()) + 1)
    ]
    return [one for one in told if one["units"]]


def _bits(found: Trace, units: NDArray[np.int64], inside: NDArray[np.bool_]) -> dict[str, float | int | None]:
    """Bits over units (bytes of text, or answer tokens) with the memory on and zeroed; None where there are
    none."""

    def ratio(bits: NDArray[np.float32] | None) -> float | None:
        size = int(units[inside].sum())
        return (
            None
            if bits is None or not size
            else round(float(np.nansum(bits[inside], dtype=np.float64)) / size, 5)
        )

    return {
        "units": int(units[inside].sum()),
        "bits": ratio(found.bits),
        "bits_zeroed": ratio(found.bits_zeroed),
    }
