"""Bits per byte over a split, in total and by position in the document.

Protocol: one stateful pass per document, memory empty at its start, every byte scored exactly once. The
document-start token is context only and the document's end is not scored, so the number of nats does not
depend on how documents are packed; special tokens inside a document are scored and stand for no byte. Nats
are summed in float64 and divided by bytes of text, which makes numbers comparable between tokenizers.

Documents run as rows of a batch, sorted by length; a long document is read window by window through the
carried state, and rows that are done leave the batch. Memory therefore depends on batch size and window, not
on length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rmat.data.lanes import IGNORED
from rmat.evaluation.intervals import Interval, bootstrap_ratio, paired_bootstrap_ratio
from rmat.evaluation.shuffling import behind, front_rows, groups, require_another
from rmat.generation.reader import Advance, NotFiniteError, Piece, scan
from rmat.machine import shared
from rmat.model import LanguageModel
from rmat.model.language_model import MemoryMode

FIRST_BUCKET_BYTES = 256
"""Width of the first position bucket; each further bucket ends at twice the position the one before it ends
at."""

LEAST_BUCKET_DOCUMENTS = 8
"""The last bucket ends where fewer documents than this (or a tenth of them, if that is more) would reach its
end."""

_WINDOW_TOKENS = 2048


class Documents(Protocol):
    """What is scored; a `TokenStore` is it."""

    def __len__(self) -> int: ...

    def view(self, index: int, /) -> NDArray[Any]:
        """(tokens,) ids of a document, the document token first; best a mapped file, as all are held at
        once."""

    def document_bytes(self, index: int, /) -> int:
        """UTF-8 bytes of a document."""


class ByteCounter(Protocol):
    """The part of a tokenizer that tells how many bytes of text a token stands for."""

    @property
    def vocab_size(self) -> int: ...

    def byte_counts(self, ids: NDArray[Any], /) -> NDArray[np.int64]: ...


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats (...) of targets (...) int64 under logits (..., V), in at least float32; 0 where a target is
    -100."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    nats = F.cross_entropy(wide, targets.to(wide.device).flatten(), reduction="none", ignore_index=IGNORED)
    return nats.view(targets.shape)


@dataclass(frozen=True, kw_only=True)
class PositionScore:
    """Bits per byte of the tokens that start in one range of positions, over the documents of all buckets."""

    start: int
    """First byte of the document that belongs to the bucket."""
    stop: int
    """First byte after the bucket."""
    score: Interval
    """Bits per byte with its bootstrap interval over documents."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; positions under the keys `from` and `to`, in bytes."""
        return {"from": self.start, "to": self.stop, **self.score.to_dict("bits_per_byte")}


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """Result of `perplexity`. Arrays are ordered as the documents of the store, so two results can be
    paired."""

    bits_per_byte: float
    """Nats of all scored tokens over ln 2 and over the bytes of all scored text."""
    low: float | None
    """Lower 95 % bound, bootstrap over documents; None for a single document."""
    high: float | None
    """Upper 95 % bound, bootstrap over documents; None for a single document."""
    nats_per_token: float
    """Nats of all scored tokens over their number."""
    tokens: int
    """Scored tokens."""
    bytes: int
    """Bytes of text the scored tokens stand for."""
    documents: int
    """Scored documents."""
    memory: MemoryMode
    """How the memory was used while scoring."""
    state_bytes: int
    """Size of the streaming state of one row."""
    by_position: tuple[PositionScore, ...]
    """Buckets of the position in bytes; all over the same documents, those at least as long as the last
    bucket."""
    position_documents: int
    """Number of documents `by_position` rests on."""
    document_nats: NDArray[np.float64] = field(repr=False)
    """(documents,) nats per document."""
    document_bytes: NDArray[np.float64] = field(repr=False)
    """(documents,) bytes per document."""
    position_nats: NDArray[np.float64] = field(repr=False)
    """(position_documents, buckets) nats of the tokens that start in each bucket."""
    position_bytes: NDArray[np.float64] = field(repr=False)
    """(position_documents, buckets) bytes of the same tokens."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able summary without the per-document arrays."""
        arrays = ("document_nats", "document_bytes", "position_nats", "position_bytes")
        summary = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in arrays}
        summary["by_position"] = [bucket.to_dict() for bucket in self.by_position]
        return summary | {"position_unit": "bytes"}

    def minus(self, baseline: PerplexityResult, *, seed: int = 0) -> Interval:
        """Difference in bits per byte, self - baseline, with the paired bootstrap interval.

        Raises ValueError if the two results do not rest on the same documents.
        """
        if not np.array_equal(self.document_bytes, baseline.document_bytes):
            raise ValueError(
                "the two results score different documents: take both on the same store and max_bytes"
            )
        return paired_bootstrap_ratio(
            self.document_nats, baseline.document_nats, self.document_bytes, scale=1 / math.log(2), seed=seed
        )

    def minus_by_position(self, baseline: PerplexityResult, *, seed: int = 0) -> tuple[PositionScore, ...]:
        """The paired difference self - baseline in each position bucket. Errors as in `minus`."""
        if not np.array_equal(self.position_bytes, baseline.position_bytes):
            raise ValueError(
                "the two results score different documents: take both on the same store and max_bytes"
            )
        return tuple(
            PositionScore(
                start=bucket.start,
                stop=bucket.stop,
                score=paired_bootstrap_ratio(
                    self.position_nats[:, k],
                    baseline.position_nats[:, k],
                    self.position_bytes[:, k],
                    scale=1 / math.log(2),
                    seed=seed,
                ),
            )
            for k, bucket in enumerate(self.by_position)
        )


