"""A document: parts of text and special tokens, and what it becomes as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmat.data.template import Before
from rmat.data.tokenizer import Tokenizer

MAX_DOCUMENT_BYTES = 128 * 2**20
"""Longest text of one document: 128 MiB. It is held in memory once while it is tokenised."""

ROLES = ("system", "user", "assistant")
"""Dialogue roles with a special token of their own; every other role speaks as a named user."""


Turn = tuple[str, str]
"""(role, text) of one turn of a dialogue."""


@dataclass(frozen=True)
class Special:
    """A special token's place in a document, by its name without brackets."""

    name: str


Part = str | Special


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text to learn from. The document token that opens it is added when it is tokenised."""

    name: str
    """Where it came from, relative to its source: `json/decoder.py`, `talks.jsonl:12`."""

    parts: tuple[Part, ...]
    """Its text, with the special tokens between."""

    n_header: int = 0
    """So many of the first parts say what the document is (its file name) and stay in front."""

    @cached_property
    def n_bytes(self) -> int:
        """UTF-8 bytes of its text; special tokens count nothing."""
        return sum(len(part.encode()) for part in self.parts if isinstance(part, str))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of name and content."""
        digest = hashlib.sha256(_framed(self.name, "name"))
        for part in self.parts:
            digest.update(_framed(part, "text") if isinstance(part, str) else _framed(part.name, "special"))
        return digest.digest()


def text_document(name: str, text: str) -> Document:
    """A document of plain text."""
    return Document(name=name, parts=(text,))


def code_document(name: str, text: str) -> Document:
    """A document of code, opened by the file-name token, `name` and a newline."""
    return Document(name=name, parts=(Special("file_name"), f"{name}\n", text), n_header=2)


def dialogue_document(name: str, turns: Iterable[Turn]) -> Document:
    """A conversation of (role, text) turns, each between its role's token and the turn-end token.

    `system`, `user` and `assistant` (in any case) have tokens; any other role becomes a user whose text
    begins with `Role: `.
    """
    parts: list[Part] = []
    for role, text in turns:
        known = role.lower() in ROLES
        parts += [
            Special(role.lower() if known else "user"),
            text if known else f"{role}: {text}",
            Special("turn_end"),
        ]
    return Document(name=name, parts=tuple(parts))


@dataclass(frozen=True)
class EncodedDocument:
    """A document as ids."""

    tokens: NDArray[np.int32]
    """(tokens,) int32, the document token first."""

    n_header: int
    """Tokens before the content: the document token and the header."""


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[EncodedDocument]:
    """Ids of each document. The texts go to the tokenizer together, so that it can use all cores."""
    spelled = [list(spell(tokenizer, document.parts)) for document in documents]
    encoded = iter(tokenizer.encode_many([part for doc in spelled for part in doc if isinstance(part, str)]))
    results = []
    for document, parts in zip(documents, spelled, strict=True):
        pieces = [np.array([tokenizer.special_id("document")], dtype=np.int32)]
        for part in parts:
            pieces.append(next(encoded) if isinstance(part, str) else np.array(part, dtype=np.int32))
        n_header = sum(len(piece) for piece in pieces[: 1 + document.n_header])
        results.append(EncodedDocument(np.concatenate(pieces), n_header))
    return results


def spell(tokenizer: Tokenizer, parts: Iterable[Part]) -> Iterator[str | list[int]]:
    """Parts behind a document token as text and ids: each special token has its id. Of a pretrained model,
    whose roles have no tokens, turns become what its chat template writes (a role without its end opens the
    answer); what else it lacks is left out."""
    chat = tokenizer.chat
    turns: list[Turn] = []
    role, texts = "", ""
    for part in parts:
        if chat is None or (not role and (isinstance(part, str) or part.name not in ROLES)):
            if isinstance(part, str):
                yield part
            elif chat is None or tokenizer.has_special(part.name):
                yield [tokenizer.special_id(part.name)]
            else:
                yield []
        elif isinstance(part, str):
            texts += part
        elif part.name in ROLES:
            role, texts = part.name, ""
        else:
            turns.append((role, texts))
            role = ""
    if chat is not None and (turns or role):
        answer = role == "assistant"
        for text, special in chat.pieces(turns, "opened", answer=answer, begun=texts if answer else ""):
            yield [tokenizer.token_id(text)] if special else text


