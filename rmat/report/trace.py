"""A text read through a model's memory: what was written, what was read, what it cost, token by token.

Documents are read one after the other, each from an empty state and segment by segment through the carried
state; a second reading finds every bank empty. Tokens are counted through all documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from rmat.data.lanes import IGNORED
from rmat.evaluation.perplexity import token_nats
from rmat.generation.reader import Piece, scan
from rmat.model import LanguageModel
from rmat.model.language_model import MemoryMode
from rmat.report.memory_trace import Floats, Integers, MemoryTrace, as_numpy
from rmat.report.probe import Probe, stream_names

_PLAIN_WINDOW = 1024


@dataclass(kw_only=True)
class LayerTrace:
    """One layer over all tokens."""

    streams: tuple[str, ...]
    """Names of the A streams."""
    fusion: NDArray[np.float64]
    """(A, H) mean weight of each stream."""
    memory: MemoryTrace | None


@dataclass(kw_only=True)
class Trace:
    """A text of N tokens as a model read it."""

    starts: list[int]
    """First token of each document."""
    tokens: Integers
    """(N,) ids."""
    targets: Integers
    """(N,) what should follow each token: the next one, or what a task asks for; -100 for nothing."""
    bits: Floats
    """(N,) bits that it cost to be told so, -log2 of its probability; NaN for nothing."""
    bits_zeroed: Floats | None
    """(N,) the same with every read finding the bank empty; None without a memory."""
    segments: list[int] = field(default_factory=list)
    """First token of each segment."""
    layers: list[LayerTrace] = field(default_factory=list)


def trace(
    model: LanguageModel,
    documents: Sequence[Integers],
    targets: Sequence[Integers] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Trace:
    """Read documents (one or more int64 ids each) and tell what the memory did.

    Args:
        model: stays on its device; its training mode is restored.
        documents: the ids, the document token first.
        targets: what should follow each token, -100 for nothing; None: the next token.
        advance: told of the number of tokens read; all of them are read twice in a model with memory.
    """
    config, ids = model.config, np.concatenate(documents)
    if targets is None:
        targets = [np.append(document[1:], IGNORED) for document in documents]
    wanted = np.concatenate(targets)
    lengths = [len(document) for document in documents]
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    found = Trace(starts=starts, tokens=ids, targets=wanted, bits=_no_bits(len(ids)), bits_zeroed=None)
    _read_on(model, found, lengths, advance)
    if config.has_memory:
        found.bits_zeroed = _no_bits(len(ids))
        span = max(config.segment_len, _PLAIN_WINDOW // config.segment_len * config.segment_len)
        for start, length in zip(starts, lengths, strict=True):
            _read(model, found, found.bits_zeroed, start, start + length, span, "zeroed", advance)
    return found


def _read_on(model: LanguageModel, found: Trace, lengths: list[int], advance: Callable[[int], None]) -> None:
    """The reading with the memory on, watched."""
    config, n_tokens = model.config, len(found.tokens)
    # Without a bank there is nothing that keeps to segments, which may be as long as the text.
    size = config.segment_len if config.has_memory else min(config.segment_len, _PLAIN_WINDOW)
    n_segments = sum(-(-length // size) for length in lengths)
    fusion_sums: list[NDArray[np.float64] | float] = [0.0] * config.n_layers
    configs = [config.of_layer(k) for k in range(config.n_layers)]
    memories = [
        MemoryTrace.blank(config, n_tokens, n_segments) if layer.has_memory else None for layer in configs
    ]
    with Probe(model) as probe:

        def watch(start: int, stop: int) -> None:
            found.segments.append(start)
            for k, view in enumerate(probe.views()):
                fusion_sums[k] += view.fusion_ATH.double().sum(1).cpu().numpy()
                if (memory := memories[k]) is not None:
                    memory.note(
                        config,
                        view,
                        start=start,
                        stop=stop,
                        segment=len(found.segments) - 1,
                    )

        for start, length in zip(found.starts, lengths, strict=True):
            _read(model, found, found.bits, start, start + length, size, "on", advance, watch)
    for layer, fusion, memory in zip(configs, fusion_sums, memories, strict=True):
        if memory is not None:
            memory.finish(n_tokens, n_segments)
        found.layers.append(
            LayerTrace(streams=stream_names(layer), fusion=np.asarray(fusion) / n_tokens, memory=memory)
        )


def _read(
    model: LanguageModel,
    found: Trace,
    bits: Floats,
    begin: int,
    end: int,
    span: int,
    memory: MemoryMode,
    advance: Callable[[int], None],
    watch: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Read one document in calls of `span` tokens and fill in its `bits`."""

    def note(piece: Piece) -> None:
        start, stop = begin + piece.start, begin + piece.start + piece.lengths[0]
        wanted = found.targets[start:stop]
        nats_T = token_nats(piece.logits_BTV[0], torch.from_numpy(wanted))
        bits[start:stop] = np.where(wanted == IGNORED, math.nan, as_numpy(nats_T) / math.log(2))
        watch(start, stop)

    scan(model, [found.tokens[begin:end]], size=span, memory=memory, each=note, advance=advance)


def _no_bits(n_tokens: int) -> Floats:
    return np.full(n_tokens, math.nan, dtype=np.float32)
