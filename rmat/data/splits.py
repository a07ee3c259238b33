"""Which document of a source belongs to train, valid and test.

A source may have splits of its own; else a document's hash decides, or, where there are too few documents for that, the
end of each is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rmat.data.config import DataConfig
from rmat.data.documents import Document, cut_document
from rmat.data.progress import Progress
from rmat.data.sources import Source

SPLITS = ("train", "valid", "test")

LISTED_FILES = 2000
"""A source of at most so many documents is listed in full in the description."""


@dataclass
class Scan:
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


def scan_source(source: Source, valid_share: float, progress: Progress) -> Scan:
    """Read a source once, and settle how it is split. Raises ValueError if it holds nothing."""
    scan = Scan(source, valid_share)
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


def split_documents(spec: str) -> Iterator[tuple[str, Document]]:
    """(split, document) of a SPEC by the splits it would have in a corpus of the default `valid_share`.

    Raises ValueError as `load_corpus` does.
    """
    return scan_source(Source(spec), DataConfig.valid_share, Progress(False)).split()


def _split_by_hash(document: Document, valid_share: float) -> str:
    """`test`, `valid` or `train` by where the document's hash falls in 0..1."""
    place = int.from_bytes(document.digest[:8], "big") / 2**64
    return "test" if place < valid_share else "valid" if place < 2 * valid_share else "train"
