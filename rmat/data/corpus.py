"""What a run, an evaluation and a report ask of a corpus, and the one of text: from a DataConfig to tokenised
splits.

Every source is read once to learn what it holds; if the cache has tokens of the same content by the same
tokenizer, that is all. Otherwise the tokenizer is trained where the configuration says so, and a second
reading is tokenised.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rmat.data.config import DataConfig
from rmat.data.documents import Document, EncodedDocument, encode_documents
from rmat.data.lanes import Batch, Lanes
from rmat.data.progress import Progress
from rmat.data.sources import LISTED_FILES, SPLITS, Scan, Source, scan_source
from rmat.data.store import FORMAT, StoreWriter, TokenStore, build_once
from rmat.data.tokenizer import Tokenizer, load_tokenizer, train_bpe
from rmat.machine import cache_folder, expand

TOKENIZER_TRAINING_BYTES = 32 * 2**20
"""A BPE vocabulary is trained on about so much of the train split, chosen by document hash."""

MOST_LOST = 0.001
"""Share of the text by whose loss a tokenizer is refused."""

BATCH_BYTES = 4 * 2**20
"""Documents are tokenised together until they hold so much text."""


Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Documents to be read and shown, each by itself."""

    name: str
    """What it is, in words."""
    names: tuple[str, ...]
    documents: tuple[Ids, ...]
    """(tokens,) int64 of each document."""
    targets: tuple[Ids, ...] | None = None
    """Of each token, what a task asks for after it, -100 for nothing; None: every token is followed by the
    next."""

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self.documents))


class Rows(Protocol):
    """Held-out rows of a task."""

    def batches(self, count: int, /) -> Iterator[Batch]: ...


class Scorer(Protocol):
    """How held-out data of either kind is scored."""

    def documents(self, store: TokenStore, /) -> dict[str, float]: ...

    def rows(self, rows: Rows, /) -> dict[str, float]: ...


class HeldOut(Protocol):
    """Data to validate on, of a kind that it knows."""

    def score(self, scorer: Scorer, /) -> dict[str, float]: ...


class Position(Protocol):
    """Where training stands in the data."""

    def to_dict(self) -> dict[str, Any]: ...


class Windows(Protocol):
    """Batches of training without end, each with the position behind it."""

    def resumed(self, values: Mapping[str, Any] | None, /) -> Iterator[tuple[Batch, Position]]: ...


class Corpus(Protocol):
    """Data to train on: text (`TextCorpus`) or synthetic tasks (`rmat.tasks.corpus.TaskCorpus`)."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def has_valid(self) -> bool:
        """Whether something is held out for validation."""

    @property
    def record(self) -> dict[str, Any]:
        """JSON-able; equal for equal data, by which a resumed run knows it."""

    def lanes(
        self, batch_size: int, window: int, seed: int, accumulate: int = 1, rows: range | None = None
    ) -> Windows:
        """Training batches without end, of which an update takes `accumulate`; of each only `rows`, if they
        are given."""

    def held_out(self, batch_size: int, window: int) -> HeldOut:
        """What to validate on."""

    def row_tokens(self, window: int, updates: int) -> float:
        """Tokens of a row of training, on average over so many updates."""

    def bits_per_byte(self, nats_per_token: float) -> float | None:
        """Nats per token as bits per byte; None where tokens stand for no text."""

    def summary(self, tokens: int) -> tuple[str, str]:
        """What is read, and what `tokens` tokens of it are, in words."""

    def reading(self, split: str, max_tokens: int) -> Reading:
        """The first documents or rows of the train, valid or test split, about `max_tokens` in all. Raises
        ValueError if there is nothing."""


class HeldOutText:
    """What corpora of text have alike: rows that are full, and stores of documents that are held out."""

    valid: TokenStore
    data: DataConfig

    @property
    def has_valid(self) -> bool:
        """Whether text is held out for validation."""
        return self.valid.n_bytes > 0

    def held_out(self, batch_size: int, window: int) -> TokenStore:
        """The documents to validate on."""
        del batch_size, window  # each is read as a whole
        return self.valid

    def row_tokens(self, window: int, updates: int) -> float:
        """The window: every row is full."""
        del updates
        return window

    def reading(self, split: str, max_tokens: int) -> Reading:
        """The first documents of a split, the last one cut at `max_tokens` in all."""
        store: TokenStore = getattr(self, split)
        name = f"{', '.join(self.data.specs)}, {split} split"
        return first_documents(name, ((store.name(i), store[i]) for i in range(len(store))), max_tokens)


@dataclass(frozen=True)
class TextCorpus(HeldOutText):
    """Tokenised splits and how they came about."""

    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore
    test: TokenStore
    description: dict[str, Any]
    """JSON-able: of every SPEC its documents, bytes, what was left out and hashes of names and content; of
    every split documents, tokens, bytes and bytes per token; the tokenizer."""
    data: DataConfig
    """What it was made from."""

    def lanes(
        self, batch_size: int, window: int, seed: int, accumulate: int = 1, rows: range | None = None
    ) -> Lanes:
        """Training windows without end."""
        del accumulate  # windows are alike from the first to the last
        return Lanes(
            self.train,
            batch_size=batch_size,
            window=window,
            seed=seed,
            weights=self.data.weights,
            fim_rate=self.data.fim_rate,
            context_rate=self.data.context_rate,
            assistant_only_loss=self.data.assistant_only_loss,
            tokenizer=self.tokenizer,
            rows=rows,
        )

    @property
    def record(self) -> dict[str, Any]:
        """JSON-able; equal for equal data."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "train": store_record(self.train),
            "valid": store_record(self.valid),
            "test": store_record(self.test),
            "description": json.loads(json.dumps(self.description)),
        }

    def bits_per_byte(self, nats_per_token: float) -> float | None:
        """Nats per token as bits per byte, by the bytes that a token of the training split stands for on
        average."""
        return nats_per_token / math.log(2) * self.train.n_tokens / max(self.train.n_bytes, 1)

    def summary(self, tokens: int) -> tuple[str, str]:
        """What is read, and what `tokens` tokens of it are, in words."""
        store = self.train
        per_token = store.n_bytes / max(store.n_tokens, 1)
        return (
            f"{len(store):,} documents, {store.n_tokens:,} tokens of {per_token:.2f} bytes",
            f"{tokens / max(store.n_tokens, 1):.2f} epochs",
        )


