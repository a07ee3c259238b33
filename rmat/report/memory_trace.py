"""One layer's memory over a text: what every token read, and the life of every vector that entered the bank.

These vectors are the entries, numbered in order through all documents; a bank holds some of its document's.
Sinks are entries too, of no bank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmat.model import ModelConfig
from rmat.report.probe import BankView, LayerView

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
    """(N,) attention that went to the null slot, mean over heads: of the read, or of all where slots
    keep local keys."""
    sinks: Floats
    """(N,) attention that went to sinks, mean over heads."""
    write: Floats
    """(N,) write score, (N, K) by key head, or mean of the GRU gate; NaN where nothing was offered."""
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
    key_head: Integers
    """(E,) key head whose bank it entered; -1 where key heads keep the same."""
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
    found: list[Integers] = field(default_factory=list)
    """Entries that a segment finds, oldest first: the sinks, then those of every bank."""

    @staticmethod
    def blank(config: ModelConfig, n_tokens: int, n_segments: int) -> MemoryTrace:
        """Nothing read yet."""
        room = n_segments * (config.writes_per_segment * config.slot_groups + config.n_sinks)
        scores = (config.n_kv_heads,) if config.slots_per == "key_head" else ()

        def floats(*shape: int, value: float = 0.0) -> Floats:
            return np.full(shape, value, dtype=np.float32)

        def integers(*shape: int) -> Integers:
            return np.full(shape, -1, dtype=np.int64)

        return MemoryTrace(
            share=floats(n_tokens),
            null=floats(n_tokens),
            sinks=floats(n_tokens),
            write=floats(n_tokens, *scores, value=math.nan),
            read_entry=integers(n_tokens, TOP),
            read_weight=floats(n_tokens, TOP),
            read_head=integers(n_tokens, TOP),
            source=integers(room),
            entered=integers(room),
            evicted=integers(room),
            key_head=integers(room),
            gate=floats(room, value=math.nan),
            most_read=floats(room),
            total_read=floats(room),
            openness=floats(n_segments, value=math.nan),
            null_of_head=floats(config.n_heads),
            held_ages=floats(AGE_BUCKETS),
            read_ages=floats(AGE_BUCKETS),
            evicted_ages=np.zeros(AGE_BUCKETS, dtype=np.int64),
            found=[np.zeros(0, dtype=np.int64)] * (1 + config.slot_groups),
        )

    def finish(self, n_tokens: int, n_segments: int) -> None:
        """Cut to the entries there are; sums become means."""
        for name in ("source", "entered", "evicted", "key_head", "gate", "most_read", "total_read"):
            setattr(self, name, getattr(self, name)[: self.n_entries])
        self.null_of_head /= n_tokens
        self.held_ages /= n_segments
        self.read_ages /= max(float(self.read_ages.sum()), 1e-9)

    def note(self, config: ModelConfig, layer: LayerView, *, start: int, stop: int, segment: int) -> None:
        """Add what one segment, tokens `start` to `stop`, read and wrote."""
        view = layer.memory
        assert view is not None
        here = slice(start, stop)
        self.share[here] = as_numpy(view.share_TH.mean(1))
        self.null[here] = as_numpy(view.null_TH.mean(1))
        self.sinks[here] = as_numpy(view.sink_THJ.sum(2).mean(1))
        self.null_of_head += as_numpy(view.null_TH.sum(0))
        # An empty bank: nothing written yet, or another document.
        n_found = [len(view.sink_age_J), *(bank.filled for bank in view.banks)]
        self.found = [entries[:n] for entries, n in zip(self.found, n_found, strict=True)]
        fresh = start - view.sink_age_J[len(self.found[0]) :].cpu().numpy()
        self.found[0] = np.append(self.found[0], self._enter(fresh, start))
        if any(n_found):
            filled = (bank.slot_THM[..., config.n_slots - bank.filled :] for bank in view.banks)
            self._note_reads(torch.cat([view.sink_THJ, *filled], dim=2), start)
        if view.write is not None:
            self.write[here] = as_numpy(view.write)
        elif view.update is not None:
            self.write[here] = view.update
        if stop - start == config.segment_len:
            n_entered = sum(bank.entered for bank in view.banks)
            self.openness[segment] = n_entered / (config.segment_len * len(view.banks))
        for k, bank in enumerate(view.banks):
            if bank.entered:
                self._note_writes(config, bank, k, stop)

    def _note_reads(self, slot_THF: Tensor, start: int) -> None:
        """What the tokens from `start` gave to the F entries that they found."""
        found = np.concatenate(self.found)
        weight_TF, head_TF = slot_THF.mean(1), slot_THF.argmax(1)
        n_tokens, n_filled = weight_TF.shape
        top_TK, at_TK = weight_TF.topk(min(TOP, n_filled), dim=1)
        kept_TK = as_numpy(top_TK) >= LEAST_WEIGHT
        rows, columns = slice(start, start + n_tokens), slice(0, top_TK.shape[1])
        self.read_entry[rows, columns] = np.where(kept_TK, found[as_numpy(at_TK)], -1)
        self.read_weight[rows, columns] = np.where(kept_TK, as_numpy(top_TK), 0.0)
        self.read_head[rows, columns] = np.where(kept_TK, as_numpy(head_TF.gather(1, at_TK)), -1)
        weights = as_numpy(weight_TF)
        self.most_read[found] = np.maximum(self.most_read[found], weights.max(0))
        self.total_read[found] += weights.sum(0)
        n_sinks = len(self.found[0])
        source, weights = self.source[found[n_sinks:]], weights[:, n_sinks:]
        self.held_ages += np.bincount(_bucket(start - source), minlength=AGE_BUCKETS)
        ages = np.arange(start, start + n_tokens)[:, None] - source
        self.read_ages += np.bincount(_bucket(ages).ravel(), weights.ravel(), minlength=AGE_BUCKETS)

    def _note_writes(self, config: ModelConfig, view: BankView, bank: int, stop: int) -> None:
        """Number what entered a bank and mark what it pushed out."""
        entries = self.found[1 + bank]
        source = stop - view.age_M[config.n_slots - view.held :].cpu().numpy()
        gate = np.full(view.held, math.nan, dtype=np.float32)
        if view.gate_M is not None:
            gate[:] = as_numpy(view.gate_M[config.n_slots - view.held :])
        old = view.held - view.entered
        kept = self._still_held(entries, source[:old], gate[:old])
        left = entries[~kept]
        self.evicted[left] = stop
        self.evicted_ages += np.bincount(_bucket(stop - self.source[left]), minlength=AGE_BUCKETS)
        new = self._enter(source[old:], stop)
        self.gate[new], self.key_head[new] = gate[old:], bank if config.slots_per == "key_head" else -1
        self.found[1 + bank] = np.concatenate([entries[kept], new])

    def _enter(self, source: Integers, entered: int) -> Integers:
        """New entries."""
        new = np.arange(self.n_entries, self.n_entries + len(source))
        self.source[new], self.entered[new] = source, entered
        self.n_entries += len(new)
        return new

    def _still_held(self, entries: Integers, source: Integers, gate: Floats) -> NDArray[np.bool_]:
        """Which entries of a bank are the slots with these sources and gates; both stand oldest first."""
        held_E2 = np.stack([self.source[entries], np.nan_to_num(self.gate[entries])], axis=1)
        slots_F2 = np.stack([source, np.nan_to_num(gate)], axis=1)
        kept = np.zeros(len(entries), dtype=np.bool_)
        places = iter(range(len(entries) - 1, -1, -1))
        for slot in slots_F2[::-1]:  # from the newest: of two that look alike the older one was evicted
            kept[next(place for place in places if (held_E2[place] == slot).all())] = True
        return kept


def _bucket(age: Integers) -> Integers:
    return np.log2(np.maximum(age, 1)).astype(np.int64).clip(max=AGE_BUCKETS - 1)


def as_numpy(x: Tensor) -> NDArray[np.float64 | np.int64]:
    """Numbers of a tensor on the CPU: float64 or int64."""
    return (x.double() if x.is_floating_point() else x).cpu().numpy()
