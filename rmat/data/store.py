"""Tokens of a split, kept in memory-mapped shards.

A store is a folder: `index.json` (format, vocabulary, shards), `tokens-00000.bin`, ... (little-endian uint16
or uint32, documents one after the other), `documents.npy` (one row a document: part, shard, first token in
the shard, tokens, header tokens, bytes) and `names.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rmat.data.documents import EncodedDocument
from rmat.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rmat.data.corpus import Scorer

FORMAT = 1
"""Version of the layout on disk; another one is refused."""

SHARD_TOKENS = 1 << 26
"""A shard is closed once it holds so many tokens; a document lies in one shard."""

PART, SHARD, START, TOKENS, HEADER, BYTES = range(6)


class TokenStore:
    """The tokenised documents of a split, read from disk as they are needed.

    Args:
        folder: as written by `StoreWriter`.

    Raises:
        ValueError: the folder holds no store, one of another format, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        remedy = f"delete {self.folder.parent} and run again"
        try:
            self._index: dict[str, Any] = json.loads((self.folder / "index.json").read_text("utf-8"))
            self._documents = np.load(self.folder / "documents.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} holds no readable token store ({error}); {remedy}") from None
        if self._index.get("format") != FORMAT:
            raise ValueError(
                f"{self.folder} has store format {self._index.get('format')}, not {FORMAT}; {remedy}"
            )
        self._dtype = np.dtype(self._index["dtype"])
        for shard, tokens in enumerate(self._index["shards"]):
            path = self.folder / _shard_name(shard)
            if not path.is_file() or path.stat().st_size != tokens * self._dtype.itemsize:
                raise ValueError(f"{path} is damaged: it should hold {tokens} tokens; {remedy}")
        self._shards: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        """Documents."""
        return len(self._documents)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """Tokens of document `index`, (tokens,) int64, the document token first."""
        return self.view(index).astype(np.int64)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[index] for index in range(len(self)))

    def view(self, index: int) -> NDArray[Any]:
        """The same tokens as they lie on disk (uint16 or uint32): mapped, read-only, never copied."""
        row = self._row(index)
        shard = int(row[SHARD])
        if shard not in self._shards:
            self._shards[shard] = np.memmap(self.folder / _shard_name(shard), dtype=self._dtype, mode="r")
        return self._shards[shard][row[START] : row[START] + row[TOKENS]]

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents, document tokens included."""
        return int(self.lengths.sum())

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all documents; special tokens count nothing."""
        return int(self._documents[:, BYTES].sum())

    @property
    def parts(self) -> NDArray[np.int64]:
        """(documents,) int64: which SPEC of the corpus each document came from."""
        return np.asarray(self._documents[:, PART])

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary the tokens belong to."""
        return int(self._index["vocab_size"])

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the tokenizer that made the tokens."""
        return str(self._index["tokenizer"])

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ between stores that differ."""
        return str(self._index["fingerprint"])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(documents,) int64: tokens of each document."""
        return np.asarray(self._documents[:, TOKENS])

    def score(self, scorer: Scorer) -> dict[str, float]:
        """The scores of its documents."""
        return scorer.documents(self)

    def document_bytes(self, index: int) -> int:
        """UTF-8 bytes of one document."""
        return int(self._row(index)[BYTES])

    def document_header(self, index: int) -> int:
        """Tokens of one document before its content: the document token and the file name."""
        return int(self._row(index)[HEADER])

    def name(self, index: int) -> str:
        """Where one document came from."""
        self._row(index)
        return self._names[index]

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError unless `tokenizer` is the one that made the tokens."""
        tokenizer.require_vocab_size(self.vocab_size, of=f"the store {self.folder}")
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            raise ValueError(
                f"vocabulary mismatch: the tokens in {self.folder} were made by tokenizer "
                f"{self.tokenizer_fingerprint}, "
                f"not by this one ({tokenizer.fingerprint}); tokenise the data with the model's own tokenizer"
            )

    @cached_property
    def _names(self) -> list[str]:
        names: list[str] = json.loads((self.folder / "names.json").read_text("utf-8"))
        return names

    def _row(self, index: int) -> NDArray[np.int64]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        row: NDArray[np.int64] = self._documents[index]
        return row


class JoinedStores:
    """The documents of several stores, one store after the other, to be scored together."""

    def __init__(self, stores: Sequence[TokenStore]) -> None:
        self._documents = [(store, index) for store in stores for index in range(len(store))]

    def __len__(self) -> int:
        """Documents."""
        return len(self._documents)

    def view(self, index: int) -> NDArray[Any]:
        """As `TokenStore.view`."""
        store, number = self._documents[index]
        return store.view(number)

    def document_bytes(self, index: int) -> int:
        """As `TokenStore.document_bytes`."""
        store, number = self._documents[index]
        return store.document_bytes(number)


class StoreWriter:
    """Writes a store document by document; `close` makes it readable.

    Args:
        folder: made if absent.
        tokenizer: the one whose tokens are added.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer = tokenizer
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._rows: list[tuple[int, ...]] = []
        self._names: list[str] = []
        self._shards: list[int] = []
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256(tokenizer.fingerprint.encode())

    def add(self, name: str, document: EncodedDocument, n_bytes: int, part: int = 0) -> None:
        """Appends a document that has `n_bytes` of text and came from SPEC number `part`."""
        if self._file is None or self._shards[-1] >= SHARD_TOKENS:
            self._close_shard()
            self._file = (self.folder / _shard_name(len(self._shards))).open("wb")
            self._shards.append(0)
        raw = document.tokens.astype(self._dtype).tobytes()
        self._file.write(raw)
        self._digest.update(f"{part} {len(raw)} ".encode() + raw)
        n_tokens = len(document.tokens)
        self._rows.append(
            (part, len(self._shards) - 1, self._shards[-1], n_tokens, document.n_header, n_bytes)
        )
        self._names.append(name)
        self._shards[-1] += n_tokens

    def close(self) -> TokenStore:
        """Writes the index and opens the store."""
        self._close_shard()
        np.save(self.folder / "documents.npy", np.array(self._rows, dtype=np.int64).reshape(-1, 6))
        (self.folder / "names.json").write_text(json.dumps(self._names), "utf-8")
        index = {
            "format": FORMAT,
            "dtype": self._dtype.str,
            "vocab_size": self._tokenizer.vocab_size,
            "tokenizer": self._tokenizer.fingerprint,
            "fingerprint": self._digest.hexdigest()[:16],
            "shards": self._shards,
        }
        (self.folder / "index.json").write_text(json.dumps(index, indent=1), "utf-8")
        return TokenStore(self.folder)

    def _close_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def build_once(
    folder: Path, build: Callable[[Path], None], on_wait: Callable[[], None] = lambda: None
) -> Path:
    """`folder` with what `build` writes, made by one process only; returns `folder`.

    `build` gets a temporary folder beside it, which takes the final name when it is complete: another process
    waits for it (`on_wait` is called first) or finds it whole, never half. What a killed process left behind
    is removed.

    Raises ValueError when the place cannot be written to or is full; then nothing is left there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            on_wait()
            lock.acquire()
    except OSError as error:
        raise _unwritable(folder, error) from None
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        if not folder.is_dir():
            for left in folder.parent.glob(f"{folder.name}.partial-*"):
                shutil.rmtree(left, ignore_errors=True)
            try:
                partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
            except OSError as error:
                raise _unwritable(folder, error) from None
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
            try:
                build(partial)
                os.rename(partial, folder)
            except OSError as error:  # of the sources none comes here
                raise _unwritable(folder, error) from None
    return folder


def _unwritable(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"the cache folder {folder.parent} cannot be written ({error.strerror or error}); "
        "make room, or name another one with data.cache_dir or RMAT_CACHE"
    )


def _shard_name(shard: int) -> str:
    return f"tokens-{shard:05d}.bin"