def store_record(store: TokenStore) -> dict[str, Any]:
    """JSON-able; equal for equal stores."""
    return {
        "documents": len(store),
        "tokens": store.n_tokens,
        "bytes": store.n_bytes,
        "fingerprint": store.fingerprint,
    }


def first_documents(name: str, documents: Iterable[tuple[str, Ids]], max_tokens: int) -> Reading:
    """The first of (name, ids), the last one cut at `max_tokens` in all. Raises ValueError if there is no
    text."""
    names: list[str] = []
    kept: list[Ids] = []
    left = max_tokens
    for document_name, ids in documents:
        if left < 2:
            break
        if len(ids) > 1:
            names.append(document_name)
            kept.append(ids[:left])
            left -= len(kept[-1])
    if not kept:
        raise ValueError(f"there is no text in {name}: give another file, other data or another --split")
    return Reading(name=name, names=tuple(names), documents=tuple(kept))


def load_corpus(data: DataConfig, progress: bool = True, *, tokenizer: Tokenizer | None = None) -> TextCorpus:
    """The corpus of a configuration, from the cache if it is there.

    Args:
        data: what to read and how.
        progress: show progress with the time left, and what was read and left out, on standard error.
        tokenizer: takes the place of `data.tokenizer`.

    Raises:
        ValueError: one sentence on what is wrong with the data, where, and what to do.
    """
    with Progress(progress) as shown:
        scans = [
            scan_source(Source(spec, column=data.column), data.valid_share, shown) for spec in data.specs
        ]
        given = tokenizer or (None if data.bpe_size else load_tokenizer(data.tokenizer))
        cache = expand(data.cache_dir) if data.cache_dir else cache_folder()
        folder = cache / _cache_name(data, scans, data.tokenizer if given is None else given.fingerprint)
        if tokenizer is not None and data.bpe_size:
            # Trained on this very data, it has its tokens there already.
            own = cache / _cache_name(data, scans, data.tokenizer)
            if own.is_dir() and load_tokenizer(own).fingerprint == tokenizer.fingerprint:
                folder = own

        def build(partial: Path) -> None:
            made = given or _train_tokenizer(scans, data.bpe_size or 0, shown)
            made.save(partial / "tokenizer.json")
            _write_splits(partial, scans, made, shown)

        build_once(
            folder, build, lambda: shown.say("another process is tokenising this data; waiting for it")
        )
        used = given or load_tokenizer(folder)
        stores = {split: TokenStore(folder / split) for split in SPLITS}
        for store in stores.values():
            store.require_tokenizer(used)
        return TextCorpus(
            tokenizer=used,
            train=stores["train"],
            valid=stores["valid"],
            test=stores["test"],
            description=_describe(data, scans, used, stores),
            data=data,
        )


