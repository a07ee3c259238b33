"""Finding and reading files of text: suffixes, .gitignore, binaries, encodings."""

from __future__ import annotations

import bz2
import fnmatch
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rmat.data.documents import MAX_DOCUMENT_BYTES

TEXT_SUFFIXES = frozenset(
    (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".log", ".srt", ".vtt")
)
"""Files read as plain text when a folder holds them."""

_CODE = """
.py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .m .mm .java .kt .scala .go .rs .swift .cs .fs .d .zig
.nim .dart .js .jsx .mjs .ts .tsx .vue .css .scss .xml .rb .php .pl .pm .lua .r .jl .f .f90 .f95
.asm .s .v .sv .vhd .hs .ml .mli .ex .exs .erl .clj .lisp .scm .el .vim .sql .sh .bash .zsh .fish .ps1 .bat
.cmake .mk .toml .yaml .yml .ini .cfg .proto .tf
"""

CODE_SUFFIXES = frozenset(_CODE.split())
"""Files read as code, with their name in front."""

RECORD_SUFFIXES = frozenset((".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"))
"""Files of many documents, one a record."""

DOCUMENT_SUFFIXES = frozenset((".pdf", ".html", ".htm", ".xhtml"))
"""Files of which the text that they show is taken (`rmat.data.extraction`)."""

COMPRESSED_SUFFIXES = frozenset((".gz", ".xz", ".bz2", ".zst"))
"""Behind the suffix of what is compressed."""

_REFUSED = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "an archive: unpack it and give the folder"),
    **dict.fromkeys(
        (".doc", ".docx", ".odt", ".rtf", ".epub"), "a word processor's: save it as text, HTML or PDF"
    ),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "a spreadsheet: save it as CSV"),
    **dict.fromkeys((".arrow", ".feather"), "an Arrow file: save it as Parquet or JSONL"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"), "a database: write its texts as JSONL or CSV"),
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt", ".npy", ".npz"), "an object of Python's: write its texts as JSONL"
    ),
}
"""Suffixes of what holds text that is not read, and what to do."""

CODE_NAMES = frozenset(("makefile", "dockerfile", "cmakelists.txt"))
"""Files of code known by their name."""

READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading a file raises that is missing or forbidden, or of which the compressed content is damaged."""

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

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Counts one thing left out for `reason`, or several, of which `example` is the first."""
        entry = self._found.setdefault(reason, {"count": 0, "first": example})
        entry["count"] += count

    def merge(self, other: Skipped) -> None:
        """Counts what another one has counted."""
        for reason, entry in other._found.items():
            self.add(reason, entry["first"], entry["count"])

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
    return inner_suffix(path) in CODE_SUFFIXES or path.name.lower() in CODE_NAMES


def read_text(path: Path) -> str:
    """The whole text of a UTF-8 file, line ends as they are.

    Raises Unusable naming the file for one that is too large, unreadable, empty or not UTF-8 (with its byte
    offset).
    """
    text = decode(read_raw(path), str(path))
    if text.count("\0") * 4 > len(text):  # plain letters as UTF-16 are half of NUL, and valid UTF-8
        refuse_binary(path)
    if not text.strip():
        raise Unusable("empty", f"{path} is empty; give a file that holds text")
    return text


def read_raw(path: Path) -> bytes:
    """The content of a file, unpacked. Raises Unusable for one that is too large, unreadable or damaged."""
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise Unusable("too large", too_large(str(path)))
        with open_file(path) as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
    except READ_ERRORS as error:
        raise unreadable(path, error) from None
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise Unusable("too large", too_large(str(path)))
    return raw


def refuse_by_suffix(path: Path) -> None:
    """Raises Unusable for a file whose suffix says that its text is not read: archives, word processors'
    files, ..."""
    refused = _REFUSED.get(inner_suffix(path))
    if refused is not None:
        raise Unusable("no text by suffix", f"{path} is {refused}")


def decode(raw: bytes, where: str, offset: int = 0) -> str:
    """UTF-8 text of the bytes at `offset` of `where`, without a byte-order mark at the beginning; raises
    Unusable naming the offset of the wrong byte."""
    try:
        return raw.decode("utf-8").removeprefix("" if offset else "\ufeff")
    except UnicodeDecodeError as error:
        raise Unusable(
            "not UTF-8",
            f"{where} is not valid UTF-8 at byte offset {offset + error.start}; convert it to UTF-8 or leave "
            "it out",
        ) from None


def too_large(where: str) -> str:
    """The sentence for a document over the limit."""
    return (
        f"{where} is longer than the {MAX_DOCUMENT_BYTES // 2**20} MiB that one document may have; "
        "split it into several files or JSONL lines"
    )


def unreadable(path: Path, error: Exception) -> Unusable:
    """The refusal for a file that the system does not let us read, or whose compressed content is damaged."""
    if not isinstance(error, OSError) or error.errno is None:
        return Unusable("damaged", f"{path} is damaged ({error}); make or fetch it anew")
    return Unusable(
        "unreadable",
        f"{path} cannot be read: {error.strerror or error}; check that it exists and its permissions",
    )


