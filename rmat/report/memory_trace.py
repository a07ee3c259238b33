"""One layer's memory over a text: what every token read, and the life of every vector that entered the bank.

These vectors are the entries, numbered in order through all documents: a bank is the newest M of its document.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmat.model import ModelConfig
from rmat.report.probe import LayerView, MemoryView

TOP = 5
"""Slots that are kept of a token's read."""

READ = 0.01
"""An entry that no token gave more than this share of its attention counts as never read."""

LEAST_WEIGHT = 0.002
"""Slots read with less than this are not kept."""

AGE_BUCKETS = 32
"""Ages in tokens fall into buckets 1, 2-3, 4-7, ... of doubling width."""

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(kw_only=True)
class MemoryTrace:
    """One layer's memory over all tokens N; E entries."""

    share: Floats
    """(N,) share of the mixed streams that came from filled slots, mean over heads."""
    null: Floats
    """(N,) attention of the read that went to the null slot, mean over heads."""
    write: Floats
    """(N,) write score, or mean of the GRU gate; NaN where nothing was offered."""
    read_entry: Integers
    """(N, TOP) entries that a token read most; -1 where there are no more."""
    read_weight: Floats
    """(N, TOP) attention that they got, mean over heads."""
    read_head: Integers
    """(N, TOP) head that gave the entry most."""
    source: Integers
    """(E,) last token that an entry stands for."""
    entered: Integers
    """(E,) first token whose segment could read it."""
    evicted: Integers
    """(E,) first token whose segment could no longer read it; -1 if the document ended before."""
    gate: Floats
    """(E,) gate with which it was written; NaN without a score."""
    most_read: Floats
    """(E,) the most attention that a token gave it."""
    total_read: Floats
    """(E,) attention that all tokens gave it."""
    openness: Floats
    """(segments,) entries over tokens; NaN for a segment that was never complete."""
    null_of_head: Floats
    """(H,) mean attention to the null slot."""
    held_ages: Floats
    """(AGE_BUCKETS,) filled slots found by a segment, mean over segments, by age at its start."""
    read_ages: Floats
    """(AGE_BUCKETS,) attention of all tokens by the age of what they read, divided by its sum."""
    evicted_ages: Integers
    """(AGE_BUCKETS,) entries by their age when they were evicted."""
    n_entries: int = 0

    @staticmethod
    def blank(config: ModelConfig, n_tokens: int, n_segments: int) -> MemoryTrace:
        """Nothing read yet."""
        room = n_segments * config.writes_per_segment

        def floats(*shape: int, value: float = 0.0) -> Floats:
            return np.full(shape, value, dtype=np.float32)

        def integers(*shape: int) -> Integers:
            return np.full(shape, -1, dtype=np.int64)

        return MemoryTrace(
            share=floats(n_tokens),
            null=floats(n_tokens),
            write=floats(n_tokens, value=math.nan),
            read_entry=integers(n_tokens, TOP),
            read_weight=floats(n_tokens, TOP),
            read_head=integers(n_tokens, TOP),
            source=integers(room),
            entered=integers(room),
            evicted=integers(room),
            gate=floats(room, value=math.nan),
            most_read=floats(room),
            total_read=floats(room),
            openness=floats(n_segments, value=math.nan),
            null_of_head=floats(config.n_heads),
            held_ages=floats(AGE_BUCKETS),
            read_ages=floats(AGE_BUCKETS),
            evicted_ages=np.zeros(AGE_BUCKETS, dtype=np.int64),
        )

    def finish(self, n_tokens: int, n_segments: int) -> None:
        """Cut to the entries there are; sums become means."""
        for name in ("source", "entered", "evicted", "gate", "most_read", "total_read"):
            setattr(self, name, getattr(self, name)[: self.n_entries])
        self.null_of_head /= n_tokens
        self.held_ages /= n_segments
        self.read_ages /= max(float(self.read_ages.sum()), 1e-9)

    def note(
        self, config: ModelConfig, layer: LayerView, *, first_entry: int, start: int, stop: int, segment: int
    ) -> None:
        """Add what one segment, tokens `start` to `stop`, read and wrote; the document's entries begin at `first_entry`."""
        view = layer.memory
        assert view is not None
        here = slice(start, stop)
        self.share[here] = as_numpy((layer.weight_TH("memory") * view.slot_THM.sum(2)).mean(1))
        self.null[here] = as_numpy(view.null_TH.mean(1))
        self.null_of_head += as_numpy(view.null_TH.sum(0))
        high = self.n_entries
        low = high - view.filled
        assert low >= first_entry
        if view.filled:
            self._note_reads(view.slot_THM[..., config.n_slots - view.filled :], low, start)
        if view.write_T is not None:
            self.write[here] = as_numpy(view.write_T)
        elif view.update is not None:
            self.write[here] = view.update
        if stop - start == config.segment_len:
            self.openness[segment] = view.entered / config.segment_len
        self._note_writes(config, view, first_entry, low, stop)

    def _note_reads(self, slot_THF: Tensor, low: int, start: int) -> None:
        """What the tokens from `start` gave to the F entries from `low`."""
        weight_TF, head_TF = slot_THF.mean(1), slot_THF.argmax(1)
        n_tokens, n_filled = weight_TF.shape
        top_TK, at_TK = weight_TF.topk(min(TOP, n_filled), dim=1)
        kept_TK = top_TK >= LEAST_WEIGHT
        rows, columns = slice(start, start + n_tokens), slice(0, top_TK.shape[1])
        self.read_entry[rows, columns] = as_numpy(torch.where(kept_TK, at_TK + low, -1))
        self.read_weight[rows, columns] = as_numpy(torch.where(kept_TK, top_TK, 0.0))
        self.read_head[rows, columns] = as_numpy(torch.where(kept_TK, head_TF.gather(1, at_TK), -1))
        entries, weights = slice(low, low + n_filled), as_numpy(weight_TF)
        self.most_read[entries] = np.maximum(self.most_read[entries], weights.max(0))
        self.total_read[entries] += weights.sum(0)
        source = self.source[entries]
        self.held_ages += np.bincount(_bucket(start - source), minlength=AGE_BUCKETS)
        ages = np.arange(start, start + n_tokens)[:, None] - source
        self.read_ages += np.bincount(_bucket(ages).ravel(), weights.ravel(), minlength=AGE_BUCKETS)

    def _note_writes(
        self, config: ModelConfig, view: MemoryView, first_entry: int, low: int, stop: int
    ) -> None:
        """Number what entered and mark what it pushed out; `low` is the oldest entry that the segment could read."""
        if not view.entered:
            return
        new = slice(self.n_entries, self.n_entries + view.entered)
        self.source[new] = stop - as_numpy(view.age_M[config.n_slots - view.entered :])
        self.entered[new] = stop
        if view.gate_W is not None:
            self.gate[new] = as_numpy(view.gate_W)
        self.n_entries += view.entered
        kept = max(first_entry, self.n_entries - config.n_slots)
        self.evicted[low:kept] = stop
        self.evicted_ages += np.bincount(_bucket(stop - self.source[low:kept]), minlength=AGE_BUCKETS)
        filled = self.n_entries - kept
        in_bank = stop - as_numpy(view.age_M[config.n_slots - filled :])
        assert np.array_equal(self.source[kept : self.n_entries], in_bank), "the bank is first in, first out"


def _bucket(age: Integers) -> Integers:
    return np.log2(np.maximum(age, 1)).astype(np.int64).clip(max=AGE_BUCKETS - 1)


def as_numpy(x: Tensor) -> NDArray[np.float64 | np.int64]:
    """Numbers of a tensor on the CPU: float64 or int64."""
    return (x.double() if x.is_floating_point() else x).cpu().numpy()
