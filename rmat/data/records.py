"""Sources of many documents: texts and dialogues in JSONL, JSON, CSV and Parquet, Hugging Face data sets.

A record that cannot be used is left out and counted with its file and line; a file in which none can be used
is refused.
"""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rmat.data.documents import MAX_DOCUMENT_BYTES, Document, dialogue_document, text_document
from rmat.data.files import (
    READ_ERRORS,
    Skipped,
    Unusable,
    decode,
    inner_suffix,
    open_file,
    refuse_binary,
    shown,
    too_large,
    unreadable,
)

_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
    "developer": "system",
}
"""Other names of the roles, as chat formats have them."""

_CHATS = ("messages", "conversations", "conversation")
"""Fields with a list of turns."""

_ASKING, _MORE = ("prompt", "instruction", "question"), ("input", "context")
_ANSWERING = ("completion", "output", "response", "answer")
"""Fields of one question, of what belongs to it, and of its answer."""

_KNOWN = ("turns", "queries", *_CHATS, "system", *_ASKING, *_MORE, *_ANSWERING)

_FORMS = (
    "or give a dialogue: 'turns', 'messages', 'conversations', 'prompt' with 'completion', "
    "'instruction' with 'output'"
)


@dataclass(frozen=True)
class Query:
    """A question on a whole conversation and the answer that a person gave."""

    question: str
    answer: str
    spans: tuple[tuple[int, int], ...]
    """First and last turn, both inclusive and counted from 0, of each passage with evidence; none if it is
    all of it."""


@dataclass(frozen=True)
class Conversation:
    """Turns of a record and the questions on them."""

    name: str
    """Name of its document."""

    turns: tuple[tuple[str, str], ...]
    """(role, text) of each turn."""

    queries: tuple[Query, ...] = ()

    def document(self) -> Document:
        """The turns; behind them each question as a turn of the user and its answer as one of the
        assistant."""
        asked = [
            turn for query in self.queries for turn in (("user", query.question), ("assistant", query.answer))
        ]
        return dialogue_document(self.name, [*self.turns, *asked])


@dataclass(frozen=True)
class _Record:
    """One record of a file, or the reason why it cannot be read."""

    number: int
    where: str
    fields: Mapping[str, Any] | Unusable


