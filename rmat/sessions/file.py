"""One session on disk: a safetensors file that says what it is and whether it is whole.

Its metadata has two entries. `rmat` is JSON in ASCII: format, version, and the fields of `Header`; `sha256` is that
of the JSON text. This much holds for every version, so that a file of a later one can be told from a damaged one. The
JSON names the digest of the tensors: those of the state, `next_logits` (V,) float32, `tail` (n,) int32 and
`turns` (bytes,) uint8, the JSON of the turns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rmat.model import ModelConfig, StreamState
from rmat.storage import digest

FORMAT, FORMAT_VERSION = "rmat-session", 1

TAIL_TOKENS = 8192
"""Of the tokens read, so many of the newest are kept as tokens."""

KEPT_TURNS = 100
"""Of the turns of a chat, so many of the newest are kept as text."""


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
    """The newest token ids; a store keeps the last `TAIL_TOKENS`. They show which words a memory slot holds."""
    turns: tuple[tuple[str, str], ...] = ()
    """(role, text) of a chat, to be shown when it is taken up again; a store keeps the last `KEPT_TURNS`."""
    created: float | None = None
    """Unix time in seconds of the first save; None before it."""
    used: float | None = None
    """Unix time in seconds of the last use before this load; None before the first save."""


def session_after(
    before: Session | None,
    state: StreamState,
    next_logits: Tensor,
    ids: Sequence[int] | NDArray[Any],
    turns: Sequence[tuple[str, str]] = (),
) -> Session:
    """The session once `ids` more are read, and so is `turns`; `before` is None where nothing was read yet."""
    before = before or Session(state=state, next_logits=next_logits, tokens_read=0)
    return dataclasses.replace(
        before,
        state=state.to("cpu"),
        next_logits=next_logits.float().cpu(),
        tokens_read=before.tokens_read + len(ids),
        tail=(*before.tail, *map(int, ids[-TAIL_TOKENS:]))[-TAIL_TOKENS:],
        turns=(*before.turns, *turns)[-KEPT_TURNS:],
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


def pack(session: Session) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, sharing no memory with the session's."""
    turns = json.dumps(session.turns[-KEPT_TURNS:]).encode("ascii")
    tensors = {
        **session.state.tensors(),
        "next_logits": session.next_logits.float(),
        "tail": torch.tensor(session.tail[-TAIL_TOKENS:], dtype=torch.int32),
        "turns": torch.frombuffer(bytearray(turns), dtype=torch.uint8),
    }
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def unpack(header: Header, tensors: dict[str, Tensor], config: ModelConfig, used: float) -> Session:
    """Inverse of `pack` for a model with `config`. Raises `Damage` where the tensors are not those of a session."""
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
        created=header.created,
        used=used,
    )


def unpack_turns(encoded: Tensor) -> tuple[tuple[str, str], ...]:
    """(role, text) of every turn in the tensor `turns`. Raises `Damage` if it is something else."""
    try:
        return tuple((str(role), str(text)) for role, text in json.loads(encoded.numpy().tobytes()))
    except (ValueError, TypeError) as error:
        raise Damage(f"its turns cannot be read: {error}") from None


def write(path: Path, header: Header, tensors: dict[str, Tensor]) -> None:
    """Write a file that only its owner can read; when this returns it is on the disk, and not before."""
    text = json.dumps({"format": FORMAT, "version": FORMAT_VERSION, **dataclasses.asdict(header)})
    data = save(tensors, {"rmat": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


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
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys()) if with_tensors else []
            header = _header(metadata)
            return header, {name: file.get_tensor(name) for name in names}
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
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the session has format version {version}, this rmat reads {FORMAT_VERSION}: "
            "use the version of rmat that saved it"
        )
    kinds: dict[str, type | tuple[type, ...]] = {
        "model": str,
        "tokens_read": int,
        "turns": int,
        "created": (int, float),
        "sha256": str,
    }
    if set(fields) != set(kinds) or not all(isinstance(fields[name], kind) for name, kind in kinds.items()):
        raise Damage("its description lacks something or has something else")
    return Header(**fields)
