"""One training run from top to bottom."""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from rmat.data.corpus import HeldOut, Position
from rmat.data.lanes import Batch
from rmat.data.tokenizer import Tokenizer
from rmat.machine import is_first_process, spread
from rmat.model import LanguageModel
from rmat.model.language_model import tokens_to
from rmat.training.config import RunConfig, TrainConfig
from rmat.training.distributed import same_width
from rmat.training.optimizer import learning_rate_factor, progress, set_learning_rate
from rmat.training.process import own_defaults, undisturbed
from rmat.training.progress import Reporter, Silent, Terminal, stop_on_signal
from rmat.training.records import Interval
from rmat.training.run import Run, open_run
from rmat.training.step import StepResult, training_step
from rmat.training.tracking import tracked

_ALLOCATOR = re.compile("out of memory|allocate memory|Storage size calculation", re.IGNORECASE)


class Evaluate(Protocol):
    """Scores of a model on held-out documents or rows; the first of them is the one to be small."""

    def __call__(
        self, model: LanguageModel, tokenizer: Tokenizer, held_out: HeldOut, *, max_bytes: int
    ) -> dict[str, float]: ...


class Sample(Protocol):
    """Text written by a model."""

    def __call__(self, model: LanguageModel, tokenizer: Tokenizer) -> str: ...


class NonFiniteError(RuntimeError):
    """More updates had to be skipped than `train.max_nonfinite` allows."""