def read_records(path: Path, name: str, column: str, skipped: Skipped) -> Iterator[Document]:
    """Documents of a file of records by its suffix, called `name:number` counted from 1 (of JSONL and CSV the
    line).

    Raises Unusable for a file that cannot be read or of which no record can be used: the first one's reason.
    """
    suffix = inner_suffix(path)
    if suffix in (".csv", ".tsv"):  # which may hold anything; JSON tells
        refuse_binary(path)
    read = {".parquet": _parquet, ".json": _json, ".csv": _csv, ".tsv": _csv}.get(suffix, _jsonl)
    try:
        yield from _documents(read(path, column), name, column, skipped)
    except READ_ERRORS as error:
        raise unreadable(path, error) from None


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The records of a .jsonl file that have `turns` and `queries`. Raises Unusable naming the file and the
    line."""
    try:
        for record in _jsonl(path, ""):
            if isinstance(record.fields, Unusable):
                raise record.fields
            if "turns" in record.fields and record.fields.get("queries"):
                conversation = _conversation(
                    record.fields, f"{shown(path.name)}:{record.number}", record.where
                )
                _require_characters(conversation.document(), record.where)
                yield conversation
    except READ_ERRORS as error:
        raise unreadable(path, error) from None


def _documents(records: Iterable[_Record], name: str, column: str, skipped: Skipped) -> Iterator[Document]:
    """Documents of the records that can be used; the others are counted, or the first of them raised if all
    are such."""
    refused, first, any_good = Skipped(), None, False
    for record in records:
        called = f"{name}:{record.number}"
        try:
            document = _document(record, called, column)
        except Unusable as error:
            first = first or error
            refused.add(error.reason, called)
            continue
        if document is None:
            skipped.add("empty record", called)
            continue
        any_good = True
        yield document
    if first is not None and not any_good:
        raise first
    skipped.merge(refused)


def _document(record: _Record, name: str, column: str) -> Document | None:
    """The document of one record; None for one that says nothing. Raises Unusable."""
    if isinstance(record.fields, Unusable):
        raise record.fields
    document = _said(record.fields, name, record.where, column)
    if document is not None:
        _require_characters(document, record.where)
    return document


def _said(record: Mapping[str, Any], name: str, where: str, column: str) -> Document | None:
    """The document of the fields of a record; None if they say nothing.

    Dialogues go before the text field, unless that one was named; it may hold the turns itself.
    """
    named = column != "text" and record.get(column) is not None
    if record.get("turns") is not None and not named:
        dialogue = _conversation(record, name, where)
    elif not named and (chat := _first(record, _CHATS)):
        system = record.get("system")
        told = (("system", system),) if isinstance(system, str) and system else ()
        dialogue = Conversation(name, (*told, *_messages(record[chat], chat, where)))
    elif isinstance(record.get(column), list):
        dialogue = Conversation(name, _messages(record[column], column, where))
    elif not named and not record.get(column) and _first(record, _ASKING) and _first(record, _ANSWERING):
        dialogue = Conversation(name, _exchange(record, where))
    elif column in record and record[column] in (None, ""):
        return None
    elif isinstance(record.get(column), str):
        document = text_document(name, record[column])
        if len(record[column]) > MAX_DOCUMENT_BYTES:
            raise Unusable("too large", too_large(where))
        return document
    elif column in record:
        raise Unusable(
            "records without text",
            f"{where} has no text in {column!r}: {column!r} is no text but {type(record[column]).__name__}; "
            f"name the text field with data.column, {_FORMS}",
        )
    else:
        keys = ", ".join(map(repr, record)) or "nothing"
        raise Unusable(
            "records without text",
            f"{where} has no text in {column!r} (it has {keys}); name the text field with data.column, "
            f"{_FORMS}",
        )
    return dialogue.document() if any(text for _, text in dialogue.turns) or dialogue.queries else None


def _first(record: Mapping[str, Any], fields: Iterable[str]) -> str | None:
    return next((field for field in fields if record.get(field) is not None), None)


def _exchange(record: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    """The turns of a question and its answer, each a text or a list of messages."""
    asking, answering, more = (_first(record, names) for names in (_ASKING, _ANSWERING, _MORE))
    assert asking and answering
    turns: list[tuple[str, str]] = []
    for field, role in (("system", "system"), (asking, "user"), (answering, "assistant")):
        value = record.get(field)
        if isinstance(value, list):
            turns += _messages(value, field, where)
        elif isinstance(value, str):
            if field == asking and more and record[more]:
                value = f"{value}\n\n{_text(record[more], more, where)}"
            turns += [(role, value)] if value or role != "system" else []
        elif value is not None:
            raise _malformed(where, f"{field!r} must be text or a list of messages")
    return tuple(turns)


def _messages(items: Any, field: str, where: str) -> tuple[tuple[str, str], ...]:
    """The turns of a list of messages: `role` or `from`, and `content`, `value` or `text`."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _malformed(where, f"{field!r} must be a list of messages with a 'role' and a 'content'")
    turns = []
    for item in items:
        role, content = _first(item, ("role", "from")), _first(item, ("content", "value", "text"))
        if item.get("tool_calls") and content is None:
            raise _malformed(where, f"a message in {field!r} is a tool call, which training does not read")
        if role is None or not isinstance(item[role], str) or content is None:
            raise _malformed(where, f"every message in {field!r} needs a 'role' and a 'content' of text")
        named = item[role].strip().lower()
        turns.append((_ROLES.get(named, item[role]), _text(item[content], field, where)))
    return tuple(turns)


def _text(content: Any, field: str, where: str) -> str:
    """The text of a message, which may be a list of parts."""
    parts = content if isinstance(content, list) else [content]
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type") in ("text", None) else part
        for part in parts
    ]
    known = [text for text in texts if isinstance(text, str)]
    if len(known) < len(texts):
        raise _malformed(where, f"a message in {field!r} holds something that is no text")
    return "\n".join(known)


