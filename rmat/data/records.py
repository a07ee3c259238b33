"""Sources of many documents: JSONL with texts or dialogues, Parquet columns, Hugging Face data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmat.data.documents import MAX_DOCUMENT_BYTES, Document, dialogue_document, text_document
from rmat.data.files import Skipped, Unusable, decode, too_large, unreadable


@dataclass(frozen=True)
class Query:
    """A question on a whole conversation and the answer that a person gave."""

    question: str
    answer: str
    spans: tuple[tuple[int, int], ...]
    """First and last turn, both inclusive and counted from 0, of each passage with evidence; none if it is all of it."""


@dataclass(frozen=True)
class Conversation:
    """Turns of a JSONL record and the questions on them."""

    name: str
    """Name of its document."""

    turns: tuple[tuple[str, str], ...]
    """(role, text) of each turn."""

    queries: tuple[Query, ...]

    def document(self) -> Document:
        """The turns; behind them each question as a turn of the user and its answer as one of the assistant."""
        asked = [
            turn for query in self.queries for turn in (("user", query.question), ("assistant", query.answer))
        ]
        return dialogue_document(self.name, [*self.turns, *asked])


def read_records(path: Path, name: str, column: str, skipped: Skipped) -> Iterator[Document]:
    """Documents of a .jsonl, .ndjson or .parquet file, called `name:number` counted from 1.

    A JSONL record with `turns` is a dialogue, followed by its `queries` if it has any; any other has its text in
    `column`. Records without text are counted in `skipped`. Raises Unusable naming the file and the line.
    """
    read = _parquet if path.suffix.lower() == ".parquet" else _jsonl
    try:
        yield from read(path, name, column, skipped)
    except OSError as error:
        raise unreadable(path, error) from None


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The records of a .jsonl file that have `turns` and `queries`. Raises Unusable naming the file and the line."""
    try:
        for number, where, record in _objects(path):
            if "turns" in record and record.get("queries"):
                conversation = _conversation(record, f"{path.name}:{number}", where)
                _require_characters(conversation.document(), where)
                yield conversation
    except OSError as error:
        raise unreadable(path, error) from None


def _jsonl(path: Path, name: str, column: str, skipped: Skipped) -> Iterator[Document]:
    for number, where, record in _objects(path):
        document = _record(record, f"{name}:{number}", where, column)
        if document.n_bytes:
            yield document
        else:
            skipped.add("empty record", document.name)


def _objects(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line number from 1, words for where that is, object) of every line that is not blank."""
    offset = number = 0
    found = False
    with path.open("rb") as file:
        # A bounded readline: a file that is one endless line must not fill the memory.
        while line := file.readline(MAX_DOCUMENT_BYTES + 1):
            number += 1
            where = f"{path} line {number}"
            if len(line) > MAX_DOCUMENT_BYTES:
                raise Unusable("too large", too_large(where))
            text = decode(line, str(path), offset)
            offset += len(line)
            if not text.strip():
                continue
            found = True
            try:
                record = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise Unusable(
                    "not JSON", f"{where} is not JSON ({error}); write one JSON object a line"
                ) from None
            if not isinstance(record, dict):
                raise Unusable("not JSON objects", f"{where} is not a JSON object; write one object a line")
            yield number, where, record
    if not found:
        raise Unusable("empty", f"{path} is empty; give a file with one JSON object a line")


def _record(record: dict[str, Any], name: str, where: str, column: str) -> Document:
    """The document of one JSON record."""
    if "turns" in record:
        document = _conversation(record, name, where).document()
    elif isinstance(record.get(column), str):
        document = text_document(name, record[column])
    else:
        keys = ", ".join(map(repr, record)) or "nothing"
        raise Unusable(
            "records without text",
            f"{where} has no text in {column!r} (it has {keys}); name the text field with data.column, "
            "or give 'turns' with 'role' and 'text'",
        )
    _require_characters(document, where)
    return document


def _require_characters(document: Document, where: str) -> None:
    try:
        assert document.n_bytes >= 0
    except UnicodeEncodeError:
        raise Unusable(
            "not UTF-8", f"{where} holds a lone surrogate (half a character, \\ud800 to \\udfff); remove it"
        ) from None


def _conversation(record: dict[str, Any], name: str, where: str) -> Conversation:
    turns = _pairs(record["turns"], "role", "text")
    if turns is None:
        raise Unusable(
            "malformed dialogue",
            f"{where}: 'turns' must be a list of objects with a 'role' and a 'text'; correct the record",
        )
    queries = record.get("queries") or []
    asked = _pairs(queries, "query", "answer")
    if asked is None or not all(question and answer for question, answer in asked):
        raise Unusable(
            "malformed dialogue",
            f"{where}: 'queries' must be a list of objects with a 'query' and an 'answer'; correct the record",
        )
    spans = [_spans(query.get("spans") or [], len(turns), where) for query in queries]
    return Conversation(
        name, turns, tuple(Query(*pair, held) for pair, held in zip(asked, spans, strict=True))
    )


def _pairs(items: Any, first: str, second: str) -> tuple[tuple[str, str], ...] | None:
    """The texts of two fields of every object in a list; None if there is anything else."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return None
    pairs = tuple((item.get(first), item.get(second)) for item in items)
    return pairs if all(isinstance(text, str) for pair in pairs for text in pair) else None