_Sums = tuple[float, NDArray[np.float64], NDArray[np.float64]]
"""Of a document: nats, and nats and bytes of every bucket."""


@dataclass(kw_only=True)
class _Tally:
    """Running sums of one document while it is read."""

    tokens: NDArray[Any]
    """(scored + 1,) ids: the document token, then every scored token."""
    size: int
    """Bytes of the scored text."""
    position: int = 0
    nats: float = 0.0
    bucket_nats: NDArray[np.float64]
    bucket_bytes: NDArray[np.float64]

    @property
    def scored(self) -> int:
        return len(self.tokens) - 1

    def add(self, nats: NDArray[np.float64], widths: NDArray[np.int64], edges: NDArray[np.int64]) -> None:
        """Count the next tokens: `nats` (T,) and `widths` (T,) in bytes; `edges` (buckets + 1,) in bytes."""
        self.nats += float(nats.sum())
        starts = self.position + np.cumsum(widths) - widths
        self.position += int(widths.sum())
        buckets = len(edges) - 1
        if buckets:
            which = np.searchsorted(edges, starts, side="right") - 1
            inside = which < buckets
            self.bucket_nats += np.bincount(which[inside], nats[inside], minlength=buckets)
            self.bucket_bytes += np.bincount(which[inside], widths[inside], minlength=buckets)