def _malformed(where: str, why: str) -> Unusable:
    return Unusable("malformed dialogue", f"{where}: {why}; correct the record, or leave it out")


def _require_characters(document: Document, where: str) -> None:
    try:
        "".join(part for part in document.parts if isinstance(part, str)).encode()
    except UnicodeEncodeError:
        raise Unusable(
            "not UTF-8", f"{where} holds a lone surrogate (half a character, \\ud800 to \\udfff); remove it"
        ) from None


def _conversation(record: Mapping[str, Any], name: str, where: str) -> Conversation:
    turns = _pairs(record["turns"], "role", "text")
    if turns is None:
        raise _malformed(where, "'turns' must be a list of objects with a 'role' and a 'text'")
    queries = record.get("queries") or []
    asked = _pairs(queries, "query", "answer")
    if asked is None or not all(question and answer for question, answer in asked):
        raise _malformed(where, "'queries' must be a list of objects with a 'query' and an 'answer'")
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
    except (TypeError, ValueError, OverflowError):
        pass
    raise _malformed(where, "'spans' must be a list of [first turn, last turn], counted from 0")


def _whole_number(digits: str) -> int | float:
    """Numbers of thousands of digits are infinite here: no field that is read is such a number."""
    return int(digits) if len(digits) < 1000 else float("inf")


_DECODER = json.JSONDecoder(parse_int=_whole_number)


def _fields(value: Any, where: str, remedy: str) -> Mapping[str, Any] | Unusable:
    """A value of JSON as a record's fields, if it is an object."""
    if isinstance(value, dict):
        return value
    return Unusable("not JSON objects", f"{where} is not a JSON object; {remedy}")


