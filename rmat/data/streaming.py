"""Text that is read as training needs it: `hf:` data sets larger than the disk. The counterpart of `corpus`
and `lanes`.

    head of each stream -> tokenizer, held-out documents, a hash by which a resumed run knows its data
    stream -> documents in their order, dealt to rows -> windows of T tokens

Nothing is kept but the held-out part of the head. A run goes on at the documents that its rows are in: the
place before the oldest of them is in its checkpoint, and what lies before that is not read again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmat.data.config import DataConfig
from rmat.data.corpus import (
    HeldOutText,
    Reading,
    first_documents,
    refuse_lossy,
    spelled_bytes,
    store_record,
    tokenizer_of,
)
from rmat.data.documents import Document, encode_documents
from rmat.data.fim import rearrange
from rmat.data.lanes import NOTHING, Batch, ContinuingRows, Row
from rmat.data.progress import Progress
from rmat.data.records import HubStream
from rmat.data.sources import split_by_hash
from rmat.data.store import FORMAT, StoreWriter, TokenStore, build_once
from rmat.data.tokenizer import Tokenizer
from rmat.machine import cache_folder, expand

HEAD_BYTES = 32 * 2**20
"""Text of the beginning of a stream out of which documents are held out and a vocabulary is trained."""

Place = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Head:
    """The beginning of a stream."""

    rows: int
    """Rows of the stream that belong to it."""
    documents: tuple[Document, ...]
    content: str
    """SHA-256 of its documents."""


@dataclass
class Feed:
    """How far a stream was dealt."""

    documents: Iterator[tuple[Document, Place | None, Place]]
    """Those to train on, without end, each with the places before and behind it."""
    place: Place | None = None
    """Behind the last document."""
    dealt: int = 0
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class StreamPosition:
    """Where the rows stand; JSON-able through `to_dict`."""

    lanes: str
    """Fingerprint of the lanes it belongs to."""
    rows: tuple[tuple[int, int, int, int], ...]
    """Of each row (stream, ordinal of the document among those dealt from it, tokens read of it, its
    tokens)."""
    feeds: tuple[dict[str, Any], ...]
    """Of each stream `dealt` and `tokens`, and the place before the oldest document that a row is in, with
    its `ordinal`."""

    def to_dict(self) -> dict[str, Any]:
        """The position as JSON-able values."""
        return asdict(self)


@dataclass(frozen=True)
class StreamCorpus(HeldOutText):
    """Streams to train on, and documents held out of their heads."""

    tokenizer: Tokenizer
    valid: TokenStore
    test: TokenStore
    streams: tuple[HubStream, ...]
    heads: tuple[Head, ...]
    data: DataConfig

    def lanes(
        self, batch_size: int, window: int, seed: int, accumulate: int = 1, rows: range | None = None
    ) -> StreamLanes:
        """Training windows without end."""
        del accumulate  # windows are alike from the first to the last
        return StreamLanes(self, batch_size, window, seed, rows)

    @property
    def record(self) -> dict[str, Any]:
        """JSON-able; equal for equal data, as far as the heads tell."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "valid": store_record(self.valid),
            "test": store_record(self.test),
            "streams": [
                {"spec": spec, "head_rows": head.rows, "head_sha256": head.content}
                for spec, head in zip(self.data.specs, self.heads, strict=True)
            ],
        }

    def reading(self, split: str, max_tokens: int) -> Reading:
        """The first documents of a split, the last one cut at `max_tokens` in all."""
        if split != "train":
            return super().reading(split, max_tokens)
        documents = (
            document
            for head in self.heads
            for document in head.documents
            if split_by_hash(document, self.data.valid_share) == "train"
        )
        read = (
            (document.name, encode_documents(self.tokenizer, [document])[0].tokens.astype(np.int64))
            for document in documents
        )
        return first_documents(f"{', '.join(self.data.specs)}, train split", read, max_tokens)

    def bits_per_byte(self, nats_per_token: float) -> float | None:
        """Nats per token as bits per byte, by the bytes that a held-out token stands for on average."""
        if not self.has_valid:
            return None
        return nats_per_token / math.log(2) * self.valid.n_tokens / self.valid.n_bytes

    def summary(self, tokens: int) -> tuple[str, str]:
        """What is read, and what `tokens` tokens of it are, in words."""
        return f"{', '.join(self.data.specs)}: documents as they come", f"{tokens:,} tokens of them"


