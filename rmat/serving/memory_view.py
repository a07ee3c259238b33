"""What a session remembers: for each layer the filled slots of its bank, and the words that they come
from."""

from __future__ import annotations

from pydantic import BaseModel

from rmat.data.tokenizer import Tokenizer
from rmat.model import ModelConfig
from rmat.serving.tokens import spelled
from rmat.sessions.file import Session

TOKENS_BEFORE, TOKENS_BEHIND = 48, 24
"""Tokens around the one a slot comes from that are shown with it."""


class HeldToken(BaseModel):
    """A filled slot: `age` in tokens up to the open segment, `text` around the token it comes from if that is
    still known, and the character of `text` at which that token begins."""

    slot: int
    age: int
    gate: float
    token: str | None
    text: str | None
    start: int | None


class LayerMemory(BaseModel):
    """One layer's bank: of `slots`, `filled`; `pushed` vectors entered it, `openness` a token."""

    layer: int
    slots: int
    filled: int
    pushed: int
    openness: float
    held: list[HeldToken]


class Memory(BaseModel):
    """What a session remembers."""

    tokens_read: int
    layers: list[LayerMemory]


def memory_view(session: Session, config: ModelConfig, tokenizer: Tokenizer) -> Memory:
    """The banks of all layers that have one, oldest slot first; where key heads have banks of their own, one
    bank behind the other. The first tokens that `n_sinks` keeps are not listed.

    A slot that is A tokens old comes from token `start - A` of the document, where `start` is the first token
    of the segment that is still open. Its words are known as far as the session's tail of token ids reaches
    back.
    """
    position = int(session.state.position[0])
    start = position - position % config.segment_len
    words = _Words(session.tail, position, tokenizer)
    layers = []
    for index, layer in enumerate(session.state.layers):
        if (memory := layer.memory) is None:
            continue
        # (banks * M) of each, bank after bank.
        ages, log_gates, full = (
            x[0].reshape(config.n_slots, -1).T.flatten()
            for x in (memory.slots.age, memory.slots.log_gate, memory.slots.filled)
        )
        pushed = int(memory.pushed[0].sum())
        held = []
        for slot in full.nonzero().flatten().tolist():
            place = start - int(ages[slot])
            text, offset = words.around(place)
            gate = float(log_gates[slot].exp())
            token = words.token(place)
            held.append(
                HeldToken(slot=slot, age=int(ages[slot]), gate=gate, token=token, text=text, start=offset)
            )
        layers.append(
            LayerMemory(
                layer=index,
                slots=len(ages),
                filled=len(held),
                pushed=pushed,
                openness=pushed / memory.pushed[0].numel() / max(position, 1),
                held=held,
            )
        )
    return Memory(tokens_read=session.tokens_read, layers=layers)


class _Words:
    """Text of tokens by their place in the document, as far as the tail reaches."""

    def __init__(self, tail: tuple[int, ...], position: int, tokenizer: Tokenizer) -> None:
        self._tail = tail
        self._first = position - len(tail)
        self._tokenizer = tokenizer
        self._special = tokenizer.special_names

    def token(self, place: int) -> str | None:
        """Text of one token, the name of a special one; None before the tail."""
        index = place - self._first
        if not 0 <= index < len(self._tail):
            return None
        token = self._tail[index]
        return self._special.get(token) or self._tokenizer.decode([token])

    def around(self, place: int) -> tuple[str | None, int | None]:
        """Text around a token, with a line break for each special one, and the character at which the token
        begins in it; None before the tail."""
        index = place - self._first
        if not 0 <= index < len(self._tail):
            return None, None
        begin = max(0, index - TOKENS_BEFORE)
        before, text = (
            spelled(self._tokenizer, self._tail[begin:end], dict.fromkeys(self._special, "\n"))
            for end in (index, index + TOKENS_BEHIND + 1)
        )
        cut = len(text) - len(text.lstrip("\ufffd"))  # characters that the cut went through
        return text.strip("\ufffd"), max(0, len(before) - cut)
