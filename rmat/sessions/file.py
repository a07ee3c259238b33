"""One session on disk: a safetensors file that says what it is and whether it is whole.

Its metadata has two entries. `rmat` is JSON in ASCII: format, version, and the fields of `Header`; `sha256`
is that of the JSON text. This much holds for every version, so that a file of a later one can be told from a
damaged one. The JSON names the digest of the tensors: those of the state, `next_logits` (V,) float32, `tail`
(n,) int32 and `turns` (bytes,) uint8, the JSON of the turns. Version 1 had no `model_name`, `documents` and
`reading`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from rmat.data.documents import Document, Turn
from rmat.model import ModelConfig, StreamState
from rmat.storage import digest, write_tensors

FORMAT, FORMAT_VERSION = "rmat-session", 2

TAIL_TOKENS = 8192
"""Of the tokens read, so many of the newest are kept as tokens."""

KEPT_TURNS = 100
"""Of the turns of a chat, so many of the newest are kept as text."""

KEPT_DOCUMENTS = 100
"""Of the documents read, so many of the newest are named; more only during a reading of more."""


@dataclass(frozen=True, kw_only=True)
class ReadDocument:
    """What is known of a document that was read, wholly or in part."""

    name: str
    bytes: int
    """UTF-8 bytes of its text."""
    sha256: str
    """Of its name and content, in hexadecimal digits; where it was read in parts, of the last."""
    tokens: int = 0
    """Tokens of it that were read."""
    bytes_read: int = 0
    complete: bool = False
    """Whether all of it was read."""

    @staticmethod
    def unread(document: Document) -> ReadDocument:
        """A document of which nothing was read yet."""
        return ReadDocument(name=document.name, bytes=document.n_bytes, sha256=document.digest.hex())


_DOCUMENT_FIELDS = {
    "name": str,
    "bytes": int,
    "sha256": str,
    "tokens": int,
    "bytes_read": int,
    "complete": bool,
}


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a model has read, as a value: with it and the model any text goes on, bit for bit."""

    state: StreamState
    """One row. The store keeps and gives back its tensors on the CPU."""
    next_logits: Tensor
    """(V,) float32: logits of the token that comes next."""
    tokens_read: int
    """Tokens since the session began, read and written."""
    tail: tuple[int, ...] = ()
    """The newest token ids; a store keeps the last `TAIL_TOKENS`. They show which words a memory slot
    holds."""
    turns: tuple[Turn, ...] = ()
    """(role, text) of a chat, to be shown when it is taken up again; a store keeps the last `KEPT_TURNS`."""
    documents: tuple[ReadDocument, ...] = ()
    """The documents read, oldest first; `session_after` keeps the last `KEPT_DOCUMENTS`."""
    reading: int = 0
    """So many of the last documents belong to a reading that is not over and can go on; 0 where there is
    none."""
    created: float | None = None
    """Unix time in seconds of the first save; None before it."""
    used: float | None = None
    """Unix time in seconds of the last use before this load; None before the first save."""

    @property
    def settled_documents(self) -> tuple[ReadDocument, ...]:
        """`documents` without those of an interrupted reading of which nothing was read."""
        return tuple(each for each in self.documents if each.complete or each.tokens)


def session_after(
    before: Session | None,
    state: StreamState,
    next_logits: Tensor,
    ids: Sequence[int] | NDArray[Any],
    turns: Sequence[Turn] = (),
    documents: Sequence[ReadDocument] | None = None,
    reading: int = 0,
) -> Session:
    """The session once `ids` more are read, and so is `turns`; `before` is None where nothing was read yet.

    `documents` and `reading` are those of the new session. Without `documents`, the ids are no document: they
    end a reading that was interrupted.
    """
    before = before or Session(state=state, next_logits=next_logits, tokens_read=0)
    if documents is None:
        documents = before.settled_documents
    return dataclasses.replace(
        before,
        state=state.to("cpu"),
        next_logits=next_logits.float().cpu(),
        tokens_read=before.tokens_read + len(ids),
        tail=(*before.tail, *map(int, ids[-TAIL_TOKENS:]))[-TAIL_TOKENS:],
        turns=(*before.turns, *turns)[-KEPT_TURNS:],
        documents=tuple(documents)[-max(KEPT_DOCUMENTS, reading) :],
        reading=reading,
    )


class Damage(Exception):
    """A file is no intact session; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself."""

    model: str
    """`weights_fingerprint` of the model that read."""
    tokens_read: int
    turns: int
    """How many turns the file holds."""
    created: float
    """Unix time in seconds."""
    sha256: str
    """`digest` of the tensors."""
    model_name: str | None = None
    """What the model was called when the session was saved."""
    documents: tuple[ReadDocument, ...] = ()
    reading: int = 0
    """See `Session`."""


