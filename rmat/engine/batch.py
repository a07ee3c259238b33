"""The texts that are being written, in one state with a row for each: one call of the model reads a token of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from rmat.engine.job import Job
from rmat.model import LanguageModel, StreamState

_log = logging.getLogger(__name__)


class Batch:
    """Rows at different places of different texts. They join and leave between steps, and only then is the common
    state put together anew."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._state = model.initial_state(batch_size=0)
        self.jobs: list[Job] = []
        """Whose rows they are, in order; each has a token to feed."""
        self.tokens_written = 0
        """Tokens drawn since the start."""

    def join(self, jobs: Sequence[Job]) -> None:
        """Choose the first token of jobs whose prompts are read; take those in that are not over with that."""
        if not jobs:
            return
        logits_BV = torch.stack([job.logits for job in jobs if job.logits is not None])
        state = StreamState.concat([job.state for job in jobs])
        staying = self._advance(jobs, logits_BV, state)
        if staying:
            self.jobs += [jobs[row] for row in staying]
            self._state = StreamState.concat([self._state, state.select(staying)])

    def step(self) -> None:
        """Let each row read the token it has chosen, and choose its next one. Texts that are over leave."""
        logits_BV, self._state = self._read()
        staying = self._advance(self.jobs, logits_BV, self._state)
        if len(staying) < len(self.jobs):
            self.jobs = [self.jobs[row] for row in staying]
            self._state = self._state.select(staying)

    def _read(self) -> tuple[Tensor, StreamState]:
        """(B, V) float32 logits on the CPU after each row's token, and the state. A row that cannot be read leaves."""
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
        """Choose each row's next token; end the texts that are over. Returns the rows that have a token to feed."""
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
