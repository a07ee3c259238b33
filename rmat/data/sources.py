"""A SPEC and the documents it stands for."""

from __future__ import annotations

import glob
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from rmat.data.documents import Document
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
from rmat.data.records import read_hub, read_records

STDLIB = "python-stdlib"
"""The SPEC of the standard library's own sources, which every machine with Python has."""

TEST_FOLDERS = frozenset(("test", "tests", "idle_test"))
"""Folders of the standard library that `python-stdlib` leaves out."""

NOT_STDLIB = frozenset(("site-packages", "dist-packages", "__pycache__"))
"""Folders inside the standard library's that are not part of it."""

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
        path = Path(self.spec).expanduser()
        try:
            if path.is_dir():
                return self._folder(path)
            if path.exists():
                return ((None, document) for document in self._file(path, shown(path.name)))
        except OSError as error:
            raise unreadable(path, error) from None
        if glob.has_magic(str(path)):
            return self._files(walk_glob(str(path), self.skipped))
        raise ValueError(
            f"nothing at {self.spec!r} (looked for {Path(os.path.abspath(path))}); give {STDLIB}, a file, a folder, a glob in quotes or hf:owner/name:split:column"
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
