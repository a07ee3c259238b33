"""From a DataConfig to tokenised train, valid and test splits.

Every source is read once to learn what it holds; if the cache has tokens of the same content by the same
tokenizer, that is all. Otherwise the tokenizer is trained where the configuration says so, and a second
reading is tokenised.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmat.data.config import DataConfig
from rmat.data.documents import Document, cut_document, encode_documents
from rmat.data.progress import Progress
from rmat.data.sources import Source
from rmat.data.store import FORMAT, StoreWriter, TokenStore, build_once
from rmat.data.tokenizer import Tokenizer, load_tokenizer, train_bpe

SPLITS = ("train", "valid", "test")

TOKENIZER_TRAINING_BYTES = 32 * 2**20
"""A BPE vocabulary is trained on about so much of the train split, chosen by document hash."""

BATCH_BYTES = 4 * 2**20
"""Documents are tokenised together until they hold so much text."""

LISTED_FILES = 2000
"""A source of at most so many documents is listed in full in the description."""


@dataclass(frozen=True)
class Corpus:
    """Tokenised splits and how they came about."""

    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore
    test: TokenStore
    description: dict[str, Any]
    """JSON-able: of every SPEC its documents, bytes, what was left out and hashes of names and content; of
    every split documents, tokens, bytes and bytes per token; the tokenizer."""


def load_corpus(data: DataConfig, progress: bool = True) -> Corpus:
    """The corpus of a configuration, from the cache if it is there.

    Args:
        data: what to read and how.
        progress: show progress with the time left, and what was read and left out, on standard error.

    Raises:
        ValueError: one sentence on what is wrong with the data, where, and what to do.
    """
    with Progress(progress) as shown:
        scans = [_scan(Source(spec, column=data.column), data.valid_share, shown) for spec in data.specs]
        given = None if data.bpe_size else load_tokenizer(data.tokenizer)
        key = {
            "format": FORMAT,
            "content": [scan.content for scan in scans],
            "valid_share": data.valid_share,
            "tokenizer": given.fingerprint if given else data.tokenizer,
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]

        def build(folder: Path) -> None:
            tokenizer = given or _train_tokenizer(scans, data.bpe_size or 0, shown)
            tokenizer.save(folder / "tokenizer.json")
            _write_splits(folder, scans, tokenizer, shown)

        waiting = "another process is tokenising this data; waiting for it"
        folder = build_once(_cache_folder(data) / name, build, lambda: shown.say(waiting))
        tokenizer = given or load_tokenizer(folder)
        stores = {split: TokenStore(folder / split) for split in SPLITS}
        for store in stores.values():
            store.require_tokenizer(tokenizer)
        return Corpus(
            tokenizer=tokenizer,
            train=stores["train"],
            valid=stores["valid"],
            test=stores["test"],
            description=_describe(data, scans, tokenizer, stores),
        )


@dataclass
class _Scan:
    """What a first reading of a source found."""

    source: Source
    valid_share: float
    content: str = ""
    names: str = ""
    rule: str = "own"
    n_documents: int = 0
    n_bytes: int = 0
    train_bytes: int = 0
    skipped: dict[str, Any] = field(default_factory=dict)
    files: list[tuple[str, str, str]] = field(default_factory=list)

    def split(self) -> Iterator[tuple[str, Document]]:
        """(split, document) of another reading, under the rule the first one settled.

        Raises ValueError at the end if the content is no longer that of the first reading.
        """
        content = hashlib.sha256()
        shares = (1 - 2 * self.valid_share, self.valid_share, self.valid_share)
        for own, document in self.source:
            split = own or _split_by_hash(document, self.valid_share)
            content.update(split.encode() + document.digest)
            if self.rule == "position":
                pieces = zip(SPLITS, cut_document(document, shares), strict=True)
                yield from ((name, piece) for name, piece in pieces if piece is not None)
            else:
                yield split, document
        if content.hexdigest() != self.content:
            raise ValueError(
                f"{self.source.spec!r} changed while it was being read; run again when it is at rest"
            )


def _scan(source: Source, valid_share: float, progress: Progress) -> _Scan:
    scan = _Scan(source, valid_share)
    content, names = hashlib.sha256(), hashlib.sha256()
    found = dict.fromkeys(SPLITS, 0)
    with progress.task(f"reading {source.spec}") as advance:
        for own, document in source:
            split = own or _split_by_hash(document, valid_share)
            if own is None:
                scan.rule = "hash"
            content.update(split.encode() + document.digest)
            names.update(document.name.encode() + b"\n")
            found[split] += document.n_bytes
            scan.n_documents += 1
            if len(scan.files) <= LISTED_FILES:
                scan.files.append((document.name, document.digest.hex(), split))
            advance(document.n_bytes)
    scan.n_bytes, scan.train_bytes = sum(found.values()), found["train"]
    if scan.rule == "hash" and valid_share > 0 and not all(found.values()):
        # So few documents that a split came out empty: hold out the end of each instead.
        scan.rule, scan.train_bytes = "position", int(scan.n_bytes * (1 - 2 * valid_share))
    scan.content, scan.names = content.hexdigest(), names.hexdigest()
    scan.skipped = source.skipped.to_dict()
    if not scan.n_documents:
        raise ValueError(
            f"no document left in {source.spec!r} (left out: {source.skipped}); "
            "give a source with text, code, JSONL or Parquet"
        )
    left_out = f"; left out {source.skipped}" if scan.skipped else ""
    progress.say(f"{source.spec}: {scan.n_documents} documents, {scan.n_bytes / 1e6:.1f} MB{left_out}")
    return scan


def _split_by_hash(document: Document, valid_share: float) -> str:
    """`test`, `valid` or `train` by where the document's hash falls in 0..1."""
    place = int.from_bytes(document.digest[:8], "big") / 2**64
    return "test" if place < valid_share else "valid" if place < 2 * valid_share else "train"


