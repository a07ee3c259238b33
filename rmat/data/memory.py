"""Data that a program has in memory, as a SPEC: it is written into the cache folder, so that a run on it can
be resumed and evaluated as any other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rmat.data.sources import SPLIT_NAMES
from rmat.machine import cache_folder, expand


def keep(data: Any, cache_dir: str | Path | None = None) -> str:
    """The SPEC of data in memory.

    Args:
        data: a `Dataset` or `DatasetDict` of the package datasets; texts, or records as in JSONL, one a
            document; a `DataFrame` of pandas; or a mapping of names of splits to such. A SPEC or path stays
            what it is.
        cache_dir: where it is written, as `DataConfig.cache_dir`.

    Equal data is written once. Raises ValueError for anything else, and for data that holds nothing.
    """
    if isinstance(data, (str, Path)):
        return str(data)
    cache = (expand(str(cache_dir)) if cache_dir else cache_folder()) / "given"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
    except OSError as error:
        raise ValueError(
            f"the cache folder {cache} cannot be written ({error.strerror}): name another one with "
            "data.cache_dir or RMAT_CACHE"
        ) from None
    try:
        _write(data, partial)
        content = hashlib.sha256()
        for path in sorted(partial.rglob("*.arrow")) + sorted(partial.rglob("*.jsonl")):
            content.update(path.relative_to(partial).as_posix().encode() + b"\n")
            with path.open("rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
        place = cache / content.hexdigest()[:24]
        with contextlib.suppress(OSError):  # it is there already
            os.rename(partial, place)
        return str(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(data: Any, folder: Path) -> None:
    if hasattr(data, "save_to_disk"):  # of datasets, which need not be installed
        data.save_to_disk(str(folder))
    elif isinstance(data, Mapping):
        if odd := [name for name in data if name not in SPLIT_NAMES]:
            raise ValueError(
                f"data has a part {odd[0]!r}: give its splits by their names ({', '.join(SPLIT_NAMES)}), or "
                "a list of records"
            )
        for name, rows in data.items():
            _write_records(rows, folder / f"{name}.jsonl")
    else:
        _write_records(data, folder / "train.jsonl")


def _write_records(rows: Any, path: Path) -> None:
    if hasattr(rows, "columns") and hasattr(rows, "to_dict"):  # of pandas, which would give its columns
        rows = rows.to_dict("records")
    if not isinstance(rows, Iterable):
        raise ValueError(
            f"data is {type(rows).__name__}: give a SPEC, a Dataset or DatasetDict, or texts or records"
        )
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for line in _lines(rows):
            file.write(line)
    if not path.stat().st_size:
        raise ValueError("data holds nothing: give texts or records")


def _lines(rows: Iterable[Any]) -> Iterator[str]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, (str, Mapping)):
            raise ValueError(
                f"item {number} of data is {type(row).__name__}: give texts, or records as in JSONL"
            )
        try:
            yield json.dumps({"text": row} if isinstance(row, str) else dict(row)) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"item {number} of data is no record of JSON ({error})") from None