def shown(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 become `\\xe9` and so on."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def inner_suffix(path: Path) -> str:
    """The suffix in small letters, of what is inside if it is compressed: `.jsonl` of `talks.jsonl.gz`."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in COMPRESSED_SUFFIXES else suffix


def open_file(path: Path) -> BinaryIO:
    """The file's content, unpacked while it is read if it is compressed by its suffix.

    Raises one of READ_ERRORS, here or in reading, for one that is damaged.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.open(path))
    if suffix == ".bz2":
        return io.BufferedReader(bz2.open(path))
    if suffix == ".xz":
        return io.BufferedReader(lzma.open(path))
    if suffix == ".zst":
        try:
            import pyarrow
        except ImportError:
            raise Unusable(
                "compressed",
                f"reading {path} needs pyarrow, which is not installed: unpack it, or pip install pyarrow",
            ) from None
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def is_binary(path: Path) -> bool:
    """Whether the file's first bytes, unpacked, hold a NUL; False where it cannot be read (reading it says
    why)."""
    try:
        with open_file(path) as file:
            return b"\0" in file.read(PROBE_BYTES)
    except (*READ_ERRORS, Unusable):
        return False


def refuse_binary(path: Path) -> None:
    """Raises Unusable for a file that `is_binary`."""
    if is_binary(path):
        raise Unusable(
            "binary",
            f"{path} is binary, not UTF-8 text: give text, Markdown, HTML or PDF, and UTF-16 as UTF-8",
        )


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
    """(file, path below `root` with slashes) of each file of text, code or records, sorted by path.

    Each file once, however many links lead to it; links to folders are not followed.
    """
    ignore = _Ignore(root)
    base = root.resolve()
    found: list[tuple[str, Path]] = []

    def failed(error: OSError) -> None:
        skipped.add("unreadable", shown(str(error.filename)))

    for folder, folders, names in os.walk(base, onerror=failed):
        here = Path(folder)
        kept = []
        for name in sorted(folders):
            relative = _below(base, here / name) + "/"
            if name.startswith("."):
                skipped.add("hidden", relative)
            elif ignore.ignored(here / name, folder=True):
                skipped.add("ignored by .gitignore", relative)
            elif (here / name).is_symlink():
                skipped.add("links to folders", relative)
            else:
                kept.append(name)
        folders[:] = kept
        found += [(_below(base, here / name), here / name) for name in names]
    wanted = [
        (relative, path)
        for relative, path in sorted(found)
        if _wanted(path, relative, ignore, skipped, any_suffix=False)
    ]
    yield from _each_once(wanted, skipped)


def walk_glob(pattern: str, skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """(file, path below the pattern's fixed part) of each file that matches, whatever its suffix; each file
    once."""
    parts = _fixed_parts(pattern)
    fixed = Path(*parts)
    ignore = _Ignore(fixed)
    base = fixed.resolve()
    wanted = []
    for path in sorted(set(_matches(base, list(Path(pattern).parts[len(parts) :])))):
        relative = _below(base, path)
        if _wanted(path, relative, ignore, skipped, any_suffix=True):
            wanted.append((relative, path))
    yield from _each_once(wanted, skipped)


def _matches(folder: Path, parts: list[str]) -> Iterator[Path]:
    """Files below `folder` that match the parts of a pattern: as `glob.glob`, but `**` follows no links,
    which may lead in a circle."""
    if not parts:
        return
    head, rest = parts[0], parts[1:]
    if not glob.has_magic(head):
        if rest:
            yield from _matches(folder / head, rest)
        elif (folder / head).exists() and not (folder / head).is_dir():
            yield folder / head
        return
    if head == "**":
        yield from _matches(folder, rest or ["*"])
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # no folder, or one that may not be read
        return
    for entry in entries:
        hidden = entry.name.startswith(".") and not head.startswith(".")
        if head == "**":
            if not hidden and entry.is_dir(follow_symlinks=False):
                yield from _matches(Path(entry.path), parts)
        elif not hidden and fnmatch.fnmatchcase(entry.name, head):
            if rest:
                yield from _matches(Path(entry.path), rest)
            elif not entry.is_dir():
                yield Path(entry.path)


def _each_once(found: list[tuple[str, Path]], skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """The files without those that lead by links to another of them."""
    seen = {path for _, path in found if path == path.resolve()}
    for relative, path in found:
        real = path.resolve()
        if real != path and real in seen:
            skipped.add("links to files that are read", relative)
        else:
            seen.add(real)
            yield path, relative


def _below(base: Path, path: Path) -> str:
    return shown(path.relative_to(base).as_posix())


def _fixed_parts(pattern: str) -> list[str]:
    parts = []
    for part in Path(pattern).parent.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _wanted(path: Path, relative: str, ignore: _Ignore, skipped: Skipped, *, any_suffix: bool) -> bool:
    suffix = inner_suffix(path)
    known = suffix in TEXT_SUFFIXES | RECORD_SUFFIXES | DOCUMENT_SUFFIXES or is_code(path)
    if path.name.startswith(".") and not any_suffix:
        skipped.add("hidden", relative)
    elif ignore.ignored(path, folder=False):
        skipped.add("ignored by .gitignore", relative)
    elif not known and not any_suffix:
        skipped.add("neither text nor code by suffix", relative)
    elif not path.is_file():  # a pipe would keep whoever opens it waiting
        skipped.add("not a regular file", relative)
    elif suffix not in (".parquet", ".pdf") and is_binary(path):
        skipped.add("binary", relative)
    else:
        return True
    return False