class StreamLanes(ContinuingRows[list[Feed], StreamPosition]):
    """Endless batches of documents in the order in which the streams have them; at its end a stream begins
    again. A row that finishes its document takes the next one, with weights of the stream that is furthest
    behind its share of tokens, else of each in turn.

    Arguments as of `Lanes`. Raises ValueError.
    """

    def __init__(
        self, corpus: StreamCorpus, batch_size: int, window: int, seed: int, rows: range | None = None
    ) -> None:
        data, tokenizer = corpus.data, corpus.tokenizer
        super().__init__(batch_size, window, data.assistant_only_loss, tokenizer, data.fim_rate, rows)
        self._corpus, self._seed, self._encoder = corpus, seed, tokenizer
        self._document_token = tokenizer.special_id("document")
        kinds = (batch_size, seed, data.weights, data.fim_rate, data.assistant_only_loss, data.valid_share)
        key = json.dumps([corpus.record, kinds], sort_keys=True)
        self._fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]

    def resumed(self, values: Mapping[str, Any] | None) -> Iterator[tuple[Batch, StreamPosition]]:
        """Batches from the position of `StreamPosition.to_dict`, or from the start.

        Raises ValueError for a position in other data or of other settings (the window may differ), or if a
        document is no longer what it was; OSError where a stream cannot be reached.
        """
        if values is None:
            return self._batches([Feed(self._endless(group, None)) for group in self._groups], [])
        if values.get("lanes") != self._fingerprint:
            raise ValueError(
                f"this data state belongs to lanes {values.get('lanes')}, not {self._fingerprint}: data, "
                "tokenizer, seed, batch size, weights, fim_rate, assistant_only_loss or valid_share have "
                "changed; resume with those of the run"
            )
        feeds, held = [], {}
        for group, known in zip(self._groups, values["feeds"], strict=True):
            wanted = {ordinal for number, ordinal, *_ in values["rows"] if number == group}
            feed = Feed(self._endless(group, known["place"]), known["place"], known["ordinal"])
            while feed.dealt < known["dealt"]:
                ordinal = feed.dealt
                document, before = self._next(feed)
                if ordinal in wanted:
                    held[group, ordinal] = (document, before)
            feed.tokens = known["tokens"]
            feeds.append(feed)
        rows = []
        for index, (group, ordinal, offset, length) in enumerate(values["rows"]):
            row = self._row(group, ordinal, offset, *held[group, ordinal], index in self._rows)
            if row.length != length:
                raise ValueError(
                    f"{self._corpus.data.specs[group]} has changed: a document that training is in has "
                    f"{row.length:,} tokens, it had {length:,}; start a new run"
                )
            rows.append(row)
        return self._batches(feeds, rows)

    @property
    def _groups(self) -> range:
        return range(len(self._corpus.streams))

    def _endless(self, group: int, place: Place | None) -> Iterator[tuple[Document, Place | None, Place]]:
        """Documents to train on of a stream, from a place on, over and over."""
        stream, head = self._corpus.streams[group], self._corpus.heads[group]
        for again in itertools.count():
            found = False
            for document, behind in stream.read(place):
                kept = "train"
                if behind["row"] <= head.rows:
                    kept = split_by_hash(document, self._corpus.data.valid_share)
                if kept == "train":
                    found = True
                    yield document, place, behind
                place = behind
            if again and not found:
                raise OSError(f"{stream.spec} has come to nothing: there is no document in it any more")
            place = None

    @staticmethod
    def _next(feed: Feed) -> tuple[Document, Place | None]:
        document, before, feed.place = next(feed.documents)
        feed.dealt += 1
        return document, before

    def _deal(self, supply: list[Feed], own: bool) -> Row:
        shares = self._corpus.data.weights

        def behind(group: int) -> float:
            return supply[group].dealt if shares is None else supply[group].tokens / shares[group]

        group = min(self._groups, key=behind)
        feed = supply[group]
        ordinal = feed.dealt
        row = self._row(group, ordinal, 0, *self._next(feed), own)
        feed.tokens += row.length
        return row

    def _row(
        self, group: int, ordinal: int, offset: int, document: Document, before: Place | None, own: bool
    ) -> Row:
        encoded = encode_documents(self._encoder, [document])[0]
        tokens: NDArray[Any] = encoded.tokens
        if self._fim_rate > 0:
            generator = np.random.default_rng([self._seed, group, ordinal, 1])
            if generator.random() < self._fim_rate:
                tokens = rearrange(tokens, encoded.n_header, self._encoder, generator)
        scored = self._scored(tokens) if own else NOTHING
        return Row(group, ordinal, offset, len(tokens), tokens if own else NOTHING, scored, before)

    def _state(self, supply: list[Feed], rows: Sequence[Row]) -> StreamPosition:
        feeds = []
        for group, feed in enumerate(supply):
            ordinal, place = feed.dealt, feed.place
            for row in rows:
                if row.group == group and row.ordinal < ordinal:
                    ordinal, place = row.ordinal, row.place
            counts = {"dealt": feed.dealt, "tokens": feed.tokens}
            feeds.append({**counts, "ordinal": ordinal, "place": None if place is None else dict(place)})
        return StreamPosition(
            lanes=self._fingerprint,
            rows=tuple((row.group, row.ordinal, row.offset, row.length) for row in rows),
            feeds=tuple(feeds),
        )


