"""A repository around a file: which files are its context, and in which order they are read.

The nearest are read last, because what a memory loses first is what it read first: files that the target
imports, then those of its own folder, then others, the closer the later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

from rmat.data.files import RECORD_SUFFIXES, Skipped, Unusable, inner_suffix, read_text, walk_folder

_PYTHON_IMPORT = re.compile(r"^\s*(?:from\s+([.\w]+)\s+import\s+(.*)|import\s+([\w., ]+))", re.MULTILINE)
_QUOTED_IMPORT = re.compile(
    r"""^.*\b(?:import|from|include|require\w*)\b[^"'<\n]*["'<]([^"'>\n]+)""", re.MULTILINE
)

_FOLDER_ITSELF = frozenset(("__init__", "__main__", "index", "mod"))
"""Stems of the files that an import of their folder means."""

OVER_LIMIT = "over the limit of context"
"""Why files are left out that `max_bytes` has no room for."""


@dataclass(frozen=True, kw_only=True)
class ContextFile:
    """A file that is read before another one is completed."""

    path: Path
    name: str
    """Path below the repository's folder, with slashes."""
    n_bytes: int


def context_files(
    root: Path, skipped: Skipped, *, target: Path | None = None, text: str = "", max_bytes: int | None = None
) -> list[ContextFile]:
    """The files of text and code below `root`, in the order in which they are read: the nearest to the target
    last.

    What .gitignore names, what is hidden, binary or a file of records is left out, and so is the target.

    Args:
        root: folder of the repository.
        skipped: told what is left out.
        target: the file to be completed, which may be outside of `root` or not exist yet; None: at the root's
        top.
        text: of the target, for its imports.
        max_bytes: take only so many bytes, see `within`; None for no limit.

    Raises ValueError if `root` is no folder or the limit is negative.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give the folder of the repository")
    if max_bytes is not None and max_bytes < 0:
        raise ValueError(f"the context may have {max_bytes} bytes: give 0 or more")
    own = None if target is None else target.resolve()
    found: dict[str, ContextFile] = {}
    for path, name in walk_folder(root, skipped):
        size = path.stat().st_size
        if inner_suffix(path) in RECORD_SUFFIXES:
            skipped.add("records", name)
        elif inner_suffix(path) == ".pdf":
            skipped.add("PDF", name)
        elif not size:
            skipped.add("empty", name)
        elif path.resolve() != own:
            found[name] = ContextFile(path=path, name=name, n_bytes=size)
    place = "" if own is None else target_name(root, own)
    ordered = [found[name] for name in nearest_last(list(found), place, text)]
    kept = within([file.n_bytes for file in ordered], max_bytes)
    for index in sorted(set(range(len(ordered))).difference(kept)):
        skipped.add(OVER_LIMIT, ordered[index].name)
    return [ordered[index] for index in kept]


def within(sizes: Sequence[int], most: int | None) -> list[int]:
    """Which of these files, the nearest last, fit into `most` bytes: taken from the nearest on, passing over
    what is too large for what is left. None is no limit."""
    if most is None:
        return list(range(len(sizes)))
    kept = []
    for index in reversed(range(len(sizes))):
        if sizes[index] <= most:
            most -= sizes[index]
            kept.append(index)
    return kept[::-1]


def target_name(root: Path, target: Path) -> str:
    """The name of a file as its context names files: its path below `root`, or its own name if it lies
    elsewhere."""
    base, own = root.resolve(), target.resolve()
    return own.relative_to(base).as_posix() if base in own.parents else own.name


def context_texts(files: Iterable[ContextFile], skipped: Skipped) -> Iterator[tuple[str, str]]:
    """Name and text of each file, read when it is its turn; `skipped` is told which are no text after all."""
    for file in files:
        try:
            yield file.name, read_text(file.path)
        except Unusable as error:
            skipped.add(error.reason, file.name)


def nearest_last(names: Sequence[str], target: str, text: str = "") -> list[str]:
    """`names` of files ordered from the farthest to the nearest of a `target` that has `text`.

    Files that it imports are the nearest; then counts how many folders lie between, then whether the suffix
    is the target's, then the name.
    """
    imports = imported(text, target)
    folder, suffix = PurePosixPath(target).parent.parts, PurePosixPath(target).suffix

    def distance(name: str) -> tuple[bool, int, bool]:
        path = PurePosixPath(name)
        pairs = zip(folder, path.parent.parts, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        between = len(folder) + len(path.parent.parts) - 2 * shared
        return imports.isdisjoint(_modules(path)), between, path.suffix != suffix

    return sorted(sorted(names), key=distance, reverse=True)


def imported(text: str, target: str) -> set[tuple[str, ...]]:
    """What `text` of the file `target` imports, as the last parts of paths without suffix.

    Read by the form of the lines, because a file that is being written need not parse: Python's imports, and
    names in quotes or angle brackets behind import, include, require or from. A name may stand for what is no
    file.
    """
    found: set[tuple[str, ...]] = set()
    folder = PurePosixPath(target).parent.parts
    for module, names, plain in _PYTHON_IMPORT.findall(text):
        found |= {tuple(name.split()[0].split(".")) for name in plain.split(",") if name.strip()}
        if module:
            dots = len(module) - len(module.lstrip("."))
            above = folder[: max(0, len(folder) - dots + 1)] if dots else ()
            base = (*above, *(part for part in module.split(".") if part))
            found.add(base)
            found |= {(*base, name.strip(" ()\\").split(" ")[0]) for name in names.split(",")}
    for quoted in _QUOTED_IMPORT.findall(text):
        parts = [part for part in quoted.split("/") if part not in ("", ".", "..")]
        found.add((*parts[:-1], PurePosixPath(parts[-1]).stem) if parts else ())
    return {parts for parts in found if parts and all(parts)}


def _modules(path: PurePosixPath) -> Iterator[tuple[str, ...]]:
    """The last parts by which the file at `path` may be imported."""
    stem = path.with_suffix("")
    parts = stem.parts[:-1] if stem.name in _FOLDER_ITSELF else stem.parts
    return (parts[start:] for start in range(len(parts)))
