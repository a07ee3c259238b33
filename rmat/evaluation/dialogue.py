"""Questions on whole conversations: does the memory make the reference answer more likely?

Protocol (QMSum: Zhong et al. 2021, arXiv 2104.05938): a meeting is read once from an empty state, in pieces
of constant size. Every question is then asked from that same state, as a turn of the user, and its reference
answer follows as a turn of the assistant. Scored are bits per byte of the answer's text alone. Turns,
questions and answers are encoded as in training (`rmat.evaluation.meetings`).

Every mode of the memory holds from the meeting's first token on: a bank switched off only at the question
would have left its traces in the keys and values of local attention. "shuffled" reads the bank of another
meeting, while the meeting is read and while the question is asked (`rmat.evaluation.shuffling`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.ablation import MODES
from rmat.evaluation.intervals import Interval, bootstrap_ratio, paired_bootstrap_ratio
from rmat.evaluation.meetings import Group, Meeting, Question, read_meetings
from rmat.evaluation.perplexity import token_nats
from rmat.evaluation.shuffling import behind, front_rows, groups
from rmat.generation.reader import Advance, NotFiniteError, Piece, scan
from rmat.machine import shared
from rmat.model import LanguageModel, ModelConfig
from rmat.model.language_model import MemoryMode

_BITS = 1 / math.log(2)
_WINDOW_TOKENS = 2048
NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class DialogueResult:
    """Result of `dialogue`. Arrays hold one entry per question, so that modes can be paired."""

    nats: dict[MemoryMode, NDArray[np.float64]] = field(repr=False)
    """By mode, "on" first: (questions,) nats of the answer."""
    bytes: NDArray[np.float64] = field(repr=False)
    """(questions,) UTF-8 bytes of the answer."""
    meeting: NDArray[np.int64] = field(repr=False)
    """(questions,) number of the meeting."""
    group: NDArray[np.str_] = field(repr=False)
    """(questions,) "far", "near" or "whole"."""
    local_reach: int
    """Tokens that local attention looks back through all layers; "far" evidence ends before that."""
    state_bytes: int
    """Size of the streaming state of one row."""
    seed: int
    """Seed of the bootstrap."""

    def bits_per_byte(self, mode: MemoryMode = "on", group: Group | None = None) -> Interval:
        """Bits per byte of the answers, of all or of one group, bootstrapped over meetings. ValueError if it
        is empty."""
        return bootstrap_ratio(*self._sums(group, self.nats[mode], self.bytes), scale=_BITS, seed=self.seed)

    def minus_on(self, mode: MemoryMode, group: Group | None = None) -> Interval:
        """What `mode` costs against "on", on the same meetings; above zero: the memory helps."""
        sums = self._sums(group, self.nats[mode], self.nats["on"], self.bytes)
        return paired_bootstrap_ratio(*sums, scale=_BITS, seed=self.seed)

    def _sums(self, group: Group | None, *values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Per meeting with questions of the group: sums over these questions."""
        kept = np.full(len(self.group), True) if group is None else self.group == group
        _, place = np.unique(self.meeting[kept], return_inverse=True)
        return [np.bincount(place, value[kept]).astype(np.float64) for value in values]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: a score under the name of each of `modes`, with its difference to "on" and its groups
        (null for one without questions); `samples` is the number of questions."""
        groups = {name: self.group == name for name in get_args(Group)}
        found: dict[str, Any] = {"task": "dialogue", "modes": list(self.nats)}
        for mode in self.nats:
            scores = {name: self._scores(mode, name) if held.any() else None for name, held in groups.items()}
            found[mode] = {**self._scores(mode, None), "groups": scores}
        return found | {
            "samples": len(self.bytes),
            "meetings": len(np.unique(self.meeting)),
            "bytes": int(self.bytes.sum()),
            "groups": {
                name: {"samples": int(held.sum()), "meetings": len(np.unique(self.meeting[held]))}
                for name, held in groups.items()
            },
            "local_reach": self.local_reach,
            "state_bytes": self.state_bytes,
            "seed": self.seed,
        }

    def _scores(self, mode: MemoryMode, group: Group | None) -> dict[str, Any]:
        bits, worth = self.bits_per_byte(mode, group), self.minus_on(mode, group)
        return {**bits.to_dict("bits_per_byte"), "minus_on": worth.to_dict("bits_per_byte")}


def dialogue(
    model: LanguageModel,
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    modes: Sequence[MemoryMode] | None = None,
    max_meetings: int | None = None,
    max_turn_tokens: int | None = None,
    batch_size: int = 8,
    window: int | None = None,
    seed: int = 0,
    advance: Advance | None = None,
) -> DialogueResult:
    """Score the reference answers to the questions on every meeting of a file, once per mode.

    Args:
        model: the model; it stays on its device and its training mode is restored.
        tokenizer: the one the model was trained with.
        path: JSONL file with `turns` and `queries`; other records are passed over.
        modes: uses of the memory, "on" always among them; None for all that are possible: a single meeting
            has no other whose bank it could be given.
        max_meetings: take only the first so many; None for all.
        max_turn_tokens: cut the text of longer turns of a meeting behind so many tokens; None to keep them
            whole.
        batch_size: meetings read side by side.
        window: tokens of a meeting read in one call; None for about 2048. It changes memory use, not results.
        seed: seed of the bootstrap.
        advance: called with the number of tokens of meetings read, all rows together.

    Raises ValueError if the file cannot be used or has no questions, a token is unknown to the model, an
    argument is out of range, or "shuffled" is asked for with one meeting only.
    """
    if modes is not None and not set(modes) <= set(MODES):
        odd = next(mode for mode in modes if mode not in MODES)
        raise ValueError(f"modes has {odd!r}: choose among {', '.join(MODES)}")
    for name, value in (("batch_size", batch_size), ("window", window)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}: "
            "use the tokenizer the model was trained with"
        )
    reach = local_reach(model.config)
    meetings = read_meetings(
        path, tokenizer, reach, max_meetings=max_meetings, max_turn_tokens=max_turn_tokens
    )
    if modes is None:
        modes = [mode for mode in MODES if mode != "shuffled" or len(meetings) > 1]
    elif "shuffled" in modes and len(meetings) < 2:
        raise ValueError(
            f'mode "shuffled" needs at least two meetings, {path} gives one: it has no other to read from'
        )
    wanted: list[MemoryMode] = ["on", *(mode for mode in dict.fromkeys(modes) if mode != "on")]
    count = math.ceil(len(meetings) / batch_size)
    order = sorted(range(len(meetings)), key=lambda index: -len(meetings[index].tokens))
    segment = model.config.segment_len
    span = window or max(_WINDOW_TOKENS // segment * segment, min(segment, _WINDOW_TOKENS))

    nats: dict[MemoryMode, NDArray[np.float64]] = {}
    for mode in wanted:
        scores: dict[int, list[float]] = {}

        def score(part: tuple[int | None, list[int]], mode: MemoryMode = mode) -> list[list[float]]:
            donor, batch = None if part[0] is None else meetings[part[0]], [meetings[row] for row in part[1]]
            return _answers(model, batch, donor, mode, span, advance)

        parts = groups(order, count, mode, "meetings")
        for (_, rows), found in zip(parts, shared(parts, score), strict=True):
            scores |= zip(rows, found, strict=True)
        nats[mode] = np.array([value for index in sorted(scores) for value in scores[index]])
    questions = [question for meeting in meetings for question in meeting.questions]
    return DialogueResult(
        nats=nats,
        bytes=np.array([question.answer_bytes for question in questions], dtype=np.float64),
        meeting=np.repeat(np.arange(len(meetings)), [len(meeting.questions) for meeting in meetings]),
        group=np.array([question.group for question in questions]),
        local_reach=reach,
        state_bytes=model.initial_state(batch_size=1).nbytes,
        seed=operator.index(seed),
    )


def local_reach(config: ModelConfig) -> int:
    """Tokens before a token that it can know of without the memory, handed on from layer to layer."""
    return config.n_layers * (max(config.held.values(), default=0) + max(config.conv_width - 1, 0))


def _answers(
    model: LanguageModel,
    meetings: Sequence[Meeting],
    donor: Meeting | None,
    mode: MemoryMode,
    span: int,
    advance: Advance | None,
) -> list[list[float]]:
    """Nats of the answer to every question on every meeting of a batch."""
    front = front_rows(mode)
    read = behind(None if donor is None else donor.tokens, [meeting.tokens for meeting in meetings])
    state = scan(model, read, size=span, memory=mode, advance=advance)
    nats: list[list[float]] = [[] for _ in meetings]
    for number in range(max(len(meeting.questions) for meeting in meetings)):
        live = [index for index, meeting in enumerate(meetings) if number < len(meeting.questions)]
        # Under "shuffled" all meetings keep their rows: the row before one is to be the meeting it was
        # before.
        rows = list(range(-front, len(meetings))) if front else live
        asked = [meetings[row].questions[number] if row in live else None for row in rows]

        def score(piece: Piece, rows: list[int] = rows, asked: list[Question | None] = asked) -> None:
            for b, (row, one) in enumerate(zip(rows, asked, strict=True)):
                if one is not None:
                    logits_TV = piece.logits_BTV[b, one.n_prompt - 1 : len(one.tokens) - 1]
                    targets = torch.from_numpy(one.tokens[one.n_prompt :])
                    nats[row].append(float(token_nats(logits_TV, targets).double().sum()))

        questions = [NOTHING if one is None else one.tokens[:-1] for one in asked]
        placed = state.select([front + row for row in rows])
        scan(model, questions, placed, size=max(map(len, questions)), memory=mode, each=score)
    if not all(map(math.isfinite, chain.from_iterable(nats))):
        raise NotFiniteError
    return nats