def _train_tokenizer(scans: Sequence[_Scan], size: int, progress: Progress) -> Tokenizer:
    share = TOKENIZER_TRAINING_BYTES / max(1, sum(scan.train_bytes for scan in scans))

    def texts() -> Iterator[str]:
        for scan in scans:
            for split, document in scan.split():
                if split == "train" and int.from_bytes(document.digest[8:16], "big") / 2**64 < share:
                    advance(document.n_bytes)
                    yield from (part for part in document.parts if isinstance(part, str))

    total = min(TOKENIZER_TRAINING_BYTES, sum(scan.train_bytes for scan in scans))
    with progress.task(f"training a tokenizer of {size} entries", total) as advance:
        return train_bpe(texts(), size)


def _write_splits(folder: Path, scans: Sequence[_Scan], tokenizer: Tokenizer, progress: Progress) -> None:
    writers = {split: StoreWriter(folder / split, tokenizer) for split in SPLITS}
    with progress.task("tokenising", sum(scan.n_bytes for scan in scans)) as advance:
        for part, scan in enumerate(scans):
            for batch in _batched(scan.split()):
                encoded = encode_documents(tokenizer, [document for _, document in batch])
                for (split, document), result in zip(batch, encoded, strict=True):
                    writers[split].add(document.name, result, document.n_bytes, part)
                    advance(document.n_bytes)
    stores = {split: writer.close() for split, writer in writers.items()}
    if not len(stores["train"]):
        raise ValueError(
            f"no document left for training in {[scan.source.spec for scan in scans]}; give more text"
        )
    if not len(stores["valid"]) and any(scan.valid_share > 0 for scan in scans):
        raise ValueError(
            f"no document left for validation in {[scan.source.spec for scan in scans]}; give more text or a larger "
            "data.valid_share"
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
    data: DataConfig, scans: Sequence[_Scan], tokenizer: Tokenizer, stores: dict[str, TokenStore]
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


def _cache_folder(data: DataConfig) -> Path:
    named = data.cache_dir or os.environ.get("RMAT_CACHE")
    if named:
        return Path(named).expanduser()
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "rmat"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "rmat" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "rmat"