def train(
    config: RunConfig | None = None,
    *,
    resume: Path | None = None,
    evaluate: Evaluate | None = None,
    sample: Sample | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Train a model and return the folder of the run; it holds result.json if the run was completed.

    config: what to train. With `resume`, the folder of an earlier run, it may be left out, and may differ
    from that run's only in how long it is, how closely it is watched and where it runs. On the same machine a
    resumed run equals an uninterrupted one bit for bit, unless a time budget (`train.max_minutes`) shapes the
    learning rate or a GPU's kernels add in no fixed order. evaluate, sample: called with the model in
    evaluation mode; random numbers they draw leave the training as it is.

    The exported model is the one of the last step, not of the best evaluation; the best is kept as a
    checkpoint. SIGINT or SIGTERM finishes the step, saves and returns. Raises ValueError for settings or data
    that cannot be used and NonFiniteError if the numbers break down."""
    reporter = reporter or Terminal()
    if not is_first_process():
        reporter = Silent()
    with undisturbed(), own_defaults(), open_run(config, resume, reporter) as run:
        settings = run.config.to_dict()
        names = run.config.train.track if run.processes.first else ()
        with tracked(reporter, names, run.folder, settings, run.counters.step) as run.reporter:
            _train(run, evaluate, sample)
        return run.folder


def _train(run: Run, evaluate: Evaluate | None, sample: Sample | None) -> None:
    train_config, counters, reporter = run.config.train, run.counters, run.reporter
    _tell_arithmetic(run)
    if evaluate is not None and not run.corpus.has_valid:
        reporter.say("no text is held out for validation (data.valid_share): nothing is evaluated")
        evaluate = None
    if train_config.compile:
        # Block by block: they share one graph, and the layout of documents around them depends on the data.
        for block in run.model.blocks:
            block.compile()
    run.model.train()
    windows = _windows(run)
    reporter.started(counters.step, train_config.steps)
    try:
        with stop_on_signal(reporter.say) as stop:
            began = time.perf_counter() - counters.elapsed
            over = _is_over(run)
            # Whoever is told to stop stops all.
            while not over and not any(run.processes.total(stop.requested)):
                started = time.perf_counter()
                share = progress(counters.step, counters.elapsed, train_config)
                lr = train_config.lr * learning_rate_factor(counters.step, share, train_config)
                set_learning_rate(run.optimizers, lr)
                with _memory_told(train_config):
                    batches, position = next(windows)
                    result = training_step(
                        run.model, run.optimizers, batches, run.state, train_config, run.replica
                    )

                run.state = result.state
                counters.lanes = position.to_dict()
                tokens = train_config.batch_size * sum(batch.tokens.shape[1] for batch in batches)
                counters.add(result, tokens, time.perf_counter() - started)
                counters.elapsed = _clock(run, began)
                over = _is_over(run)
                reporter.stepped(counters.step)

                if result.skipped is not None:
                    _note_skipped(run, result)
                if over or counters.step % train_config.log_every == 0:
                    _log_interval(run, lr)
                best = False
                if evaluate is not None and (over or _due(counters.step, train_config.eval_every)):
                    best = _evaluate(run, evaluate)
                if sample is not None and _due(counters.step, train_config.sample_every):
                    _sample(run, sample)
                if over or best or counters.step % train_config.checkpoint_every == 0:
                    counters.elapsed = _clock(run, began)
                    run.save()
            if not over:
                run.save()
                run.saver.wait()
                reporter.say(
                    f"stopped after step {counters.step:,} and saved; go on with: rmat train --resume "
                    f"{run.folder}"
                )
                return
    finally:
        reporter.stopped()
    if evaluate is not None and counters.evaluated_step != counters.step:
        _evaluate(run, evaluate)
        run.save()
    run.saver.wait()
    run.export()
    reporter.say(f"done: the model of step {counters.step:,}, the last, is in {run.folder / 'model'}")


def _windows(run: Run) -> Iterator[tuple[list[Batch], Position]]:
    """The batches of each update, on the device but for the document starts, which decide on shapes; and the
    position in the data after them."""
    config, processes = run.config.train, run.processes
    rows = processes.rows(config.batch_size)
    lanes = run.corpus.lanes(config.batch_size, config.window, config.seed, config.accumulate, rows)
    stream = lanes.resumed(run.counters.lanes)
    filling = run.corpus.tokenizer.special_id("document")
    while True:
        batches = []
        for _ in range(config.accumulate):
            batch, after = next(stream)
            # As wide as with all rows side by side, so that nothing depends on how they are shared out.
            batch = same_width(batch, processes.most(batch.tokens.shape[1]), filling)
            tokens = tokens_to(run.device, batch.tokens, run.model.config.vocab_size)
            batches.append(Batch(tokens, batch.targets.to(run.device), batch.resets))
        yield batches, after


@contextlib.contextmanager
def _memory_told(config: TrainConfig) -> Iterator[None]:
    """Errors of allocators, which torch raises as RuntimeError, as a MemoryError of one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _ALLOCATOR.search(str(error)):
            raise
        raise MemoryError(
            f"not enough memory for {config.batch_size} rows of {config.window} tokens: lower "
            "train.batch_size or "
            "train.window, or take a smaller model"
        ) from error


def _tell_arithmetic(run: Run) -> None:
    """Say before the first update what the settings amount to."""
    config = run.config.train
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    schedule, reason = run.model.resolve_schedule("auto")
    row = run.corpus.row_tokens(config.window, config.steps)
    step = round(config.batch_size * config.accumulate * row)
    about, total = "" if row == config.window else "about ", step * config.steps
    budget = "" if config.max_minutes is None else f", at most {config.max_minutes:g} minutes"
    what, share = run.corpus.summary(total)
    run.reporter.say(
        f"model   {run.config.preset} {run.config.variant}: {parameters:,} parameters, {schedule} schedule "
        f"({reason})\n"
        f"data    {what}\n"
        f"step    {config.batch_size} rows x {about}{row:.0f} tokens x {config.accumulate} windows = "
        f"{about}{step:,} tokens\n"
        f"run     {config.steps:,} steps = {about}{total:,} tokens = {share}{budget}\n"
        f"device  {run.device} ({run.device_reason}), "
        f"{config.dtype}{', compiled' if config.compile else ''}{_together(run)}\n"
        f"folder  {run.folder}"
    )


def _clock(run: Run, began: float) -> float:
    """Seconds since `began`; where they decide on anything, on the clock of the first process for all."""
    own = time.perf_counter() - began
    if run.config.train.max_minutes is None:
        return own
    (seconds,) = run.processes.total(own if run.processes.first else 0.0)
    return seconds


def _together(run: Run) -> str:
    count, kind = run.processes.count, "fsdp" if run.replica.sharded else "ddp"
    parts = f", {run.processes.context} a row" if run.processes.context > 1 else ""
    return f"; {count} processes ({kind}{parts})" if run.processes.mesh is not None else ""


def _is_over(run: Run) -> bool:
    return progress(run.counters.step, run.counters.elapsed, run.config.train) >= 1.0


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _note_skipped(run: Run, result: StepResult) -> None:
    """Write down an update that was skipped; raise NonFiniteError if it is one too many."""
    row = {
        "kind": "skipped",
        "step": run.counters.step,
        "reason": result.skipped,
        "so_far": run.counters.nonfinite,
    }
    _write_row(run, row)
    limit = run.config.train.max_nonfinite
    if run.counters.nonfinite > limit:
        raise NonFiniteError(
            f"{result.skipped} at step {run.counters.step}, and {run.counters.nonfinite} updates were "
            "skipped for this "
            f"(train.max_nonfinite={limit}): lower train.lr, or train in float32"
        )


def _log_interval(run: Run, lr: float) -> None:
    """Write the training row for the updates since the last one."""
    counters, interval = run.counters, run.counters.interval
    loss = interval.nats / interval.scored if interval.scored else None
    speed = interval.tokens / max(interval.seconds, 1e-9)
    share = progress(counters.step, counters.elapsed, run.config.train)
    openness = _openness(run)
    row = {
        "kind": "train",
        "step": counters.step,
        "tokens": counters.tokens,
        "loss": loss,
        "bits_per_byte": None if loss is None else run.corpus.bits_per_byte(loss),
        "gradient_norm": interval.gradient_norm / interval.updates if interval.updates else None,
        "lr": lr,
        "openness": openness,
        "tokens_per_second": speed,
        "elapsed": counters.elapsed,
        "seconds_left": counters.elapsed / share * (1 - share),
    }
    counters.interval = Interval()
    _write_row(run, row)


def _openness(run: Run) -> list[float]:
    """Share of tokens that entered each layer's bank, the mean over all rows."""
    config = run.model.config
    if not config.has_memory or run.state is None:
        return []
    sums = run.processes.total_of_rows(*run.state.openness().sum(1).tolist())
    return [share / run.config.train.batch_size for share in sums]


def _evaluate(run: Run, evaluate: Evaluate) -> bool:
    """Score the model on the validation split; whether it is the best so far."""
    model = run.replica.whole()
    assert model is not None
    model.eval()
    with undisturbed(), torch.no_grad(), spread():
        config = run.config.train
        held_out = run.corpus.held_out(config.batch_size, config.window)
        scores = evaluate(model, run.corpus.tokenizer, held_out, max_bytes=config.eval_bytes)
    run.model.train()
    _write_row(run, {"kind": "eval", "step": run.counters.step, **scores})
    return run.counters.note_evaluation(dict(scores))


def _sample(run: Run, sample: Sample) -> None:
    """Let the model write a text and keep it."""
    model = run.replica.whole(everywhere=False)
    if model is None or not run.processes.first:
        return
    model.eval()
    with undisturbed(), torch.no_grad():
        text = sample(model, run.corpus.tokenizer)
    run.model.train()
    run.samples.append({"step": run.counters.step, "text": text})
    run.reporter.say(f"step {run.counters.step:,} sample: {text}")


def _write_row(run: Run, row: dict[str, Any]) -> None:
    if run.processes.first:
        run.metrics.append(row)
    run.reporter.logged(row)
