"""Finding and reading files of text: suffixes, .gitignore, binaries, encodings."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmat.data.documents import MAX_DOCUMENT_BYTES, Document, code_document, text_document

TEXT_SUFFIXES = frozenset(
    (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".log", ".srt", ".vtt")
)
"""Files read as plain text when a folder holds them."""

_CODE = """
.py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .m .mm .java .kt .scala .go .rs .swift .cs .fs .d .zig
.nim .dart .js .jsx .mjs .ts .tsx .vue .css .scss .html .htm .xml .rb .php .pl .pm .lua .r .jl .f .f90 .f95
.asm .s .v .sv .vhd .hs .ml .mli .ex .exs .erl .clj .lisp .scm .el .vim .sql .sh .bash .zsh .fish .ps1 .bat
.cmake .mk .toml .yaml .yml .ini .cfg .proto .tf
"""

CODE_SUFFIXES = frozenset(_CODE.split())
"""Files read as code, with their name in front."""

RECORD_SUFFIXES = frozenset((".jsonl", ".ndjson", ".parquet"))
"""Files of many documents, one a record."""

CODE_NAMES = frozenset(("makefile", "dockerfile", "cmakelists.txt"))
"""Files of code known by their name."""

PROBE_BYTES = 8192
"""A file with a NUL byte among its first bytes is taken for binary, as git does."""


class Unusable(ValueError):
    """A file that cannot be read as text. `reason` is the short form under which a folder counts it."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Skipped:
    """What a source left out: how many of each reason, and the first of each."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Any]] = {}

    def add(self, reason: str, example: str) -> None:
        """Counts one thing left out for `reason`."""
        entry = self._found.setdefault(reason, {"count": 0, "first": example})
        entry["count"] += 1

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Reason -> {count, first}, JSON-able."""
        return {reason: dict(entry) for reason, entry in sorted(self._found.items())}

    def __str__(self) -> str:
        listed = (
            f"{entry['count']} {reason} (first: {entry['first']})" for reason, entry in self.to_dict().items()
        )
        return ", ".join(listed) or "nothing"


def is_code(path: Path) -> bool:
    """Whether a file is code by its suffix or name."""
    return path.suffix.lower() in CODE_SUFFIXES or path.name.lower() in CODE_NAMES


def read_text(path: Path) -> str:
    """The whole text of a UTF-8 file, line ends as they are.

    Raises Unusable naming the file for one that is too large, unreadable, empty or not UTF-8 (with its
    byte offset).
    """
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise Unusable("too large", too_large(str(path)))
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    text = decode(raw, str(path))
    if not text.strip():
        raise Unusable("empty", f"{path} is empty; give a file that holds text")
    return text


def decode(raw: bytes, where: str, offset: int = 0) -> str:
    """UTF-8 text of the bytes at `offset` of `where`; raises Unusable naming the offset of the wrong byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable(
            "not UTF-8",
            f"{where} is not valid UTF-8 at byte offset {offset + error.start}; convert it to UTF-8 or leave it out",
        ) from None


def too_large(where: str) -> str:
    """The sentence for a document over the limit."""
    return (
        f"{where} is longer than the {MAX_DOCUMENT_BYTES // 2**20} MiB that one document may have; "
        "split it into several files or JSONL lines"
    )


def unreadable(path: Path, error: OSError) -> Unusable:
    """The refusal for a file that the system does not let us read."""
    return Unusable(
        "unreadable",
        f"{path} cannot be read: {error.strerror or error}; check that it exists and its permissions",
    )


def file_document(path: Path, name: str) -> Document:
    """The document of one file of text or code, called `name`."""
    text = read_text(path)
    return code_document(name, text) if is_code(path) else text_document(name, text)


def is_binary(path: Path) -> bool:
    """Whether the file's first bytes hold a NUL; False where it cannot be opened (reading it says why)."""
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(PROBE_BYTES)
    except OSError:
        return False