def load_stream(
    data: DataConfig, progress: bool = True, *, tokenizer: Tokenizer | None = None
) -> StreamCorpus:
    """The corpus of a configuration with `data.streaming`; arguments and errors as of `load_corpus`."""
    with Progress(progress) as shown:
        streams = tuple(HubStream(spec, data.column) for spec in data.specs)
        heads = tuple(_read_head(stream, shown) for stream in streams)
        split = [
            (part, document, split_by_hash(document, data.valid_share))
            for part, head in enumerate(heads)
            for document in head.documents
        ]
        if data.valid_share > 0 and not any(kept == "valid" for _, _, kept in split):
            raise ValueError(
                f"no document for validation among the first {len(split):,} of {', '.join(data.specs)}; give "
                "a larger data.valid_share, or 0 for none"
            )
        texts = (
            text
            for _, document, kept in split
            if kept == "train"
            for text in document.parts
            if isinstance(text, str)
        )
        used = tokenizer or tokenizer_of(data, texts)
        key = [FORMAT, [head.content for head in heads], data.valid_share, used.fingerprint]
        cache = expand(data.cache_dir) if data.cache_dir else cache_folder()
        folder = cache / f"stream-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}"

        def build(partial: Path) -> None:
            for name in ("valid", "test"):
                writer = StoreWriter(partial / name, used)
                chosen = [(part, document) for part, document, kept in split if kept == name]
                encoded = encode_documents(used, [document for _, document in chosen])
                lost, first = 0, ""
                for (part, document), result in zip(chosen, encoded, strict=True):
                    n_bytes, changed = spelled_bytes(used, document, result)
                    lost, first = lost + changed, first or document.name * bool(changed)
                    writer.add(document.name, result, n_bytes, part)
                refuse_lossy(lost, sum(document.n_bytes for _, document in chosen), first)
                writer.close()

        build_once(folder, build, lambda: shown.say("another process is reading this data; waiting for it"))
        return StreamCorpus(
            used, TokenStore(folder / "valid"), TokenStore(folder / "test"), streams, heads, data
        )


def _read_head(stream: HubStream, progress: Progress) -> Head:
    """The beginning of a stream. Raises ValueError if it holds nothing."""
    content, documents, n_bytes, rows = hashlib.sha256(), [], 0, 0
    with progress.task(f"reading the beginning of {stream.spec}", HEAD_BYTES) as advance:
        for document, behind in stream.read():
            content.update(document.digest)
            documents.append(document)
            rows, n_bytes = behind["row"], n_bytes + document.n_bytes
            advance(document.n_bytes)
            if n_bytes >= HEAD_BYTES:
                break
    if stream.refused is not None and not documents:
        raise stream.refused
    if not documents:
        raise ValueError(f"no document in {stream.spec!r}; give a data set with text")
    progress.say(f"{stream.spec}: begins with {len(documents)} documents, {n_bytes / 1e6:.1f} MB")
    return Head(rows=rows, documents=tuple(documents), content=content.hexdigest())