def _jsonl(path: Path, column: str) -> Iterator[_Record]:
    """A record of every line that is not blank. Raises Unusable for a line that is no JSON: the file is
    damaged."""
    del column
    offset = number = 0
    found = False
    with open_file(path) as file:
        # A bounded readline: a file that is one endless line must not fill the memory.
        while line := file.readline(MAX_DOCUMENT_BYTES + 1):
            number += 1
            where = f"{path} line {number}"
            if len(line) > MAX_DOCUMENT_BYTES:
                raise Unusable("too large", too_large(where))
            try:
                text = decode(line, str(path), offset)
            except Unusable as error:
                found = True
                yield _Record(number, where, error)
                continue
            finally:
                offset += len(line)
            if not text.strip():
                continue
            found = True
            try:
                record = _DECODER.decode(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise Unusable(
                    "not JSON", f"{where} is not JSON ({error}); write one JSON object a line"
                ) from None
            yield _Record(number, where, _fields(record, where, "write one object a line"))
    if not found:
        raise Unusable("empty", f"{path} is empty; give a file with one JSON object a line")


def _json(path: Path, column: str) -> Iterator[_Record]:
    """A record of every object of an array, or of objects one behind the other, as JSON Lines are; read one
    by one."""
    del column
    with open_file(path) as file:
        reader = _Growing(path, file)
        opened = reader.peek()
        if not opened:
            raise Unusable("empty", f"{path} is empty; give a JSON array of objects")
        is_array = opened == "["
        reader.place += is_array
        number = 0
        while not is_array or reader.peek() != "]":
            number += 1
            value = reader.value(f"{path} record {number}")
            where = f"{path} record {number}"
            yield _Record(number, where, _fields(value, where, "give an array of objects"))
            following = reader.peek()
            if not is_array:
                if not following:
                    break
                continue
            if following not in ("]", ","):
                raise reader.broken(f"',' or ']' must follow record {number}")
            reader.place += following == ","
        if is_array:
            reader.place += 1
        if reader.peek():
            raise reader.broken("more text follows its end")


class _Growing:
    """The text of a JSON file, of which only as much is held as the value that is being read is long."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")
        self._text, self.place = "", 0

    def peek(self) -> str:
        """The next character that is no blank; nothing at the end."""
        while True:
            while self.place < len(self._text) and self._text[self.place] in " \t\r\n":
                self.place += 1
            if self.place < len(self._text) or not self._more():
                return self._text[self.place : self.place + 1]

    def value(self, where: str) -> Any:
        """The JSON value at the place."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.place)
            except (json.JSONDecodeError, RecursionError) as error:
                near_end = getattr(error, "pos", len(self._text)) > len(self._text) - 16
                if not near_end and not str(error).startswith("Unterminated"):  # no more text could mend that
                    raise self.broken(str(error)) from None
                if len(self._text) - self.place > MAX_DOCUMENT_BYTES:
                    raise Unusable("too large", too_large(where)) from None
                if not self._more():
                    raise self.broken(str(error)) from None
            else:
                self.place = end
                return value

    def broken(self, why: str) -> Unusable:
        return Unusable("not JSON", f"{self._path} is not JSON ({why}); give an array of objects")

    def _more(self) -> bool:
        """Reads as much again as is held."""
        self._text, self.place = self._text[self.place :], 0
        read = self._file.read(max(1 << 16, len(self._text)))
        self._text += read
        return bool(read)


def _csv(path: Path, column: str) -> Iterator[_Record]:
    """A record of every row below the header. Fields are split by the commonest of tab, comma and semicolon
    in it."""
    with open_file(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        lines = _lines(text, path)
        blank = 0
        while (header := next(lines, "")) and not header.strip():
            blank += 1
        if not header:
            raise Unusable("empty", f"{path} is empty; give a table with a header")
        split_by = max("\t,;", key=header.count)
        # A limit of the module's; a lower one, as it is at first, refuses long texts.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_DOCUMENT_BYTES))
        rows = csv.reader(itertools.chain([header], lines), delimiter=split_by)
        names = next(rows)
        if column not in names and not set(names) & set(_KNOWN):
            raise _no_column(str(path), names, column)
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise Unusable(
                    "not CSV",
                    f"{path} line {blank + rows.line_num} is no row of a table ({error}); correct it",
                ) from None
            if row is None:
                return
            if row:
                number = blank + rows.line_num
                yield _Record(number, f"{path} line {number}", dict(zip(names, row, strict=False)))


def _lines(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    """Lines of a text, none longer than a document may be."""
    number = 0
    while line := text.readline(MAX_DOCUMENT_BYTES + 1):
        number += 1
        if len(line) > MAX_DOCUMENT_BYTES:
            raise Unusable("too large", too_large(f"{path} line {number}"))
        yield line


def _parquet(path: Path, column: str) -> Iterator[_Record]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            f"reading {path} needs the pyarrow package, which is not installed; install it with: pip install "
            "pyarrow"
        ) from None
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise Unusable(
            "not Parquet", f"{path} is not a Parquet file ({error}); give a file written as Parquet"
        ) from None
    number = 0
    with file:
        columns = _columns(str(path), file.schema_arrow.names, column)
        try:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for place in range(batch.num_rows):
                    number += 1
                    where = f"{path} row {number}"
                    try:  # row by row: one with bytes that are no text must not take the others with it
                        (fields,) = batch.slice(place, 1).to_pylist()
                    except UnicodeDecodeError:
                        fields = Unusable("not UTF-8", f"{where} is not valid UTF-8; correct it")
                    except (ValueError, OverflowError) as error:  # such as a date that Python has not
                        fields = Unusable("not readable", f"{where} cannot be read ({error}); correct it")
                    yield _Record(number, where, fields)
        except pyarrow.ArrowException as error:
            raise Unusable(
                "damaged", f"{path} is damaged behind row {number} ({error}); make or fetch it anew"
            ) from None


def _columns(where: str, names: list[str], column: str) -> list[str]:
    """Which columns of a table to read. Raises Unusable if it has neither the text column nor those of a
    dialogue."""
    if column in names and column != "text":
        return [column]
    found = [name for name in names if name == column or name in _KNOWN]
    if not found:
        raise _no_column(where, names, column)
    return found


def _no_column(where: str, names: list[str], column: str) -> Unusable:
    listed = ", ".join(map(repr, names))
    return Unusable(
        "records without text",
        f"{where} has no column {column!r} (it has {listed}); name the text column with data.column, "
        f"{_FORMS}",
    )


def read_hub(spec: str, column: str, skipped: Skipped) -> Iterator[Document]:
    """Documents of `hf:owner/name[:split[:column]]`; split `train` and `column` unless given.

    Raises ValueError when the `datasets` package is absent or cannot load the data.
    """
    name, split, column = _of_hub(spec, column)
    yield from read_table(_loaded(spec, name, split), spec, f"{name}/{split}", column, skipped)


class HubStream:
    """The documents of `hf:...`, read as they are needed: nothing is kept, and reading goes on from any
    place.

    Args:
        spec: as for `read_hub`.
        column: as for `read_hub`.

    Raises ValueError as `read_hub` does.
    """

    def __init__(self, spec: str, column: str) -> None:
        self.spec = spec
        name, split, self._column = _of_hub(spec, column)
        self._name = f"{name}/{split}"
        self._rows = _loaded(spec, name, split, streaming=True)
        if (names := self._rows.column_names) is not None:
            self._rows = self._rows.select_columns(_columns(spec, names, self._column))
        self.skipped = Skipped()
        """What was left out."""
        self.refused: Unusable | None = None
        """The first record that could not be used."""

    def read(self, place: Mapping[str, Any] | None = None) -> Iterator[tuple[Document, dict[str, Any]]]:
        """(document, JSON-able place behind it) from a place on, or from the start, to the end.

        Raises OSError where the data can no longer be reached.
        """
        rows, number = copy.deepcopy(self._rows), 0
        if place is not None:
            number = place["row"]
            rows.load_state_dict(copy.deepcopy(place["stream"]))
        coming = iter(rows)
        while True:
            try:
                row = next(coming, None)
            except Exception as error:  # as in `_loaded`
                raise OSError(
                    f"{self.spec} cannot be read on behind row {number} ({type(error).__name__}: {error}); "
                    "resume the run when it can be reached"
                ) from None
            if row is None:
                return
            number += 1
            called = f"{self._name}:{number}"
            try:
                document = _document(_Record(number, f"{self.spec} row {number}", row), called, self._column)
            except Unusable as error:
                self.refused = self.refused or error
                self.skipped.add(error.reason, called)
                continue
            if document is None:
                self.skipped.add("empty record", called)
                continue
            yield document, {"row": number, "stream": rows.state_dict()}


def _of_hub(spec: str, column: str) -> tuple[str, str, str]:
    """Name, split and column of a SPEC of the hub. Raises ValueError."""
    fields = spec.split(":")[1:]
    if not 1 <= len(fields) <= 3 or not all(fields):
        raise ValueError(
            f"{spec!r} is not of the form hf:owner/name:split:column; write for example "
            "hf:owner/name:train:text"
        )
    name, split, column = [*fields, *("train", column)[len(fields) - 1 :]]
    return name, split, column


def _loaded(spec: str, name: str, split: str, **options: Any) -> Any:
    datasets = _datasets(spec)
    try:
        return datasets.load_dataset(name, split=split, **options)
    except Exception as error:  # the package and its many back ends share no base class of errors
        raise ValueError(
            f"{spec} cannot be loaded ({type(error).__name__}: {error}); check its name, split and your "
            "connection"
        ) from None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of the `datasets` package wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def open_saved(folder: Path) -> dict[str, Any]:
    """The tables of a folder of `save_to_disk` by their splits; a single one under "".

    Raises ValueError when the `datasets` package is absent or cannot load it.
    """
    datasets = _datasets(str(folder))
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # as in `_loaded`
        raise ValueError(
            f"{folder} cannot be loaded ({type(error).__name__}: {error}); save the data set again"
        ) from None
    return dict(saved) if isinstance(saved, dict) else {"": saved}


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"reading {what} needs the datasets package, which is not installed; install it with: pip "
            "install datasets"
        ) from None
    return datasets


def read_table(rows: Any, where: str, name: str, column: str, skipped: Skipped) -> Iterator[Document]:
    """Documents of a table of the `datasets` package, called `name:number`; errors say `where`."""
    columns = _columns(where, rows.column_names, column)
    records = (
        _Record(number, f"{where} row {number}", row)
        for number, row in enumerate(rows.select_columns(columns), start=1)
    )
    return _documents(records, name, column, skipped)