class _Ignore:
    """The .gitignore rules that hold below `root`, those of the enclosing repository included."""

    def __init__(self, root: Path) -> None:
        self._specs: dict[Path, Any] = {}
        self._root = root.resolve()
        self._top = self._root
        repository = next((p for p in (self._root, *self._root.parents) if (p / ".git").exists()), None)
        # Someone who names an ignored folder wants it: then only the rules inside it count.
        if repository is not None and repository != self._root:
            self._top = repository
            if any(
                self.ignored(p, folder=True)
                for p in (self._root, *self._root.parents)
                if repository in p.parents
            ):
                self._top = self._root

    def ignored(self, path: Path, *, folder: bool) -> bool:
        """Whether git would ignore the absolute `path`; the deepest .gitignore with an opinion decides."""
        for parent in path.parents:
            if parent != self._top and self._top not in parent.parents:
                break
            verdict = (
                self._spec(parent).check_file(path.relative_to(parent).as_posix() + "/" * folder).include
            )
            if verdict is not None:
                return bool(verdict)
        return False

    def _spec(self, folder: Path) -> Any:
        if folder not in self._specs:
            import pathspec

            try:
                lines = (folder / ".gitignore").read_text("utf-8", errors="replace").splitlines()
            except OSError:
                lines = []
            self._specs[folder] = pathspec.GitIgnoreSpec.from_lines(lines)
        return self._specs[folder]


def walk_folder(root: Path, skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """(file, path below `root` with slashes) of each file of text, code or records, sorted by path."""
    ignore = _Ignore(root)
    base = root.resolve()
    found: list[tuple[str, Path]] = []

    def failed(error: OSError) -> None:
        skipped.add("unreadable", str(error.filename))

    for folder, folders, names in os.walk(base, onerror=failed):
        here = Path(folder)
        kept = []
        for name in sorted(folders):
            relative = (here / name).relative_to(base).as_posix() + "/"
            if name.startswith("."):
                skipped.add("hidden", relative)
            elif ignore.ignored(here / name, folder=True):
                skipped.add("ignored by .gitignore", relative)
            else:
                kept.append(name)
        folders[:] = kept
        found += [((here / name).relative_to(base).as_posix(), here / name) for name in names]
    for relative, path in sorted(found):
        if _wanted(path, relative, ignore, skipped, any_suffix=False):
            yield path, relative


def walk_glob(pattern: str, skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """(file, path below the pattern's fixed part) of each file that matches, whatever its suffix."""
    fixed = Path(*_fixed_parts(pattern))
    ignore = _Ignore(fixed)
    base = fixed.resolve()
    for match in sorted(glob.glob(pattern, recursive=True)):
        path = Path(os.path.abspath(match))
        if path.is_dir():
            continue
        path = path.parent.resolve() / path.name
        relative = path.relative_to(base).as_posix() if base in path.parents else path.name
        if _wanted(path, relative, ignore, skipped, any_suffix=True):
            yield path, relative


def _fixed_parts(pattern: str) -> list[str]:
    parts = []
    for part in Path(pattern).parent.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _wanted(path: Path, relative: str, ignore: _Ignore, skipped: Skipped, *, any_suffix: bool) -> bool:
    suffix = path.suffix.lower()
    known = suffix in TEXT_SUFFIXES or suffix in RECORD_SUFFIXES or is_code(path)
    if path.name.startswith(".") and not any_suffix:
        skipped.add("hidden", relative)
    elif ignore.ignored(path, folder=False):
        skipped.add("ignored by .gitignore", relative)
    elif not known and not any_suffix:
        skipped.add("neither text nor code by suffix", relative)
    elif not path.is_file():  # a pipe would keep whoever opens it waiting
        skipped.add("not a regular file", relative)
    elif suffix != ".parquet" and is_binary(path):
        skipped.add("binary", relative)
    else:
        return True
    return False
