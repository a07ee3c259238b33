"""The serving engine: one thread that reads prompts in slices and writes all texts in one batch."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import get_args

import torch

from rmat.engine.job import Batch, Job
from rmat.engine.prefix_cache import PrefixCache, first_call
from rmat.engine.request import Finish, Full, Request, Stopped, Stream
from rmat.generation.row import TextCodec
from rmat.generation.stream import check_tokenizer
from rmat.model import LanguageModel
from rmat.model.evaluating import evaluating
from rmat.settings import whole

_log = logging.getLogger(__name__)


class Engine:
    """Writes many texts at once with one model. Any thread may call `submit`, `stats` and a `Stream`.

    It reads without dropout, whatever mode the model is in. As a context manager, it is stopped at the end of
    the block without grace.

    Args:
        model: on any device.
        tokenizer: the one the model was trained with.
        max_rows: most requests that are read or written at a time; the others wait. Owners (`Request.owner`)
            share them.
        prefill_tokens: most prompt tokens that are read between two steps of the texts being written.
        max_waiting: most requests that wait, shared by the owners as `has_room` says.
        cache_bytes: most bytes of states kept for prompts that begin alike; 0 keeps none.

    Raises ValueError for a setting out of range, or a tokenizer that does not fit the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: TextCodec,
        *,
        max_rows: int = 16,
        prefill_tokens: int = 512,
        max_waiting: int = 64,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        check_tokenizer(tokenizer, model.config)
        for name, value, least in (
            ("max_rows", max_rows, 1),
            ("prefill_tokens", prefill_tokens, 1),
            ("max_waiting", max_waiting, 1),
            ("cache_bytes", cache_bytes, 0),
        ):
            whole(name, value, least)
        self._model, self._tokenizer = model, tokenizer
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._prefill_tokens = prefill_tokens
        self._least_cost = first_call(model.config.segment_len, prefill_tokens)
        self._cache = PrefixCache(cache_bytes)
        self._batch = Batch(model)
        self._reading: deque[Job] = deque()
        self._slices: Counter[str] = Counter()  # number of the last slice that each owner had
        self._counts: Counter[str] = Counter()
        self._stop_at = math.inf
        self._changed = threading.Condition()
        # Behind the lock of `_changed`:
        self._waiting: deque[Job] = deque()
        self._unfinished: set[Job] = set()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="rmat-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that writes runs: not after `stop`, nor after an error that it could not
        contain."""
        return self._thread.is_alive()

    def submit(self, request: Request, listener: Callable[[], None] | None = None) -> Stream:
        """Queue a request: the stream of its text, for which `listener` is called (see `Stream.listener`).

        Raises ValueError for a request that cannot be answered, `Full` if as many wait already as may,
        `Stopped` after `stop` or where the engine has died.
        """
        job = Job(
            request,
            self._model,
            self._tokenizer,
            slice_tokens=self._prefill_tokens,
            listener=listener,
            wake=self._wake,
            ended=self._note_end,
        )
        with self._changed:
            if not self._open:
                raise Stopped("the engine is stopped and takes no more requests")
            # What was cancelled while it waited stands here until the next turn, and must keep nobody out.
            waiting = Counter(
                each.owner for each in self._waiting if not each.begun and not each.stream.cancelled
            )
            if not has_room(waiting, job.owner, self._max_waiting):
                self._counts["refused"] += 1
                raise Full(f"{waiting.total()} requests wait already: try again later")
            self._waiting.append(job)
            self._unfinished.add(job)
            self._counts["requests"] += 1
            self._changed.notify()
        return job.stream

    def stop(self, grace: float = 0.0) -> None:
        """Take no more requests; end those that are not done within `grace` seconds with finish "stopped".

        Returns when the thread has ended. May be called more than once, by any thread but a listener's.
        """
        with self._changed:
            self._open = False
            self._stop_at = min(self._stop_at, time.monotonic() + grace)
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stats(self) -> dict[str, int]:
        """Where it stands (first group) and what it has done since the start.

        max_rows, max_waiting, rows (being written), reading (prompts being read), waiting, cache_entries,
        cache_bytes, cache_budget;
        requests (accepted), refused (Full), finished_NAME for every finish, tokens_read (of prompts, by the
        model), tokens_written, cache_hits (requests that began from the cache), cache_tokens (of prompts, not
        read again), steps (calls that wrote a token of every row), slices (calls that read).
        """
        with self._changed:
            waiting, unfinished = len(self._waiting), len(self._unfinished)
        reading = len(self._reading)
        counted = ("requests", "refused", "tokens_read", "cache_hits", "cache_tokens", "steps", "slices")
        return {
            "max_rows": self._max_rows,
            "max_waiting": self._max_waiting,
            "rows": unfinished - waiting - reading,
            "reading": reading,
            "waiting": waiting,
            "cache_entries": len(self._cache),
            "cache_bytes": self._cache.nbytes,
            "cache_budget": self._cache.budget,
            **{name: self._counts[name] for name in counted},
            "tokens_written": self._batch.tokens_written,
            **{f"finished_{name}": self._counts[f"finished_{name}"] for name in get_args(Finish)},
        }

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _work(self) -> None:
        """The thread: turns as long as there is work, until `stop`."""
        try:
            # no_grad rather than inference_mode: the states handed out may enter training later.
            with evaluating(self._model), torch.no_grad():
                while self._wait():
                    self._turn()
        except Exception as error:
            _log.exception("the serving engine has died")
            with self._changed:
                self._open = False
                left = list(self._unfinished)
                self._waiting.clear()
            self._reading.clear()
            for job in left:
                job.end(error=error)

    def _wait(self) -> bool:
        """Wait for work. False once there is none and none will come."""
        with self._changed:
            while not self._unfinished:
                if not self._open:
                    return False
                self._changed.wait()
            return True

    def _turn(self) -> None:
        """Let requests come and go, read a slice of the prompts, write a token of every text."""
        with self._changed:
            left = list(self._unfinished)
        for job in left:
            job.check_time(self._stop_at)
        self._drop()
        self._share_rows()
        self._batch.join(self._read_slice())
        if self._batch.jobs:
            self._counts["steps"] += 1
            self._batch.step()

    def _drop(self) -> None:
        """End the requests that were cut before their prompt was read. Parked texts that were cut end with
        the next step, as those in the batch do."""
        with self._changed:
            dropped = [job for job in (*self._waiting, *self._reading) if job.cut]
            self._waiting = deque(job for job in self._waiting if not job.cut)
        self._reading = deque(job for job in self._reading if not job.cut)
        self._batch.unpark([job for job in dropped if job.feed is not None])
        for job in dropped:
            if job.feed is None:
                job.end()

    def _share_rows(self) -> None:
        """Give rows to requests that wait, those of the owner with the fewest rows first. Where none is free,
        the owner with the most gives one up, as long as it still has no fewer than the other: its last
        request is parked."""
        if not self._waiting:
            return
        running = [*self._reading, *self._batch.jobs]
        rows = Counter(job.owner for job in running)
        taken: list[Job] = []
        parked: list[Job] = []
        with self._changed:
            while self._waiting:
                job = min(self._waiting, key=lambda job: rows[job.owner])  # the first of equals
                if rows.total() >= self._max_rows:
                    richest = max(rows, key=lambda owner: rows[owner])
                    if rows[richest] <= rows[job.owner] + 1:
                        break
                    last = next(other for other in reversed(running) if other.owner == richest)
                    running.remove(last)
                    rows[richest] -= 1
                    parked.append(last)
                self._waiting.remove(job)
                rows[job.owner] += 1
                taken.append(job)
            self._waiting.extendleft(parked)
        self._reading = deque(job for job in self._reading if job not in parked)
        if writing := [job for job in parked if job.feed is not None]:
            self._batch.park(writing)
        for job in taken:
            job.begun = True
        self._reading.extend(job for job in taken if job.feed is None)
        self._batch.unpark([job for job in taken if job.feed is not None])

    def _read_slice(self) -> list[Job]:
        """Read prompts as far as a slice goes, a call of each, owners and their prompts in turn. Returns the
        jobs whose prompts are read."""
        read: list[Job] = []
        spent = 0
        while self._reading:
            job = min(self._reading, key=lambda job: self._slices[job.owner])
            job.resume(self._cache)
            # A short call costs about as much time as one of the least length.
            cost = 0 if job.is_read else max(job.next_call, self._least_cost)
            if spent and spent + cost > self._prefill_tokens:
                break
            self._reading.remove(job)
            spent += cost
            if cost:
                self._counts["slices"] += 1
                self._slices[job.owner] = self._counts["slices"]
                self._counts["tokens_read"] += job.next_call
                try:
                    job.read(self._model, self._cache)
                except Exception as error:
                    job.end(error=error)
                    continue
            if job.is_read:
                self._counts["cache_hits"] += job.stream.cached_tokens > 0
                self._counts["cache_tokens"] += job.stream.cached_tokens
                read.append(job)
            else:
                self._reading.append(job)
        return read

    def _note_end(self, job: Job) -> None:
        with self._changed:
            self._counts[f"finished_{job.stream.finish}"] += 1
            self._unfinished.discard(job)


def has_room(counts: Mapping[str, int], owner: str, most: int) -> bool:
    """Whether one more of `owner`'s fits where `counts` are there by owner and `most` fit. Where it is full
    because others have more than their share, an owner still gets its own: owners cannot keep each other
    out."""
    return sum(counts.values()) < most or counts.get(owner, 0) < most // len({*counts, owner})
