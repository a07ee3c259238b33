"""Conversations with questions on them, as token ids and just as in a document of training
(`rmat.data.records`).

Questions fall into three groups by where their evidence lies: "far", wholly out of reach of local attention
through all layers, so that only the memory can know of it; "near", at least partly within reach; "whole", on
all of the meeting.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rmat.data.documents import dialogue_document, encode_documents
from rmat.data.records import Conversation, Query, read_conversations
from rmat.data.tokenizer import Tokenizer

Group = Literal["far", "near", "whole"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question on a meeting, as token ids."""

    tokens: NDArray[np.int64]
    """(tokens,) the user's turn, the assistant token, the text of the answer."""
    n_prompt: int
    """Tokens before the text of the answer."""
    answer_bytes: int
    """UTF-8 bytes of the answer."""
    group: Group
    """Where its evidence lies."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """A conversation and the questions on it, as token ids."""

    tokens: NDArray[np.int64]
    """(tokens,) the document token, then every turn."""
    questions: tuple[Question, ...]
    """In the order of the record."""


def read_meetings(
    path: str | Path,
    tokenizer: Tokenizer,
    local_reach: int,
    *,
    max_meetings: int | None = None,
    max_turn_tokens: int | None = None,
) -> list[Meeting]:
    """The conversations with questions of a JSONL file.

    Args:
        path: records without `turns` or `queries` are passed over.
        tokenizer: makes the ids.
        local_reach: tokens that local attention looks back; evidence that ends before them is "far".
        max_meetings: take only the first so many; None for all.
        max_turn_tokens: cut the text of longer turns behind so many tokens; None to keep them whole.

    Raises ValueError if the file cannot be used or has no questions, or a number is below one.
    """
    for name, value in (("max_meetings", max_meetings), ("max_turn_tokens", max_turn_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: give at least 1, or None for all")
    found = [
        _meeting(conversation, tokenizer, local_reach, max_turn_tokens)
        for conversation in itertools.islice(read_conversations(Path(path)), max_meetings)
    ]
    if not found:
        raise ValueError(
            f"{path} has no conversation with questions; give a JSONL file with 'turns' and 'queries'"
        )
    return found


def _meeting(conversation: Conversation, tokenizer: Tokenizer, reach: int, longest: int | None) -> Meeting:
    turns = [_turn(tokenizer, role, text) for role, text in conversation.turns]
    if longest is not None:
        turns = [
            turn if len(turn) <= longest + 2 else np.append(turn[: longest + 1], turn[-1]) for turn in turns
        ]
    ends = np.cumsum([1, *map(len, turns)])

    def question(query: Query) -> Question:
        answer = _turn(tokenizer, "assistant", query.answer)[:-1]
        prompt = np.append(_turn(tokenizer, "user", query.question), answer[:1])
        last = max((last for _, last in query.spans), default=None)
        group: Group = "whole"
        if last is not None:
            group = "far" if ends[-1] - ends[last + 1] >= reach else "near"
        return Question(
            tokens=np.concatenate([prompt, answer[1:]]),
            n_prompt=len(prompt),
            answer_bytes=len(query.answer.encode()),
            group=group,
        )

    opening = np.array([tokenizer.special_id("document")], dtype=np.int64)
    return Meeting(
        tokens=np.concatenate([opening, *turns]), questions=tuple(map(question, conversation.queries))
    )


def _turn(tokenizer: Tokenizer, role: str, text: str) -> NDArray[np.int64]:
    """(tokens,) ids of one turn as in a document of training: role, text, end of turn."""
    (encoded,) = encode_documents(tokenizer, [dialogue_document("", [(role, text)])])
    return encoded.tokens[encoded.n_header :].astype(np.int64)
