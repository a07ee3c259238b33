"""A SPEC, the documents it stands for, and which of them belong to train, valid and test.

A source may have splits of its own; else a document's hash decides, or, where there are too few documents for
that, the end of each is held out.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rmat.data.config import DataConfig
from rmat.data.documents import Document, cut_document
from rmat.data.extraction import file_document
from rmat.data.files import (
    RECORD_SUFFIXES,
    Skipped,
    Unusable,
    inner_suffix,
    shown,
    unreadable,
    walk_folder,
    walk_glob,
)
from rmat.data.progress import Progress
from rmat.data.records import is_saved, open_saved, read_hub, read_records, read_table
from rmat.machine import expand

STDLIB = "python-stdlib"
"""The SPEC of the standard library's own sources, which every machine with Python has."""

TEST_FOLDERS = frozenset(("test", "tests", "idle_test"))
"""Folders of the standard library that `python-stdlib` leaves out."""

NOT_STDLIB = frozenset(("site-packages", "dist-packages", "__pycache__"))
"""Folders inside the standard library's that are not part of it."""

SPLITS = ("train", "valid", "test")

LISTED_FILES = 2000
"""A source of at most so many documents is listed in full in the description."""

SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
"""Names of folders, or of files without suffix, by which a folder declares its own splits."""


class Source:
    """The documents of one SPEC, read anew each time it is iterated.

    What a SPEC names must be good: a file that is empty, unreadable or not UTF-8 raises ValueError. What a
    folder or glob happens to hold may be anything: such files are left out and counted in `skipped`.

    Args:
        spec: `python-stdlib`, a file, folder or glob, or `hf:owner/name:split:column`.
        column: text field of JSONL and Parquet records.
    """

    def __init__(self, spec: str, *, column: str = "text") -> None:
        self.spec = spec
        self.column = column
        self.skipped = Skipped()
        """What the last pass left out."""

    @property
    def details(self) -> dict[str, str]:
        """What else decides the content, for the record."""
        return {"python": sys.version.split()[0]} if self.spec == STDLIB else {}

    def __iter__(self) -> Iterator[tuple[str | None, Document]]:
        """(the source's own split or None, document), always in the same order."""
        self.skipped = Skipped()
        if self.spec.startswith("hf:"):
            return ((None, document) for document in read_hub(self.spec, self.column, self.skipped))
        if self.spec == STDLIB:
            return self._files(_stdlib_files(self.skipped))
        path = expand(self.spec)
        try:
            if path.is_dir():
                return self._saved(path) if is_saved(path) else self._folder(path)
            if path.exists():
                return ((None, document) for document in self._file(path, shown(path.name)))
        except OSError as error:
            raise unreadable(path, error) from None
        if glob.has_magic(str(path)):
            return self._files(walk_glob(str(path), self.skipped))
        raise ValueError(
            f"nothing at {self.spec!r} (looked for {Path(os.path.abspath(path))}); give {STDLIB}, a file, a "
            "folder, a glob in quotes or hf:owner/name:split:column"
        )

    def _file(self, path: Path, name: str) -> Iterator[Document]:
        if not path.is_file():
            raise Unusable(
                "not a regular file", f"{path} is not a regular file; give a file, a folder or a glob"
            )
        if inner_suffix(path) in RECORD_SUFFIXES:
            yield from read_records(path, name, self.column, self.skipped)
        else:
            yield file_document(path, name)

    def _files(self, files: Iterator[tuple[Path, str]]) -> Iterator[tuple[str | None, Document]]:
        for path, name in files:
            begun = False
            try:
                for document in self._file(path, name):
                    begun = True
                    yield None, document
            except Unusable as error:
                # Half a file of records is a fault to tell, a file that is not for us is one to pass over.
                if begun:
                    raise
                self.skipped.add(error.reason, str(error) if error.reason == "not UTF-8" else name)

    def _folder(self, root: Path) -> Iterator[tuple[str | None, Document]]:
        try:
            declared = {SPLIT_NAMES.get(Path(entry.name).stem) for entry in root.iterdir()}
        except OSError as error:
            raise unreadable(root, error) from None
        own = {"train", "valid"} <= declared
        for _, document in self._files(self._declared(root) if own else walk_folder(root, self.skipped)):
            yield _split_of(document.name) if own else None, document

    def _saved(self, root: Path) -> Iterator[tuple[str | None, Document]]:
        tables = open_saved(root)
        own = {"train", "valid"} <= {SPLIT_NAMES.get(name) for name in tables}
        for name, table in tables.items():
            split = SPLIT_NAMES.get(name) if own else None
            if own and split is None:
                self.skipped.add("beside the train, valid and test parts", name)
                continue
            where, called = (
                (f"{root}, split {name},", f"{root.name}/{name}") if name else (str(root), root.name)
            )
            for document in read_table(table, where, shown(called), self.column, self.skipped):
                yield split, document

    def _declared(self, root: Path) -> Iterator[tuple[Path, str]]:
        for path, name in walk_folder(root, self.skipped):
            if _split_of(name) is None:
                self.skipped.add("beside the train, valid and test parts", name)
            else:
                yield path, name


def stdlib_root() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def _stdlib_files(skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """The library's modules without its tests."""
    root = stdlib_root()
    found = []
    for folder, folders, names in os.walk(root):
        # Not walked into at all: installed packages may be a hundred times the library.
        folders[:] = [name for name in folders if name not in NOT_STDLIB]
        found += [Path(folder, name).relative_to(root) for name in names if name.endswith(".py")]
    for name in sorted(found):
        if TEST_FOLDERS.isdisjoint(name.parts[:-1]):
            yield root / name, name.as_posix()
        else:
            skipped.add("tests", name.as_posix())


def _split_of(name: str) -> str | None:
    """The split of a document by the first part of its path below a folder with splits of its own."""
    first = PurePosixPath(name).parts[0].partition(":")[0]
    return SPLIT_NAMES.get(PurePosixPath(first).stem)


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
            split = own or split_by_hash(document, self.valid_share)
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
            split = own or split_by_hash(document, valid_share)
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


def split_by_hash(document: Document, valid_share: float) -> str:
    """`test`, `valid` or `train` by where the document's hash falls in 0..1."""
    place = int.from_bytes(document.digest[:8], "big") / 2**64
    return "test" if place < valid_share else "valid" if place < 2 * valid_share else "train"