def _cache_name(data: DataConfig, scans: Sequence[Scan], tokenizer: str) -> str:
    key = {
        "format": FORMAT,
        "content": [scan.content for scan in scans],
        "valid_share": data.valid_share,
        "tokenizer": tokenizer,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def tokenizer_of(data: DataConfig, texts: Iterable[str]) -> Tokenizer:
    """The one that a configuration names, trained on `texts` where it says so. Raises ValueError."""
    return train_bpe(iter(texts), data.bpe_size) if data.bpe_size else load_tokenizer(data.tokenizer)


def _train_tokenizer(scans: Sequence[Scan], size: int, progress: Progress) -> Tokenizer:
    total = sum(scan.train_bytes for scan in scans)
    share = TOKENIZER_TRAINING_BYTES / max(1, total)
    with contextlib.ExitStack() as shown:
        counting = progress.task("counting words for the tokenizer", min(TOKENIZER_TRAINING_BYTES, total))
        advance = shown.enter_context(counting)

        def texts() -> Iterator[str]:
            for scan in scans:
                for split, document in scan.split():
                    if split == "train" and int.from_bytes(document.digest[8:16], "big") / 2**64 < share:
                        advance(document.n_bytes)
                        yield from (part for part in document.parts if isinstance(part, str))
            shown.close()
            shown.enter_context(progress.task(f"training a tokenizer of {size} entries"))

        return train_bpe(texts(), size)


def _write_splits(folder: Path, scans: Sequence[Scan], tokenizer: Tokenizer, progress: Progress) -> None:
    writers = {split: StoreWriter(folder / split, tokenizer) for split in SPLITS}
    total, lost, first = sum(scan.n_bytes for scan in scans), 0, ""
    with progress.task("tokenising", total) as advance:
        for part, scan in enumerate(scans):
            for batch in _batched(scan.split()):
                encoded = encode_documents(tokenizer, [document for _, document in batch])
                for (split, document), result in zip(batch, encoded, strict=True):
                    n_bytes, changed = spelled_bytes(tokenizer, document, result)
                    lost, first = lost + changed, first or document.name * bool(changed)
                    writers[split].add(document.name, result, n_bytes, part)
                    advance(document.n_bytes)
    refuse_lossy(lost, total, first)
    stores = {split: writer.close() for split, writer in writers.items()}
    if not len(stores["train"]):
        raise ValueError(
            f"no document left for training in {[scan.source.spec for scan in scans]}; give more text"
        )
    if not len(stores["valid"]) and any(scan.valid_share > 0 for scan in scans):
        raise ValueError(
            f"no document left for validation in {[scan.source.spec for scan in scans]}; give more text or a "
            "larger "
            "data.valid_share"
        )


def spelled_bytes(tokenizer: Tokenizer, document: Document, encoded: EncodedDocument) -> tuple[int, int]:
    """Bytes of text that the tokens of a document spell, and how many of its own are lost or added."""
    n_bytes = int(tokenizer.byte_counts(encoded.tokens).sum())
    # Some tokenizers put a blank in front of each part, or take one off.
    return n_bytes, max(0, abs(n_bytes - document.n_bytes) - len(document.parts))


def refuse_lossy(lost: int, total: int, first: str) -> None:
    """Raises ValueError where a tokenizer changes too many of `total` bytes, `first` in the document of that
    name."""
    if lost > MOST_LOST * total:
        raise ValueError(
            f"this tokenizer gives back other text than it is given ({lost:,} of {total:,} bytes differ, "
            f"first in {first}), "
            "so that bits per byte would be those of another text; use 'bytes', 'bpe:N' or a byte-level "
            "tokenizer.json"
        )


def _batched(documents: Iterator[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    batch: list[tuple[str, Document]] = []
    size = 0
    for item in documents:
        batch.append(item)
        size += item[1].n_bytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _describe(
    data: DataConfig, scans: Sequence[Scan], tokenizer: Tokenizer, stores: dict[str, TokenStore]
) -> dict[str, Any]:
    return {
        "sources": [
            {
                "spec": scan.source.spec,
                **scan.source.details,
                "documents": scan.n_documents,
                "bytes": scan.n_bytes,
                "split_by": scan.rule,
                "list_sha256": scan.names,
                "content_sha256": scan.content,
                "left_out": scan.skipped,
                "files": [
                    {"name": name, "sha256": digest, "split": split if scan.rule != "position" else "all"}
                    for name, digest, split in scan.files
                ]
                if scan.n_documents <= LISTED_FILES
                else None,
            }
            for scan in scans
        ],
        "splits": {
            split: {
                "documents": len(store),
                "tokens": store.n_tokens,
                "bytes": store.n_bytes,
                "bytes_per_token": store.n_bytes / max(1, store.n_tokens),
                "fingerprint": store.fingerprint,
            }
            for split, store in stores.items()
        },
        "tokenizer": {
            "spec": data.tokenizer,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
        },
    }