def said_by_assistant(tokenizer: Tokenizer, tokens: NDArray[Any]) -> NDArray[np.bool_]:
    """Which tokens (tokens,) of a document the assistant says, its turn-end tokens among them; all, if nobody
    has a turn. Raises ValueError where nothing tells (`Tokenizer.answer_opening`)."""
    opening, n_tokens = tokenizer.answer_opening, len(tokens)
    ends = np.flatnonzero(tokens == tokenizer.special_id("turn_end"))
    opens = np.ones(max(0, n_tokens - len(opening) + 1), dtype=np.bool_)
    for offset, token in enumerate(opening):
        opens &= tokens[offset : offset + len(opens)] == token
    begins = np.flatnonzero(opens) + len(opening)
    roles = [tokenizer.special_id(name) for name in ROLES if tokenizer.chat is None]
    if not (len(begins) or len(ends) or np.isin(tokens, roles).any()):
        return np.ones(n_tokens, dtype=np.bool_)
    # An answer goes on if the last one began behind the last turn end before the token.
    begun, ended = np.full(n_tokens + 1, -1), np.full(n_tokens + 1, -1)
    begun[begins], ended[ends + 1] = begins, ends
    return np.maximum.accumulate(begun)[:n_tokens] > np.maximum.accumulate(ended)[:n_tokens]


def encode_turns(
    tokenizer: Tokenizer,
    turns: Sequence[Turn],
    before: Before = "nothing",
    *,
    answer: bool = False,
    begun: str = "",
) -> list[int]:
    """Ids of finished (role, text) turns as in training, without the document token. A role without a token
    of its own speaks as a user whose text begins with `Role: `.

    Args:
        before: what they follow; a pretrained model's chat template asks.
        answer: whether the assistant's turn is opened behind them, with the text `begun`.
    """
    document = dialogue_document("", turns)
    if tokenizer.chat is None:
        opened = [tokenizer.special_id("assistant"), *tokenizer.encode(begun)] if answer else []
        ids: list[int] = encode_documents(tokenizer, [document])[0].tokens[1:].tolist()
        return ids + opened
    if not turns and not answer:
        return []
    spoken = [
        (part.name, text)
        for part, text in zip(document.parts[::3], document.parts[1::3], strict=True)
        if isinstance(part, Special) and isinstance(text, str)
    ]
    return tokenizer.encode_special(tokenizer.chat.pieces(spoken, before, answer=answer, begun=begun))


def encode_lead(tokenizer: Tokenizer, before: Before) -> list[int]:
    """Ids that are read before a text which follows `before`. To a model that chats a text is a turn, or the
    beginning of one (`ChatTemplate.text_role`)."""
    chat = tokenizer.chat
    if chat is None or chat.template is None:
        return [*tokenizer.opening] if before == "nothing" else []
    return [] if before == "text" else tokenizer.encode_special(chat.lead(before))


def cut_document(document: Document, shares: Sequence[float]) -> list[Document | None]:
    """Consecutive pieces of a document, for a source too small to hold out whole documents.

    The k-th piece gets about `shares[k]` of the characters; a cut falls behind a newline if there is one in
    the text before it, and only the first piece keeps the header. A piece without text is None.
    """
    total = sum(len(part) for part in document.parts if isinstance(part, str))
    bounds = np.cumsum(shares)[:-1] * total
    pieces: list[list[Part]] = [[] for _ in shares]
    position = 0
    for part in document.parts:
        length = len(part) if isinstance(part, str) else 0
        if isinstance(part, Special):
            pieces[int(np.searchsorted(bounds, position, side="right"))].append(part)
            continue
        start = 0
        for index, bound in enumerate([*bounds, float("inf")]):
            end = length if bound >= position + length else max(start, int(bound) - position)
            if end < length:
                end = part.rfind("\n", start, end) + 1 or end
            if end > start:
                pieces[index].append(part[start:end])
                start = end
        position += length
    return [
        Document(
            name=document.name if index == 0 else f"{document.name}#{index}",
            parts=tuple(parts),
            n_header=document.n_header if index == 0 else 0,
        )
        if any(isinstance(part, str) for part in parts)
        else None
        for index, parts in enumerate(pieces)
    ]


def _framed(text: str, kind: str) -> bytes:
    """Bytes that no other sequence of (text, kind) spells."""
    raw = text.encode()
    return f"{kind} {len(raw)} ".encode() + raw
