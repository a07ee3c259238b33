"""One request on its way through the engine, and all that are being written: a prompt is read call by call,
then its text is written token by token, in one call of the model with all others."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmat.engine.prefix_cache import PrefixCache, cuts, prefix_keys
from rmat.engine.request import Finish, Piece, Request, Stream, TokenLogprob
from rmat.generation.reader import check_finite
from rmat.generation.row import Row, TextCodec
from rmat.generation.stream import check_start
from rmat.model import LanguageModel, StreamState

_log = logging.getLogger(__name__)

SCORED = 64
"""So many tokens of a prompt are scored at a time: each takes a number for every token of the vocabulary."""


class Job:
    """A request and the stream that answers it. Made by any thread, then used by the engine's alone.

    Args:
        slice_tokens: longest call that reads the prompt.
        listener, wake: see `Stream`.
        ended: called before the stream is told that it is over.

    Raises ValueError for a request that the model cannot answer.
    """

    feed: int | None
    """Once the prompt is read: the token for the model to read next, None if the text is over."""
    begun: bool
    """Whether it has had a row."""
    cut: Finish | None
    """Why the engine ends the text, whether or not it has come to its own end."""

    def __init__(
        self,
        request: Request,
        model: LanguageModel,
        tokenizer: TextCodec,
        *,
        slice_tokens: int,
        listener: Callable[[], None] | None,
        wake: Callable[[], None],
        ended: Callable[[Job], None],
    ) -> None:
        ids = _checked_ids(request, model)
        if request.logprobs is not None and not 0 <= request.logprobs <= tokenizer.vocab_size:
            raise ValueError(
                f"logprobs is {request.logprobs}: give 0 to {tokenizer.vocab_size}, or leave it out"
            )
        self._row = Row(
            tokenizer, max_new_tokens=request.max_new_tokens, sampling=request.sampling, stop=request.stop
        )
        self.stream = Stream(len(ids), self._row.tokens, listener=listener, wake=wake)
        self._ended = ended
        self.owner = request.owner
        self.feed, self.cut, self.begun = None, None, False
        device = model.embedding.weight.device
        start = model.initial_state(batch_size=1) if request.state is None else request.state
        self.state = start.to(device)
        self.logits = request.next_logits
        self._deadline = request.deadline
        self._close_turn = request.close_turn
        self._turn_end, self._closing = tokenizer.special_id("turn_end"), tokenizer.closing
        self._rest: list[int] | None = None
        self._vocab_size = tokenizer.vocab_size
        self._n_logprobs = request.logprobs
        self._scores_prompt = request.prompt_logprobs and request.logprobs is not None
        self._unsent: list[int] = []
        self._unsent_logprobs: list[TokenLogprob] = []
        inner = list(cuts(len(ids), model.config.segment_len, slice_tokens))
        # What a session goes on with is no beginning that other prompts could share.
        shares = request.state is None and not self._scores_prompt
        self._keys = prefix_keys(request.owner, ids, inner) if shares else []
        self._ends = [*inner, len(ids)] if len(ids) else []
        self._calls = 0
        self._read = 0
        self._tokens_1T = torch.from_numpy(ids)[None].to(device)

    @property
    def is_read(self) -> bool:
        """Whether the prompt is read."""
        return self._calls == len(self._ends)

    @property
    def next_call(self) -> int:
        """Tokens of the next call that reads the prompt."""
        return self._ends[self._calls] - self._read

    def check_time(self, stop_at: float) -> None:
        """Set `cut` if the stream was cancelled, or its deadline or `stop_at` (`time.monotonic()`) has
        come."""
        now = time.monotonic()
        if self.cut is not None:
            return
        if self.stream.cancelled:
            self.cut = "cancelled"
        elif self._deadline is not None and now >= self._deadline:
            self.cut = "timeout"
        elif now >= stop_at:
            self.cut = "stopped"

    def resume(self, cache: PrefixCache) -> None:
        """Skip to the furthest place of the prompt that the cache has a state of."""
        for index in range(len(self._keys) - 1, self._calls - 1, -1):
            state = cache.get(self._keys[index])
            if state is not None:
                self.stream.cached_tokens += self._ends[index] - self._read
                self.state, self._read, self._calls = state, self._ends[index], index + 1
                return

    def read(self, model: LanguageModel, cache: PrefixCache) -> None:
        """Read on to the end of the next call, and give the cache the state if it is worth its bytes.

        One row at a time and from the same tensors, so that every call is bit for bit what it would be in a
        cold start.
        """
        end = self._ends[self._calls]
        hidden, self.state = model.hidden(self._tokens_1T[:, self._read : end], self.state)
        if self._scores_prompt:
            self._score(model, hidden[0])
        index, self._read, self._calls = self._calls, end, self._calls + 1
        if index < len(self._keys):
            stride = cache.stride(len(self._keys), self.state.nbytes)
            if self._calls % stride == 0 or self._calls == len(self._keys):
                cache.put(self._keys[index], self.state)
        if self.is_read:
            self.logits = model.logits(hidden[0, -1]).float().cpu()

    def _score(self, model: LanguageModel, hidden: Tensor) -> None:
        """Report how likely the next tokens of the prompt were, after which the model is at `hidden` (tokens,
        d_model)."""
        assert self._n_logprobs is not None
        tokens = self._tokens_1T[0, self._read : self._read + len(hidden)].tolist()
        for start in range(0, len(tokens), SCORED):
            logits = model.logits(hidden[start : start + SCORED]).float().cpu()
            for token, after in zip(tokens[start : start + SCORED], logits, strict=True):
                if self.logits is None:
                    told = TokenLogprob(token=token, logprob=math.nan, top=())
                else:
                    told = self._likelihood(token, self.logits, self._n_logprobs)
                self.stream.prompt_logprobs.append(told)
                self.logits = after

    def advance(self, logits: Tensor) -> bool:
        """Choose and show the next token, from its `logits` (V,) float32 on the CPU; set `feed`.

        Returns whether a token was drawn."""
        token = None if self.cut else self._row.draw(logits)
        if token is not None:
            self._unsent.append(token)
            if self._n_logprobs is not None:
                self._unsent_logprobs.append(self._likelihood(token, logits, self._n_logprobs))
            self._send(self._row.show(token))
            self.feed = token
            return True
        check_finite(
            logits
        )  # `draw` has looked at those that it draws from; nobody shall go on from broken ones
        if self._rest is None:
            ended = bool(self._row.tokens) and self._row.tokens[-1] == self._turn_end
            self._rest = [*([] if ended else [self._turn_end]), *self._closing] if self._close_turn else []
            self.stream.closed = tuple(self._rest)
        self.feed = self._rest.pop(0) if self._rest else None
        return False

    def end(
        self,
        state: StreamState | None = None,
        logits: Tensor | None = None,
        error: Exception | None = None,
    ) -> None:
        """Finish the stream: with the `state` (one row) and the `logits` (V,) after it, if its prompt was
        read to the end; with an `error` if that was the end of it."""
        rest, stream = self._row.rest(), self.stream
        finish = "error" if error is not None else self._row.finish or self.cut
        assert finish is not None
        self.feed = None
        if error is not None:
            _log.error("a request failed", exc_info=error)
            stream.error = error.with_traceback(None)  # the frames hold tensors
        stream.state, stream.next_logits = state, logits
        stream.finish = finish
        if rest or self._unsent:
            self._send(rest, last=True)
        self._ended(self)
        stream.put(None)

    def _send(self, text: str, *, last: bool = False) -> None:
        if not text and not last:
            return
        logprobs = None if self._n_logprobs is None else tuple(self._unsent_logprobs)
        piece = Piece(text=text, tokens=tuple(self._unsent), logprobs=logprobs)
        self._unsent, self._unsent_logprobs = [], []
        self.stream.put(piece)

    def _likelihood(self, token: int, logits: Tensor, n_top: int) -> TokenLogprob:
        logprobs = logits[: self._vocab_size].log_softmax(-1)
        best = logprobs.topk(n_top)
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return TokenLogprob(token=token, logprob=float(logprobs[token]), top=top)


class Batch:
    """The texts that are being written: one state with a row for each, one call for a token of each.

    Rows are at different places of different texts. They come and go between steps, and only then is the
    common state put together anew.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._state = model.initial_state(batch_size=0)
        self.jobs: list[Job] = []
        """Whose rows they are, in order; each has a token to feed."""
        self.tokens_written = 0
        """Tokens drawn since the start."""

    def join(self, jobs: Sequence[Job]) -> None:
        """Choose the first token of jobs whose prompts are read; take in those that are not over."""
        if not jobs:
            return
        logits_BV = torch.stack([job.logits for job in jobs if job.logits is not None])
        state = StreamState.concat([job.state for job in jobs])
        staying = self._advance(jobs, logits_BV, state)
        if staying:
            self._add([jobs[row] for row in staying], state.select(staying))

    def park(self, jobs: Sequence[Job]) -> None:
        """Put texts aside where they are; `unpark` goes on with them as if nothing had been."""
        for row, job in enumerate(self.jobs):
            if job in jobs:
                job.state = self._state.select([row])
        staying = [row for row, job in enumerate(self.jobs) if job not in jobs]
        self.jobs, self._state = [self.jobs[row] for row in staying], self._state.select(staying)

    def unpark(self, jobs: Sequence[Job]) -> None:
        """Go on with texts that were put aside."""
        if jobs:
            self._add(jobs, StreamState.concat([job.state for job in jobs]))

    def _add(self, jobs: Sequence[Job], state: StreamState) -> None:
        self.jobs += jobs
        self._state = StreamState.concat([self._state, state])

    def step(self) -> None:
        """Let each row read the token it has chosen, and choose its next one. Texts that are over leave."""
        logits_BV, self._state = self._read()
        staying = self._advance(self.jobs, logits_BV, self._state)
        if len(staying) < len(self.jobs):
            self.jobs = [self.jobs[row] for row in staying]
            self._state = self._state.select(staying)

    def _read(self) -> tuple[Tensor, StreamState]:
        """(B, V) float32 logits on the CPU after each row's token, and the state. Rows that fail leave."""
        tokens_B1 = torch.tensor(
            [[job.feed] for job in self.jobs], device=self._model.embedding.weight.device
        )
        try:
            logits, state = self._model(tokens_B1, self._state)
            return logits[:, 0].float().cpu(), state
        except Exception:
            _log.exception("a step of %d rows failed: trying each alone", len(self.jobs))
        read: list[tuple[Job, Tensor, StreamState]] = []
        for row, job in enumerate(self.jobs):
            try:
                logits, state = self._model(tokens_B1[row : row + 1], self._state.select([row]))
                read.append((job, logits[0, 0].float().cpu(), state))
            except Exception as error:
                job.end(error=error)
        self.jobs = [job for job, _, _ in read]
        if not read:
            return torch.empty(0, self._model.config.vocab_size), self._state.select([])
        return torch.stack([logits for _, logits, _ in read]), StreamState.concat(
            [state for *_, state in read]
        )

    def _advance(self, jobs: Sequence[Job], logits_BV: Tensor, state: StreamState) -> list[int]:
        """Choose each row's next token; end the texts that are over. Returns the rows that go on."""
        staying = []
        for row, job in enumerate(jobs):
            try:
                self.tokens_written += job.advance(logits_BV[row])
            except Exception as error:
                job.end(error=error)
                continue
            if job.feed is None:
                job.end(state.select([row]), logits_BV[row].clone())
            else:
                staying.append(row)
        return staying


def _checked_ids(request: Request, model: LanguageModel) -> NDArray[np.int64]:
    """The prompt (tokens,), if the model can go on with it from where the request begins."""
    config = model.config
    check_start(config, request.ids, request.state, request.next_logits)
    if request.state is not None:
        if request.state.fingerprint != config.fingerprint():
            raise ValueError(
                "the state belongs to a model with another configuration: go on with the model that made it"
            )
        if request.state.dtype != model.embedding.weight.dtype:
            kind = model.embedding.weight.dtype
            raise ValueError(
                f"the state holds {request.state.dtype}, the model computes in {kind}: use state.to({kind})"
            )
    ids = np.asarray(request.ids) if request.ids else np.empty(0, dtype=np.int64)
    if ids.ndim != 1 or ids.dtype.kind != "i":
        raise ValueError("the prompt is no list of whole numbers: give token ids")
    if ids.size and not 0 <= ids.min() <= ids.max() < config.vocab_size:
        odd = int(ids.min() if ids.min() < 0 else ids.max())
        raise ValueError(
            f"token {odd} of the prompt is out of range: ids must be in [0, {config.vocab_size})"
        )
    return ids.astype(np.int64, copy=False)