def perplexity(
    model: LanguageModel,
    tokenizer: ByteCounter,
    store: Documents,
    *,
    memory: MemoryMode = "on",
    max_bytes: int | None = None,
    max_document_bytes: int | None = None,
    batch_size: int = 8,
    window: int | None = None,
    buckets: bool = True,
    seed: int = 0,
    advance: Advance | None = None,
) -> PerplexityResult:
    """Score every byte of a split once, each document from an empty state.

    Args:
        model: the model; it stays on its device and its training mode is restored.
        tokenizer: tells the bytes of each token; it must be the one the store was made with.
        store: the documents, each beginning with the document token.
        memory: "on", or an ablation of the model's memory at evaluation time (see `LanguageModel.forward`).
        max_bytes: stop after this many bytes of text: whole documents in order, the last one cut; None for
            all.
        max_document_bytes: read only so many bytes from the start of every document; None for all.
        batch_size: documents read side by side.
        window: tokens of a document read in one call; None for about 2048. It changes memory use, not
            results.
        buckets: also sum by position in the document.
        seed: seed of the bootstrap.
        advance: called with the number of tokens read since the last call.

    Raises ValueError if there is nothing to score, a token is unknown to the model, or memory="shuffled"
    finds one document only.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: read at least one document at a time")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: read at least one token at a time, or None for the default")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}: "
            "use the tokenizer the model was trained with"
        )
    tallies = _plan(store, tokenizer, max_bytes, max_document_bytes)
    if memory == "shuffled":
        require_another(len(tallies), "documents")
    edges = _edges([tally.size for tally in tallies]) if buckets else np.zeros(1, dtype=np.int64)
    for tally in tallies:
        tally.bucket_nats = np.zeros(len(edges) - 1)
        tally.bucket_bytes = np.zeros(len(edges) - 1)

    segment = model.config.segment_len
    span = window or max(_WINDOW_TOKENS // segment * segment, min(segment, _WINDOW_TOKENS))
    longest_first = sorted(tallies, key=lambda tally: -tally.scored)
    parts = groups(longest_first, math.ceil(len(tallies) / batch_size), memory, "documents")

    def score(part: tuple[_Tally | None, list[_Tally]]) -> list[_Sums]:
        _score(model, part[1], part[0], tokenizer, edges, memory, span, advance)
        return [(tally.nats, tally.bucket_nats, tally.bucket_bytes) for tally in part[1]]

    for (_, group), sums in zip(parts, shared(parts, score), strict=True):
        for tally, found in zip(group, sums, strict=True):
            tally.nats, tally.bucket_nats, tally.bucket_bytes = found
    if not math.isfinite(sum(tally.nats for tally in tallies)):
        raise NotFiniteError
    return _result(model, tallies, edges, memory, seed)


def tokens_to_score(
    tokenizer: ByteCounter, store: Documents, max_bytes: int | None, max_document_bytes: int | None
) -> int:
    """Tokens that `perplexity` scores. Raises ValueError if there is nothing to score."""
    return sum(tally.scored for tally in _plan(store, tokenizer, max_bytes, max_document_bytes))


def _plan(
    store: Documents, tokenizer: ByteCounter, max_bytes: int | None, max_document_bytes: int | None
) -> list[_Tally]:
    """The documents to score, in order, each cut at `max_document_bytes`, the last one where `max_bytes`
    ends."""
    left = math.inf if max_bytes is None else max_bytes
    most = math.inf if max_document_bytes is None else max_document_bytes
    tallies: list[_Tally] = []
    for index in range(len(store)):
        if left <= 0:
            break
        tokens = store.view(index)
        size = store.document_bytes(index)
        if size > min(left, most):
            last = left <= most
            widths = tokenizer.byte_counts(tokens)[1:]
            kept = int(np.searchsorted(np.cumsum(widths), min(left, most), side="right"))
            tokens = tokens[: kept + 1]
            size = int(widths[:kept].sum())
            left = 0 if last else left
        if len(tokens) > 1 and size > 0:
            empty = np.zeros(0)
            tallies.append(_Tally(tokens=tokens, size=size, bucket_nats=empty, bucket_bytes=empty))
        left -= size
    if not tallies:
        raise ValueError(
            "there is no text to score: the split has no document with text, or max_bytes is below one "
            "token; choose another split, other data or more bytes"
        )
    return tallies


def _edges(sizes: list[int]) -> NDArray[np.int64]:
    """Bucket edges 0, 256, 512, ...: as far as enough documents reach; only [0] if too few reach the
    first."""
    needed = min(len(sizes), max(LEAST_BUCKET_DOCUMENTS, len(sizes) // 10))
    reach = sorted(sizes, reverse=True)[needed - 1]
    edges = [0]
    while max(FIRST_BUCKET_BYTES, 2 * edges[-1]) <= reach:
        edges.append(max(FIRST_BUCKET_BYTES, 2 * edges[-1]))
    return np.array(edges, dtype=np.int64)


def _score(
    model: LanguageModel,
    rows: list[_Tally],
    donor: _Tally | None,
    tokenizer: ByteCounter,
    edges: NDArray[np.int64],
    memory: MemoryMode,
    span: int,
    advance: Advance | None,
) -> None:
    """Read a group of documents window by window and add up their nats."""
    front = front_rows(memory)

    def add(piece: Piece) -> None:
        targets = np.zeros(piece.hidden_BTE.shape[:2], dtype=np.int64)
        scored = [
            (place, rows[row - front], length)
            for place, (row, length) in enumerate(zip(piece.rows, piece.lengths, strict=True))
            if row >= front and length
        ]
        for place, row, length in scored:
            targets[place, :length] = row.tokens[piece.start + 1 :][:length]
        nats_BT = token_nats(piece.logits_BTV, torch.from_numpy(targets)).double().cpu().numpy()
        for place, row, length in scored:
            widths = tokenizer.byte_counts(row.tokens[piece.start :][: length + 1])[1:]
            row.add(nats_BT[place, :length], widths, edges)

    read = [row.tokens[:-1] for row in rows]
    scan(
        model,
        behind(None if donor is None else donor.tokens[:-1], read),
        size=span,
        memory=memory,
        leave=True,
        each=add,
        advance=advance,
    )


def _result(
    model: LanguageModel, tallies: list[_Tally], edges: NDArray[np.int64], memory: MemoryMode, seed: int
) -> PerplexityResult:
    """Put the sums of all documents together."""
    bits = 1 / math.log(2)
    nats = np.array([tally.nats for tally in tallies])
    sizes = np.array([tally.size for tally in tallies], dtype=np.float64)
    tokens = sum(tally.scored for tally in tallies)
    total = bootstrap_ratio(nats, sizes, scale=bits, seed=seed)
    long = [tally for tally in tallies if tally.size >= edges[-1]] if len(edges) > 1 else []
    position_nats = np.array([tally.bucket_nats for tally in long]).reshape(len(long), len(edges) - 1)
    position_bytes = np.array([tally.bucket_bytes for tally in long]).reshape(len(long), len(edges) - 1)
    return PerplexityResult(
        bits_per_byte=total.value,
        low=total.low,
        high=total.high,
        nats_per_token=float(nats.sum()) / tokens,
        tokens=tokens,
        bytes=int(sizes.sum()),
        documents=len(tallies),
        memory=memory,
        state_bytes=model.initial_state(batch_size=1).nbytes,
        by_position=tuple(
            PositionScore(
                start=int(edges[k]),
                stop=int(edges[k + 1]),
                score=bootstrap_ratio(position_nats[:, k], position_bytes[:, k], scale=bits, seed=seed),
            )
            for k in range(len(edges) - 1)
        ),
        position_documents=len(long),
        document_nats=nats,
        document_bytes=sizes,
        position_nats=position_nats,
        position_bytes=position_bytes,
    )