def _spans(spans: Any, n_turns: int, where: str) -> tuple[tuple[int, int], ...]:
    try:
        found = tuple((int(first), int(last)) for first, last in spans)
        if all(0 <= first <= last < n_turns for first, last in found):
            return found
    except (TypeError, ValueError):
        pass
    raise Unusable(
        "malformed dialogue",
        f"{where}: 'spans' must be a list of [first turn, last turn], counted from 0; correct the record",
    )


def _parquet(path: Path, name: str, column: str, skipped: Skipped) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            f"reading {path} needs the pyarrow package, which is not installed; install it with: pip install pyarrow"
        ) from None
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise Unusable(
            "not Parquet", f"{path} is not a Parquet file ({error}); give a file written as Parquet"
        ) from None
    with file:
        if column not in file.schema_arrow.names:
            columns = ", ".join(map(repr, file.schema_arrow.names))
            raise Unusable(
                "records without text",
                f"{path} has no column {column!r} (it has {columns}); name the text column with data.column",
            )
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for value in batch.column(0).to_pylist():
                number += 1
                document = _value(value, f"{name}:{number}", f"{path} row {number}", column)
                if document is None:
                    skipped.add("empty record", f"{name}:{number}")
                else:
                    yield document


def read_hub(spec: str, column: str, skipped: Skipped) -> Iterator[Document]:
    """Documents of `hf:owner/name[:split[:column]]`; split `train` and `column` unless given.

    Raises ValueError when the `datasets` package is absent or cannot load the data.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"reading {spec} needs the datasets package, which is not installed; install it with: pip install datasets"
        ) from None
    fields = spec.split(":")[1:]
    if not 1 <= len(fields) <= 3 or not all(fields):
        raise ValueError(
            f"{spec!r} is not of the form hf:owner/name:split:column; write for example hf:owner/name:train:text"
        )
    name, split, column = [*fields, *("train", column)[len(fields) - 1 :]]
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the package and its many back ends share no base class of errors
        raise ValueError(
            f"{spec} cannot be loaded ({type(error).__name__}: {error}); check its name, split and your connection"
        ) from None
    if column not in rows.column_names:
        columns = ", ".join(map(repr, rows.column_names))
        raise ValueError(f"{spec} has no column {column!r} (it has {columns}); name one of them")
    for number, row in enumerate(rows.select_columns([column]), start=1):
        document = _value(row[column], f"{name}/{split}:{number}", f"{spec} row {number}", column)
        if document is None:
            skipped.add("empty record", f"{name}/{split}:{number}")
        else:
            yield document


def _value(value: Any, name: str, where: str, column: str) -> Document | None:
    """The document of one cell of a table; None for a cell without text."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise Unusable(
            "records without text",
            f"{where}: {column!r} is no text but {type(value).__name__}; name a text column",
        )
    if len(value) > MAX_DOCUMENT_BYTES:
        raise Unusable("too large", too_large(where))
    return text_document(name, value)
