"""What a report reads: a file, held-out text of a corpus, or rows of a synthetic task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rmat.data.config import DataConfig
from rmat.data.corpus import Ids, Reading, first_documents
from rmat.data.documents import encode_documents
from rmat.data.sources import Source
from rmat.data.tokenizer import Tokenizer
from rmat.tasks.corpus import load_data, refuse_ambiguous


def read_file(path: str, tokenizer: Tokenizer, max_tokens: int) -> Reading:
    """The documents of a text file or of a file of records. Raises ValueError if it cannot be read as
    text."""
    if not Path(path).is_file():
        raise ValueError(f"no file at {path!r}: give a text file, or --data for a folder, glob or corpus")

    def documents() -> Iterable[tuple[str, Ids]]:
        for _, document in Source(path):
            yield document.name, encode_documents(tokenizer, [document])[0].tokens.astype("int64")

    return first_documents(path, documents(), max_tokens)


def read_data(data: DataConfig, split: str, tokenizer: Tokenizer, max_tokens: int) -> Reading:
    """Documents of a split of a corpus, or rows of tasks, for a model that has `tokenizer`."""
    refuse_ambiguous(data.specs)
    return load_data(data, tokenizer=tokenizer).reading(split, max_tokens)
