"""What goes into the engine and what comes out: a request, and the stream of text that answers it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rmat.generation.sampling import SamplingConfig
from rmat.model import StreamState

_log = logging.getLogger(__name__)

Finish = Literal["length", "stop", "end", "timeout", "stopped", "cancelled", "error"]
"""Why it is over: the three ends of `rmat.generate`, its deadline, the engine's stop, `cancel`, an error."""


class Full(Exception):
    """As many requests wait as may wait: try again later."""


class Stopped(Exception):
    """The engine takes no more requests."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to write."""

    ids: tuple[int, ...]
    """The prompt as it is: a text that begins has the document token first. Empty only with `next_logits`."""

    sampling: SamplingConfig
    """How tokens are chosen."""

    max_new_tokens: int
    """Most tokens to write; 0 only reads the prompt, for the stream's `state`."""

    stop: tuple[str, ...] = ()
    """Strings at which the text ends; they are not part of it."""

    logprobs: int | None = None
    """Report log-probabilities of each token and of this many likeliest ones (0 for none); None: do not."""

    prompt_logprobs: bool = False
    """Whether, with `logprobs`, the prompt's tokens are reported too; it is then read without the cache."""

    state: StreamState | None = None
    """What was read before (one row, any device); None begins afresh. It stays valid."""

    next_logits: Tensor | None = None
    """(V,) the logits that came with `state`; they let a text go on without a prompt."""

    close_turn: bool = False
    """Whether the turn-end token is read into the state of a text that the model did not end itself."""

    deadline: float | None = None
    """`time.monotonic()` at which the stream is ended with finish "timeout"; None for never."""

    owner: str = ""
    """Whose it is. Owners share the rows evenly, and only prompts of one owner share what was read, so that
    nobody can find out by timing what others asked."""


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """How likely a written token was, at temperature 1 and before any other setting."""

    token: int
    logprob: float
    """Natural logarithm of its probability; not a number for a prompt's first token with nothing before
    it."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens at its place and their log-probabilities, likeliest first."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Text that has become safe to show. Only the last piece of a stream may be without text."""

    text: str
    tokens: tuple[int, ...]
    """Tokens drawn since the piece before, special tokens and those of a stop string included."""
    logprobs: tuple[TokenLogprob, ...] | None
    """One for each token, if the request asked for them."""


class Stream(Iterator[Piece]):
    """The answer to one request: iterate over its pieces, in one thread; any thread may `cancel`.

    `finish` and what follows it here are complete once `finish` is not None, which is before the last `get`.
    """

    listener: Callable[[], None] | None
    """Called from the engine's thread after every new piece and after the end; it must not wait."""
    prompt_tokens: int
    """Tokens of the prompt."""
    cached_tokens: int
    """So many of them were not read again, because another prompt began with them."""
    prompt_logprobs: list[TokenLogprob]
    """One for each of the prompt's tokens, if the request asked for them; complete before the first piece."""
    tokens: list[int]
    """Tokens drawn so far, as in `rmat.generate`: a closing turn_end is among them, a document end is not."""
    finish: Finish | None
    """Why it is over; None before that."""
    closed: tuple[int, ...]
    """What the state has read behind `tokens` to close the turn (`Request.close_turn`): a turn_end that the
    model did not write, and what a chat template puts behind it."""
    state: StreamState | None
    """The state (one row, on the model's device) after the prompt, `tokens` and `closed`.
    None before the end, after an error, and where the prompt was not read to its end."""
    next_logits: Tensor | None
    """(V,) float32 on the CPU: logits of the token that comes next; None where `state` is."""
    error: Exception | None
    """What went wrong, if `finish` is "error". Not for the eyes of a client."""

    def __init__(
        self,
        prompt_tokens: int,
        tokens: list[int],
        *,
        listener: Callable[[], None] | None,
        wake: Callable[[], None],
    ) -> None:
        self.listener = listener
        self.prompt_tokens, self.cached_tokens = prompt_tokens, 0
        self.prompt_logprobs = []
        self.tokens, self.finish, self.closed = tokens, None, ()
        self.state, self.next_logits, self.error = None, None, None
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._wake = wake

    @property
    def completion_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self.tokens)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Give the text up: its row is free after this step. Pieces written until then still come."""
        self._cancelled.set()
        self._wake()

    def get(self, timeout: float | None = None) -> Piece | None:
        """The next piece, or None when it is over.

        Raises TimeoutError after `timeout` seconds (None: waits as long as it takes; 0: not at all).
        """
        try:
            piece = self._pieces.get(timeout != 0, timeout or None)
        except queue.Empty:
            raise TimeoutError(f"no piece within {timeout} seconds") from None
        if piece is None:
            self._pieces.put(None)  # whoever asks again is told again
        return piece

    def __next__(self) -> Piece:
        piece = self.get()
        if piece is None:
            raise StopIteration
        return piece

    def put(self, piece: Piece | None) -> None:
        """For the engine: hand over a piece, or None for the end."""
        self._pieces.put(piece)
        if self.listener is not None:
            try:
                self.listener()
            except Exception:  # as when its event loop is closed: then nobody reads any more
                _log.exception("a stream's listener failed")
                self._cancelled.set()