def pack(session: Session) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, sharing no memory with the session's."""
    turns = json.dumps(session.turns[-KEPT_TURNS:]).encode("ascii")
    tensors = {
        **session.state.tensors(),
        "next_logits": session.next_logits.float(),
        "tail": torch.tensor(session.tail[-TAIL_TOKENS:], dtype=torch.int32, device="cpu"),
        "turns": torch.frombuffer(bytearray(turns), dtype=torch.uint8),
    }
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def unpack(header: Header, tensors: dict[str, Tensor], config: ModelConfig, used: float) -> Session:
    """Inverse of `pack` for a model with `config`. Raises `Damage` where the tensors are not those of a
    session."""
    try:
        turns = unpack_turns(tensors["turns"])
        tail, next_logits = tensors["tail"], tensors["next_logits"]
        if next_logits.shape != (config.vocab_size,) or next_logits.dtype != torch.float32:
            raise ValueError(f"it has no {config.vocab_size} logits")
        if tail.dim() != 1 or tail.dtype != torch.int32:
            raise ValueError("its tail is no list of tokens")
        own = ("next_logits", "tail", "turns")
        state = StreamState.from_tensors(config, {k: v for k, v in tensors.items() if k not in own})
        if state.batch_size != 1:
            raise ValueError(f"its state has {state.batch_size} rows")
    except KeyError as error:
        raise Damage(f"it has no tensor {error}") from None
    except ValueError as error:
        raise Damage(str(error)) from None
    return Session(
        state=state,
        next_logits=next_logits.clone(),
        tokens_read=header.tokens_read,
        tail=tuple(tail.tolist()),
        turns=turns,
        documents=header.documents,
        reading=header.reading,
        created=header.created,
        used=used,
    )


def unpack_turns(encoded: Tensor) -> tuple[Turn, ...]:
    """(role, text) of every turn in the tensor `turns`. Raises `Damage` if it is something else."""
    try:
        return tuple((str(role), str(text)) for role, text in json.loads(encoded.numpy().tobytes()))
    except (ValueError, TypeError) as error:
        raise Damage(f"its turns cannot be read: {error}") from None


def write(path: Path, header: Header, tensors: dict[str, Tensor]) -> None:
    """Write a file that only its owner can read, whole on the disk or not at all. Raises as
    `storage.replacing`."""
    text = json.dumps({"format": FORMAT, "version": FORMAT_VERSION, **dataclasses.asdict(header)})
    metadata = {"rmat": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_tensors(path, tensors, metadata, mode=0o600)


def read_header(path: Path) -> Header:
    """What the file says of itself, without looking at the tensors.

    Raises FileNotFoundError, `Damage`, and ValueError for a version that this rmat does not know.
    """
    return _read(path, with_tensors=False)[0]


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of a file, checked against the header. Errors as in `read_header`."""
    header, tensors = _read(path, with_tensors=True)
    if digest(tensors) != header.sha256:
        raise Damage("its tensors are not those that were saved")
    return header, tensors


def _read(path: Path, *, with_tensors: bool) -> tuple[Header, dict[str, Tensor]]:
    try:
        if with_tensors:
            # Into memory, not mapped: another program that cuts a mapped file short ends this process.
            content = path.read_bytes()
            tensors = load(content)
            size = int.from_bytes(content[:8], "little")
            return _header(json.loads(content[8 : 8 + size]).get("__metadata__", {})), tensors
        with safe_open(str(path), framework="pt") as file:
            return _header(file.metadata() or {}), {}
    except SafetensorError as error:
        raise Damage(str(error)) from None


def _header(metadata: dict[str, str]) -> Header:
    text = metadata.get("rmat", "")
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("sha256"):
        raise Damage("its description is not the one that was saved")
    try:
        fields = json.loads(text)
        if fields.pop("format") != FORMAT:
            raise ValueError("it is no session")
        version = int(fields.pop("version"))
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise Damage(f"its description cannot be read: {error}") from None
    if version not in (1, FORMAT_VERSION):
        raise ValueError(
            f"the session has format version {version}, this rmat reads 1 to {FORMAT_VERSION}: "
            "use the version of rmat that saved it"
        )
    kinds: dict[str, Any] = {
        "model": str,
        "tokens_read": int,
        "turns": int,
        "created": (int, float),
        "sha256": str,
    }
    if version > 1:
        kinds |= {"model_name": (str, NoneType), "documents": list, "reading": int}
    documents = fields.get("documents", ())
    if not _has(fields, kinds) or not all(_has(each, _DOCUMENT_FIELDS) for each in documents):
        raise Damage("its description lacks something or has something else")
    fields["documents"] = tuple(ReadDocument(**each) for each in documents)
    return Header(**fields)


def _has(fields: Any, kinds: Mapping[str, Any]) -> bool:
    """Whether `fields` is a dict with exactly the keys of `kinds`, and values of those types."""
    return (
        isinstance(fields, dict)
        and set(fields) == set(kinds)
        and all(isinstance(fields[name], kind) for name, kind in kinds.items())
    )
