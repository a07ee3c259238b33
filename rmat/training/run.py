"""The folder of a run, and what a run is made of once it is open.

config.json         the resolved configuration
environment.json    versions, machine, commit, seed
data.json           what was read: counts and hashes
metrics.jsonl       rows of kind "train", "eval" and "skipped"
samples.jsonl       text written by the model on the way
checkpoints/        see `checkpoint`
model/              the model as it was at the end, with its tokenizer
result.json         the outcome; there once the run is complete
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from rmat.data.corpus import Corpus, load_corpus
from rmat.data.store import TokenStore
from rmat.machine import describe_environment, pick_device
from rmat.model import LanguageModel, StreamState
from rmat.storage import remove_partial, replacing_folder, save_model, write_json
from rmat.tasks.corpus import TaskCorpus, load_tasks
from rmat.tasks.registry import is_task
from rmat.training import rng
from rmat.training.checkpoint import (
    Checkpoint,
    model_tensors,
    newest_sound_checkpoint,
    prune_checkpoints,
    restore_model,
    write_checkpoint,
)
from rmat.training.config import RunConfig, check_resumable
from rmat.training.counters import Counters
from rmat.training.metrics import JsonLines
from rmat.training.optimizer import build_optimizers, optimizer_tensors, restore_optimizers
from rmat.training.progress import Reporter
from rmat.training.start import copy_weights, with_model_of_start


@dataclass
class Run:
    """A run that is open: everything the loop works on."""

    config: RunConfig
    folder: Path
    corpus: Corpus | TaskCorpus
    model: LanguageModel
    optimizers: list[Optimizer]
    device: torch.device
    device_reason: str
    reporter: Reporter
    metrics: JsonLines
    samples: JsonLines
    counters: Counters
    state: StreamState | None = None
    """What each row carries into the next window."""

    def save(self) -> None:
        """Write a checkpoint of this moment and drop those no longer kept."""
        self.metrics.sync()
        self.samples.sync()
        rng_tensors, rng_values = rng.capture()
        tensors = {
            "model": model_tensors(self.model),
            "optimizer": optimizer_tensors(self.model, self.optimizers),
            "rng": rng_tensors,
        }
        if self.state is not None:
            tensors["stream"] = self.state.tensors()
        values = {"counters": self.counters.to_dict(), "rng": rng_values}
        folder = self.folder / "checkpoints"
        write_checkpoint(folder, Checkpoint(step=self.counters.step, tensors=tensors, values=values))
        prune_checkpoints(folder, self.config.train.keep_last, self.counters.best_step)

    def begin(self) -> None:
        """Take the weights of the model that the run starts from, if there is one."""
        if self.config.start is not None:
            copy_weights(self.config.start, self.model)

    def restore(self) -> None:
        """Continue from the newest whole checkpoint, or from the beginning if there is none."""
        for folder in (self.folder, self.folder / "checkpoints"):
            remove_partial(folder)
        checkpoint = newest_sound_checkpoint(self.folder / "checkpoints", self.reporter.say)
        if checkpoint is None:
            self.reporter.say("no checkpoint to continue from: starting at step 0")
            self.begin()
        else:
            restore_model(self.model, checkpoint.tensors["model"])
            restore_optimizers(self.model, self.optimizers, checkpoint.tensors["optimizer"])
            if "stream" in checkpoint.tensors:
                held = StreamState.from_tensors(self.model.config, checkpoint.tensors["stream"])
                self.state = held.to(self.device)
            rng.restore(checkpoint.tensors["rng"], checkpoint.values["rng"])
            self.counters = Counters.from_dict(checkpoint.values["counters"])
            self.reporter.say(f"continuing after step {self.counters.step:,}")
        self.metrics.cut_after(self.counters.step)
        self.samples.cut_after(self.counters.step)

    def export(self) -> dict[str, Any]:
        """Write model/ and result.json; the result."""
        with replacing_folder(self.folder / "model") as partial:
            save_model(self.model, partial, tokenizer=self.corpus.tokenizer)
        counters = self.counters
        result = {
            "run": str(self.folder),
            "steps": counters.step,
            "tokens": counters.tokens,
            **{f"valid_{name}": value for name, value in counters.evaluation.items()},
            "valid_bits_per_byte": counters.evaluation.get("bits_per_byte"),
            "valid_bits_per_byte_memory_zeroed": counters.evaluation.get("bits_per_byte_memory_zeroed"),
            "tokens_per_second": counters.tokens / max(counters.step_seconds, 1e-9),
        }
        write_json(self.folder / "result.json", result)
        return result


def open_run(config: RunConfig | None, resume: Path | None, reporter: Reporter) -> Run:
    """Make the folder of a new run, or open that of one to be continued; load the data and build the model.

    Raises ValueError if there is nothing to resume, if the folder of a new run already holds one, or if the
    configuration or the data of a resumed run is not what it was started with."""
    if resume is not None:
        stored = RunConfig.load(resume)
        if config is not None and config.out is not None and Path(config.out).resolve() != resume.resolve():
            raise ValueError(
                f"out is {config.out!r} but the run to resume is in {resume}, where it stays: leave `out` out"
            )
        config = stored if config is None else dataclasses.replace(config, out=stored.out)
        check_resumable(stored, config)
    elif config is None:
        raise ValueError("neither a configuration nor a run to resume was given: give one of them")
    folder = Path(config.out) if config.out is not None else _new_folder(config)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder for the run")
    if resume is None and (folder / "config.json").exists():
        raise ValueError(
            f"{folder} already holds a run: resume it with --resume {folder}, or give another folder"
        )
    if config.start is not None and resume is None:
        config = with_model_of_start(config)
    device, reason = pick_device(config.train.device)
    corpus = load_tasks(config.data) if any(map(is_task, config.data.specs)) else load_corpus(config.data)
    model_config = config.model_config(corpus.tokenizer.vocab_size)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    environment = describe_environment(device, config.train.seed)
    if resume is not None:
        _check_same_data(folder, corpus)
        _warn_of_other_environment(folder, environment, reporter)
    # Only now: a refused resume leaves a complete run complete.
    (folder / "result.json").unlink(missing_ok=True)
    write_json(folder / "environment.json", environment)
    write_json(folder / "data.json", _describe_data(corpus))
    # Last, because a folder counts as a run that can be resumed once it has this file.
    write_json(folder / "config.json", config.to_dict())

    rng.seed_everything(config.train.seed)
    model = LanguageModel(model_config).to(device)
    run = Run(
        config=config,
        folder=folder,
        corpus=corpus,
        model=model,
        optimizers=build_optimizers(model, config.train),
        device=device,
        device_reason=reason,
        reporter=reporter,
        metrics=JsonLines(folder / "metrics.jsonl"),
        samples=JsonLines(folder / "samples.jsonl"),
        counters=Counters(),
    )
    if resume is None:
        run.begin()
    else:
        run.restore()
    return run


def _new_folder(config: RunConfig) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.preset}-{config.variant}-{stamp}"


def _describe_data(corpus: Corpus | TaskCorpus) -> dict[str, Any]:
    if isinstance(corpus, TaskCorpus):
        return corpus.description

    def split(store: TokenStore) -> dict[str, Any]:
        return {
            "documents": len(store),
            "tokens": int(store.n_tokens),
            "bytes": int(store.n_bytes),
            "fingerprint": store.fingerprint,
        }

    return {
        "tokenizer": corpus.tokenizer.fingerprint,
        "train": split(corpus.train),
        "valid": split(corpus.valid),
        "test": split(corpus.test),
        "description": json.loads(json.dumps(corpus.description)),
    }


def _check_same_data(folder: Path, corpus: Corpus | TaskCorpus) -> None:
    """Raise ValueError if the data is not what the run in `folder` was started on."""
    path = folder / "data.json"
    now = _describe_data(corpus)
    for name, before in json.loads(path.read_text(encoding="utf-8")).items():
        if now.get(name) != before:
            raise ValueError(
                f"the data has changed since the run in {folder} was started ({name} differs from {path.name}): "
                "put it back as it was, or start a new run"
            )


def _warn_of_other_environment(folder: Path, environment: dict[str, Any], reporter: Reporter) -> None:
    before = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    changed = [name for name, value in environment.items() if before.get(name) != value]
    if changed:
        reporter.say(
            f"the environment differs from before ({', '.join(changed)}): results may not be the same bit for bit"
        )
