"""One tokenizer class over the `tokenizers` package, with the same special tokens everywhere.

Text never becomes a special token: what spells `<|user|>` in a text is encoded as the letters it is made of.
Only code that asks for `special_id` can place one.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from rmat.data.template import ChatTemplate

SPECIAL_TOKENS = (
    "<|document|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|turn_end|>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|file_name|>",
)
"""The same in every tokenizer, after its base vocabulary unless a loaded one has them already."""

CHAT = "rmat_chat"
"""Key of a `ChatTemplate` in a tokenizer.json."""

_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "</s>")
_FILE_NAME = ("<|file_sep|>", "<file_sep>")
"""What pretrained models call the tokens for which ours are `document` and `file_name`."""

CHUNK_CHARACTERS = 1 << 18
"""Longest text handed to the tokenizer at once; longer ones are cut where no token could have crossed."""


class Tokenizer:
    """Text to ids and back, around a `tokenizers.Tokenizer`.

    Byte-level tokenizers (`bytes`, byte-level BPE) give back every text exactly. Others are used as they are:
    what their normaliser changes or their vocabulary lacks is lost.

    Args:
        backend: copied, then given the special tokens it lacks; its truncation, padding and BPE dropout are
            switched off.
        chat: that of a pretrained model, whose own special tokens take the place of ours; nothing is added.

    Raises ValueError for one whose special tokens a text could forge, or whose decoder does not spell each
    token by itself, so that its text could not be shown while it is written.
    """

    def __init__(self, backend: tokenizers.Tokenizer, chat: ChatTemplate | None = None) -> None:
        given = json.loads(backend.to_str())
        if given["model"].get("dropout"):  # the ids of a text must not be drawn by chance
            given["model"]["dropout"] = None
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(given))
        self._backend.no_truncation()
        self._backend.no_padding()
        self.chat = chat
        if chat is None:
            self._backend.add_special_tokens(
                [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
            )
        self._backend.encode_special_tokens = True
        layout = json.loads(self._backend.to_str())
        self._byte_level = _types(layout["decoder"]) - {"Sequence", "Fuse", ""} == {"ByteLevel"}
        self._byte_fallback = "ByteFallback" in _types(layout["decoder"])
        self._chunkable = (
            self._byte_level and layout["normalizer"] is None and not _adds_prefix(layout["pre_tokenizer"])
        )
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self._size = max(vocabulary.values()) + 1
        self._is_bytes = (
            self._chunkable
            and not layout["model"].get("merges")
            and all(vocabulary.get(char) == byte for byte, char in enumerate(_BYTE_TO_CHAR))
        )
        self._names = _special_names(vocabulary, chat)
        for token in SPECIAL_TOKENS if chat is None else chat.ends:
            if vocabulary[token] in self.encode(token):
                raise ValueError(
                    f"this tokenizer turns the text {token!r} into the special token of that name, "
                    "so that text could forge it; use a byte-level tokenizer"
                )
        if not self._byte_level:
            self._require_spelling()

    @property
    def vocab_size(self) -> int:
        """Ids lie in 0..vocab_size-1, special tokens included."""
        return self._size

    def special_id(self, name: str) -> int:
        """Id of a special token by its name without brackets: `document`, `user`, `fim_prefix`, ..."""
        if name not in self._names:
            if f"<|{name}|>" in SPECIAL_TOKENS:
                raise ValueError(
                    f"this pretrained model has no token for {name!r}: it was not trained with one"
                )
            names = ", ".join(self._names)
            raise ValueError(f"no special token is named {name!r}; the names are {names}")
        return self._names[name]

    def has_special(self, name: str) -> bool:
        """Whether there is such a special token: a pretrained model may lack some."""
        return name in self._names

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """Ids that stand in front of every new text: the document token; of a pretrained model what it was
        trained with, which may be none."""
        if self.chat is None or self.chat.opens:
            return (self._names["document"],)
        return ()

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids at which a text that is written is over, but for turn_end."""
        written = () if self.chat is None else self.chat.ends
        ids = {self._names["document"], *map(self.token_id, written)}
        return frozenset(ids - {self._names["turn_end"]})

    @cached_property
    def special_names(self) -> dict[int, str]:
        """What every special token is called, `<|user|>` and so on, by its id."""
        if self.chat is None:
            return {index: f"<|{name}|>" for name, index in self._names.items()}
        added = self._backend.get_added_tokens_decoder().items()
        return {index: token.content for index, token in added if token.special}

    @cached_property
    def closing(self) -> list[int]:
        """Ids that follow the turn_end of an answer, such as a line break."""
        if self.chat is None or self.chat.template is None:
            return []
        return self.encode(self.chat.closing)

    @cached_property
    def answer_opening(self) -> list[int]:
        """Ids that open an answer. Of a chat template without the blanks at their end, which may become one
        token with what follows. Raises ValueError where the template has none, or none that is special."""
        if self.chat is None:
            return [self._names["assistant"]]
        asked, opened = (
            self.encode_special(self.chat.pieces([("user", "a")], "text", answer=answer))
            for answer in (False, True)
        )
        opening = opened[len(asked) :]
        while opening and self.decode(opening[-1:]).isspace():
            opening.pop()
        if opened[: len(asked)] != asked or not self._special & set(opening):
            raise ValueError(
                "this model's chat template opens an answer with no token of its own, so that nothing tells "
                "where one begins"
            )
        return opening

    def encode_special(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        """Ids of (text, whether it is one special token) pieces of a chat template."""
        ids: list[int] = []
        for text, special in pieces:
            ids += [self.token_id(text)] if special else self.encode(text)
        return ids

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ between tokenizers that differ; saving and loading keeps them."""
        values = json.loads(self._backend.to_str())
        if self.chat is not None:
            values[CHAT] = self.chat.to_dict()
        layout = json.dumps(values, sort_keys=True)
        return hashlib.sha256(layout.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; never the id of a special token. Raises ValueError for text with a lone
        surrogate."""
        ids: list[int] = self.encode_many([text])[0].tolist()
        return ids

    def encode_many(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """`encode` of every text, on all cores: one int32 array of shape (tokens,) each."""
        data = [_utf8(text) for text in texts]
        if self._is_bytes:
            return [np.frombuffer(raw, dtype=np.uint8).astype(np.int32) for raw in data]
        pieces = [_cut(text) if self._chunkable else [text] for text in texts]
        encoded = self._encode_pieces([piece for cut in pieces for piece in cut])
        return [np.concatenate([next(encoded) for _ in cut]) for cut in pieces]

    def _encode_pieces(self, pieces: Sequence[str]) -> Iterator[NDArray[np.int32]]:
        """Ids of each piece; few enough at a time that the backend's bookkeeping of them stays small."""
        start = size = 0
        for stop, piece in enumerate(pieces, start=1):
            size += len(piece)
            if size >= 4 * CHUNK_CHARACTERS or stop == len(pieces):
                for encoding in self._backend.encode_batch_fast(pieces[start:stop], add_special_tokens=False):
                    yield np.asarray(encoding.ids, dtype=np.int32)
                start, size = stop, 0

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens become nothing, bytes that are no whole character become U+FFFD.

        A special token begins a new text: a tokenizer that puts a blank in front of a text takes it off again
        there.
        """
        self._check(ids)
        begins = [True, *(token in self._special for token in ids)]
        raw = b"".join(
            self._first[i] if begin else self._inner[i] for i, begin in zip(ids, begins, strict=False)
        )
        return raw.decode("utf-8", errors="replace")

    def stream(self, *, begins: bool = True) -> TokenStream:
        """For text that is shown while its tokens come one after the other; `begins` is False inside a
        text."""
        return TokenStream(self, begins)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """UTF-8 bytes that `ids` add to a text that goes on, perhaps ending inside a character; special
        tokens become nothing. What a concatenation of ids adds is the concatenation of what they add."""
        self._check(ids)
        return b"".join([self._inner[i] for i in ids])

    @cached_property
    def concatenates(self) -> bool:
        """Whether a token is the same text at the beginning as inside a text, so that texts of tokens can be
        joined."""
        return self._first == self._inner

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """Bytes of text that each id stands for, (vocab_size,) int64; 0 for special tokens.

        Raises ValueError where that depends on the token before it: then only `byte_counts` sums to a text's
        bytes.
        """
        if not self.concatenates:
            raise ValueError(
                "this tokenizer's tokens have other bytes at the beginning of a text than inside it, so that "
                "no table of "
                "them sums to the text's bytes; count with byte_counts"
            )
        return _lengths(self._inner)

    def byte_counts(self, ids: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
        """Bytes of text that each of `ids` (tokens,) stands for, (tokens,) int64; their sum is the bytes of
        `decode(ids)` where it is whole characters. To count a part of a text give the token before it too."""
        tokens = np.asarray(ids, dtype=np.int64)
        inner, first, special = self._counts
        begins = np.concatenate(([True], special[tokens[:-1]]))[: len(tokens)]
        return np.where(begins, first[tokens], inner[tokens])

    @cached_property
    def _counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        special = np.zeros(self._size, dtype=np.bool_)
        special[list(self._special)] = True
        return _lengths(self._inner), _lengths(self._first), special

    def require_vocab_size(self, size: int, *, of: str = "the model") -> None:
        """Raises ValueError unless `size`, the vocabulary of a model or of stored tokens, is this
        tokenizer's."""
        if size != self._size:
            raise ValueError(
                f"vocabulary mismatch: the tokenizer has {self._size} entries and {of} {size}; "
                "use the tokenizer that was saved with it"
            )

    def save(self, path: str | Path) -> None:
        """Writes a tokenizer.json that `load_tokenizer` reads, and the `tokenizers` package too where there
        is no chat template. Raises OSError."""
        if Path(path).exists() and not Path(path).is_file():
            raise FileExistsError(f"{path} is no regular file: give another name")
        text = self.backend_json()
        if self.chat is not None:
            text = json.dumps({**json.loads(text), CHAT: self.chat.to_dict()}, indent=2, ensure_ascii=False)
        Path(path).write_text(text, "utf-8")

    def backend_json(self) -> str:
        """The tokenizer.json of the `tokenizers` package, without a chat template."""
        return self._backend.to_str(pretty=True)

    def token_id(self, token: str) -> int:
        """Id of a token by its text in the vocabulary, which must be there."""
        index = self._backend.token_to_id(token)
        assert index is not None, token
        return index

    def _check(self, ids: Sequence[int]) -> None:
        if len(ids) and not 0 <= min(ids) <= max(ids) < self._size:
            bad = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(
                f"token id {bad} is outside the vocabulary 0..{self._size - 1}; use the model's own tokenizer"
            )

    @cached_property
    def _special(self) -> frozenset[int]:
        """Ids that are no text."""
        return frozenset(i for i, added in self._backend.get_added_tokens_decoder().items() if added.special)

    @cached_property
    def _inner(self) -> list[bytes]:
        """Bytes that each id adds behind another one."""
        table = [b""] * self._size
        for token, index in self._backend.get_vocab(with_added_tokens=False).items():
            if self._byte_level:
                known = _CHAR_TO_BYTE.keys() >= set(token)
                table[index] = bytes(_CHAR_TO_BYTE[char] for char in token) if known else token.encode()
            elif self._byte_fallback and _BYTE_TOKEN.fullmatch(token):
                table[index] = bytes.fromhex(token[3:5])
        if not self._byte_level:
            self._ask_decoder(table, [*self._anchor])
        for index, added in self._backend.get_added_tokens_decoder().items():
            if added.special or self._byte_level:
                table[index] = b"" if added.special else added.content.encode()
        return table

    @cached_property
    def _first(self) -> list[bytes]:
        """Bytes that each id stands for where a text begins with it: some tokenizers put a blank in front of
        a text."""
        table = list(self._inner)
        if not self._byte_level:
            self._ask_decoder(table, [])
            table = [b"" if i in self._special else raw for i, raw in enumerate(table)]
        probe = self.encode("a")
        if probe and table[probe[0]][:1] == b" ":  # put there, and left there by the decoder
            table = [raw.removeprefix(b" ") for raw in table]
        return table

    @cached_property
    def _anchor(self) -> tuple[int, ...]:
        """A token whose text is letters or digits, to ask the decoder what others become behind it."""
        words = (index for token, index in sorted(self._backend.get_vocab().items()) if token.isalnum())
        return next(((index,) for index in words if self._backend.decode([index]).isalnum()), ())

    def _ask_decoder(self, table: list[bytes], before: list[int]) -> None:
        """Fills `table` with what the decoder makes of each id behind `before`; bytes of characters stay."""
        ids = [i for i in self._backend.get_vocab(with_added_tokens=True).values() if not self._is_byte(i)]
        start = len(self._backend.decode(before))
        texts = self._backend.decode_batch([[*before, i] for i in ids])
        for index, text in zip(ids, texts, strict=True):
            table[index] = text[start:].encode()

    def _is_byte(self, index: int) -> bool:
        return self._byte_fallback and bool(_BYTE_TOKEN.fullmatch(self._backend.id_to_token(index) or ""))

    def _require_spelling(self) -> None:
        """Raises ValueError unless the decoder spells tokens one by one, which is tried with some of them."""
        texts = [i for i in range(self._size) if self._inner[i].strip() and not self._is_byte(i)]
        blanks = [i for i in range(self._size) if self._inner[i].isspace() and not self._is_byte(i)]
        tried = (texts[:: max(1, len(texts) // 64)] + blanks)[:128]
        samples = [[a, b, b] for a, b in zip(tried, tried[1:] + tried[:1], strict=True)]
        for ids, text in zip(samples, self._backend.decode_batch(samples), strict=True):
            if self.decode(ids).lstrip() != text.lstrip():
                raise ValueError(
                    f"this tokenizer's decoder makes {text!r} of tokens that are {self.decode(ids)!r} one by "
                    "one, so that "
                    "its text cannot be shown while it is written; use a byte-level, SentencePiece or "
                    "WordPiece one"
                )


class TokenStream:
    """The text of tokens that come one after the other: all pieces joined are `tokenizer.decode` of the
    tokens."""

    def __init__(self, tokenizer: Tokenizer, begins: bool = True) -> None:
        self._tokenizer = tokenizer
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begins = begins

    def push(self, token: int) -> str:
        """The text that is safe to show after `token`, which may be none: characters come when they are
        whole."""
        self._tokenizer._check([token])
        table = self._tokenizer._first if self._begins else self._tokenizer._inner
        self._begins = token in self._tokenizer._special
        return self._characters.decode(table[token])

    def flush(self) -> str:
        """U+FFFD for what is left of a character that was not finished; then a new text may begin."""
        self._begins = True
        return self._characters.decode(b"", final=True)


def byte_tokenizer() -> Tokenizer:
    """The tokenizer without a training: id i is byte i for 0..255, the special tokens follow."""
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={char: i for i, char in enumerate(_BYTE_TO_CHAR)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` entries, special tokens included; fewer where the texts hold
    fewer.

    Raises ValueError when the size does not hold the 256 bytes and the special tokens.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"a byte-level BPE needs at least {smallest} entries (256 bytes and {len(SPECIAL_TOKENS)} "
            "special tokens), "
            f"got {vocab_size}; write bpe:{smallest} or more, or 'bytes'"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((piece for text in texts for piece in _cut(text)), trainer)
    return Tokenizer(backend)


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """The tokenizer of `bytes`, of a tokenizer.json, or of a folder that holds one.

    Any tokenizer.json of the `tokenizers` package will do; the special tokens it lacks are added after its
    own entries. Raises ValueError when there is none or it cannot be read.
    """
    if spec == "bytes":
        return byte_tokenizer()
    path = Path(spec)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"no tokenizer at {str(path)!r}; give 'bytes', a tokenizer.json or a folder that holds one"
        )
    try:
        text = path.read_text("utf-8")
        chat = None
        if f'"{CHAT}"' in text and CHAT in (values := json.loads(text)):
            chat = ChatTemplate.from_dict(values.pop(CHAT))
            text = json.dumps(values)
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises bare Exception for every fault of the file
        raise ValueError(
            f"{path} is no tokenizer.json ({error}); give one saved by the tokenizers package"
        ) from None
    return Tokenizer(backend, chat)


def _special_names(vocabulary: dict[str, int], chat: ChatTemplate | None) -> dict[str, int]:
    """Ids of the special tokens by our names for them; of a pretrained model those that it has."""
    if chat is None:
        return {token[2:-2]: vocabulary[token] for token in SPECIAL_TOKENS}
    first = (chat.tokens.get("bos_token", ""),) if chat.opens else ()
    wanted = {
        "document": (*first, *_DOCUMENT, *chat.ends),
        "turn_end": (chat.turn_end,),
        "file_name": _FILE_NAME,
        **{f"fim_{part}": (f"<|fim_{part}|>", f"<fim_{part}>") for part in ("prefix", "suffix", "middle")},
    }
    found = {
        name: next((vocabulary[token] for token in tokens if token in vocabulary), None)
        for name, tokens in wanted.items()
    }
    return {name: index for name, index in found.items() if index is not None}


def _alphabet() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level vocabularies (GPT-2's table)."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_BYTE_TO_CHAR = _alphabet()
_CHAR_TO_BYTE = {char: byte for byte, char in enumerate(_BYTE_TO_CHAR)}


_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
"""How vocabularies with byte fallback name a byte."""


def _lengths(table: Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, table), dtype=np.int64, count=len(table))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds a lone surrogate (half a character) at position {error.start}, which UTF-8 "
            "cannot "
            "express; remove it"
        ) from None


def _cut(text: str) -> list[str]:
    """Pieces of at most CHUNK_CHARACTERS, cut before a blank or newline that follows a letter or digit.

    The pre-tokenizers in use never join a letter or digit with a blank behind it, so the tokens are those of
    the whole text. Where there is no such place the cut falls anywhere: other tokens, the same bytes.
    """
    pieces = []
    start = 0
    while len(text) - start > CHUNK_CHARACTERS:
        end = start + CHUNK_CHARACTERS
        place = end
        while place > start and not (text[place] in " \n" and text[place - 1].isalnum()):
            place -= 1
        end = place if place > start else end
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces


def _types(layout: Any) -> set[str]:
    """Every `type` inside a component of a tokenizer.json."""
    if isinstance(layout, dict):
        return {layout.get("type", "")}.union(*map(_types, layout.values()))
    return set().union(*map(_types, layout)) if isinstance(layout, list) else set()


def _adds_prefix(layout: Any) -> bool:
    """Whether a pre-tokenizer puts a blank in front of what it is given."""
    if isinstance(layout, dict):
        return bool(layout.get("add_prefix_space")) or any(map(_adds_prefix, layout.values()))
    return isinstance(layout, list) and any(map(_adds_prefix, layout))
