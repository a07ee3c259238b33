"""States after the beginnings of prompts, so that a prompt that begins alike starts from there.

A prompt is read in calls that end at fixed positions (`cuts`), which depend on the position alone. The calls
up to one of them are therefore the same for every prompt that is at least as long, and a state taken there is
bit for bit what reading from the start would give.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rmat.model import StreamState

FIRST_CALL = 128
"""Tokens of a prompt's first call, rounded down to whole segments; at least one segment."""

SHARE = 4
"""One prompt has at most a SHARE-th of the cache, so that a long one does not push out all others."""


def first_call(segment_len: int, most: int) -> int:
    """Tokens of the shortest call that is not a prompt's last: whole segments where `most` allows one."""
    length = max(segment_len, FIRST_CALL - FIRST_CALL % segment_len)
    if length <= most:
        return length
    return most - most % segment_len if most >= segment_len else most


def cuts(n_tokens: int, segment_len: int, most: int) -> Iterator[int]:
    """Where the calls end that read a prompt of `n_tokens`, but for the last, which ends with the prompt.

    Calls are short near the start, so that short prompts share much, and grow with the position up to `most`
    tokens: at least seven eighths of a common beginning end at a cut, once it is longer than eight calls.
    """
    call = first_call(segment_len, most)
    at = call
    while at < n_tokens:
        yield at
        if 2 * call <= most and at >= 16 * call:
            call *= 2
        at += call


def prefix_keys(scope: str, ids: NDArray[np.int64], ends: Sequence[int]) -> list[bytes]:
    """A key of each beginning `ids[:end]`, for rising `ends`: SHA-256 of the scope and all its tokens."""
    digest = hashlib.sha256(hashlib.sha256(scope.encode("utf-8", "surrogatepass")).digest())
    keys, start = [], 0
    for end in ends:
        digest.update(ids[start:end].astype("<i8", copy=False).tobytes())
        keys.append(digest.copy().digest())
        start = end
    return keys


class PrefixCache:
    """States by key, at most `budget` bytes of them; those not used for longest go first. For one thread."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        """Bytes of all states in it."""
        self._states: OrderedDict[bytes, StreamState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, key: bytes) -> bool:
        return key in self._states

    def get(self, key: bytes) -> StreamState | None:
        """The state with this key, which counts as used now."""
        state = self._states.get(key)
        if state is not None:
            self._states.move_to_end(key)
        return state

    def put(self, key: bytes, state: StreamState) -> None:
        """Keep a copy of a state, unless it alone is too large."""
        if key in self._states or state.nbytes > self.budget:
            return
        self._states[key] = state.clone()
        self.nbytes += state.nbytes
        while self.nbytes > self.budget:
            _, oldest = self._states.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def stride(self, n_cuts: int, state_bytes: int) -> int:
        """Of a prompt with `n_cuts` cuts, every so many-th is kept (a power of two), as its share allows."""
        allowed = max(1, self.budget // state_bytes // SHARE)
        times = max(1, -(-n_cuts // allowed))
        return 1 << (times - 1).bit_length()
