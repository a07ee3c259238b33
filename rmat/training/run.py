"""The folder of a run, and what a run is made of once it is open.

config.json         the resolved configuration
environment.json    versions, machine, commit, seed
data.json           what was read: counts and hashes
metrics.jsonl       rows of kind "train", "eval" and "skipped"
samples.jsonl       text written by the model on the way
checkpoints/        see `checkpoint`
tokenizer.json      a copy, where data.tokenizer is a file
model/              the model as it was at the end, with its tokenizer
result.json         the outcome; there once the run is complete
.lock               there while a process works in the folder
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch.optim import Optimizer

from rmat.data.config import DataConfig
from rmat.data.corpus import Corpus
from rmat.data.tokenizer import load_tokenizer
from rmat.machine import describe_environment, pick_device
from rmat.model import LanguageModel, ModelConfig, StreamState
from rmat.model.config import EVICTION_FIELDS, TRAINING_ONLY
from rmat.storage import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    load_model,
    model_folder,
    read_config,
    remove_partial,
    replacing,
    replacing_folder,
    save_model,
    writable,
    write_json,
)
from rmat.tasks.corpus import load_data, refuse_ambiguous
from rmat.training import process
from rmat.training.checkpoint import (
    Checkpoint,
    Saver,
    is_state,
    is_weight,
    model_tensors,
    newest_sound_checkpoint,
)
from rmat.training.config import RunConfig, check_resumable
from rmat.training.distributed import Processes, Replica, joined, refuse_sharing, restarted
from rmat.training.optimizer import (
    build_optimizers,
    optimizer_places,
    optimizer_tensors,
    restore_optimizers,
)
from rmat.training.progress import Reporter
from rmat.training.records import Counters, JsonLines
from rmat.training.tracking import require

MODEL_FOLDER, LOCK_FILE = "model", ".lock"
WRITTEN = (
    "environment.json",
    "data.json",
    "metrics.jsonl",
    "samples.jsonl",
    TOKENIZER_FILE,
    "result.json",
    CONFIG_FILE,
)
"""Files that a run writes."""


@dataclass
class Run:
    """A run that is open: everything the loop works on."""

    config: RunConfig
    folder: Path
    corpus: Corpus
    model: LanguageModel
    optimizers: list[Optimizer]
    device: torch.device
    device_reason: str
    reporter: Reporter
    metrics: JsonLines
    samples: JsonLines
    counters: Counters
    processes: Processes
    replica: Replica
    saver: Saver
    state: StreamState | None = None
    """What each row of this process carries into the next window."""

    def save(self) -> None:
        """Begin to write a checkpoint of this moment; it is there when `saver.wait` returns."""
        if self.processes.first:
            self.metrics.sync()
            self.samples.sync()
        rng_tensors, rng_values = process.capture()
        rows = self.config.train.batch_size
        held = {} if self.state is None else self.state.tensors()
        tensors = {
            **model_tensors(self.model),
            **optimizer_tensors(self.model, self.optimizers),
            **{name: self.processes.by_row(x, rows) for name, x in held.items()},
            **{self._own(name): x for name, x in rng_tensors.items()},
        }
        values = {"counters": self.counters.to_dict(), "rng": rng_values}
        self.saver.save(self.counters.step, tensors, values, self.counters.best_step)

    def _own(self, generator: str) -> str:
        """The name of a generator of this process among those of all."""
        return generator if self.processes.first else f"{generator}.{self.processes.rank}"

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from what a checkpoint holds. Generators of a process that was not there then are new."""
        own = model_tensors(self.model)
        known = {name: x.size for name, x in checkpoint.tensors.items() if is_weight(name)}
        if odd := sorted({name for name, _ in {(n, x.shape) for n, x in own.items()} ^ set(known.items())}):
            raise ValueError(f"the checkpoint is of another model: {odd} do not fit")
        memories = optimizer_places(self.model, checkpoint.tensors)
        held = {name: x for name, x in checkpoint.tensors.items() if is_state(name)}
        rows = self.config.train.batch_size
        count = len(self.processes.rows(rows))
        state = {
            name: torch.empty((count, *known.size[1:]), dtype=known.properties.dtype, device=self.device)
            for name, known in held.items()
        }
        checkpoint.load(
            {**own, **memories, **{name: self.processes.by_row(x, rows) for name, x in state.items()}}
        )
        restore_optimizers(self.model, self.optimizers, memories)
        if state:
            self.state = StreamState.from_tensors(self.model.config, state)
        names = {self._own(name): name for name in ("torch", "cuda")}
        generators = checkpoint.read(lambda name: name in names)
        process.restore({names[name]: x for name, x in generators.items()}, checkpoint.values["rng"])
        self.counters = Counters.from_dict(checkpoint.values["counters"])

    def export(self) -> None:
        """Write model/ and result.json."""
        model = self.replica.whole(everywhere=False)
        self.processes.from_first(partial(self._export, model))

    def _export(self, model: LanguageModel | None) -> None:
        assert model is not None
        with replacing_folder(self.folder / MODEL_FOLDER) as filled:
            save_model(model, filled, tokenizer=self.corpus.tokenizer)
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


@contextlib.contextmanager
def open_run(config: RunConfig | None, resume: Path | None, reporter: Reporter) -> Iterator[Run]:
    """Claim the folder of a new run, or that of one to be continued, load the data and build the model. The
    folder belongs to this process, and to those that train with it, until the block is left.

    Where torchrun starts processes anew, because one of them died, a new run goes on from its checkpoints.
    Raises ValueError if there is nothing to resume, if the folder already holds a run or another process
    works in it, or if the configuration or the data of a resumed run is not what it was started with, and
    ModuleNotFoundError for a library of `train.track` that is not installed."""
    if resume is None and config is not None and restarted(config.out):
        assert config.out is not None
        resume = Path(config.out) if (Path(config.out) / CONFIG_FILE).is_file() else None
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
    elif config.start is not None:
        config = with_model_of_start(config)
    with joined(config.train) as processes, contextlib.ExitStack() as held:
        processes.rows(config.train.batch_size)  # or refuse
        device, reason = pick_device(config.train.device)
        new = resume is None

        def claim() -> Path:
            require(config.train.track)  # before there is a run that the same command would meet afterwards
            return held.enter_context(_claimed(config, new))

        folder = processes.from_first(claim)
        if new:
            refuse_ambiguous(config.data.specs, folder)
        run = _prepare(config, folder, not new, device, reason, reporter, processes)
        try:
            yield run
        except BaseException:
            with contextlib.suppress(Exception):
                run.saver.wait()
            raise
        run.saver.wait()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process trains in `folder`. Raises ValueError where one does."""
    lock = FileLock(folder / LOCK_FILE, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process trains in {folder}: wait until it is done, or give another folder"
        ) from None
    try:
        yield
    finally:
        # Removed while held: whoever waits finds that the file has no name any more.
        (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _claimed(config: RunConfig, new: bool) -> Iterator[Path]:
    """The folder of the run, which nobody else writes to inside the block; a new one that comes to nothing is
    removed."""
    folder, made = _make_folder(config)
    try:
        with locked(folder):
            if new and (folder / CONFIG_FILE).exists():
                raise ValueError(
                    f"{folder} already holds a run: resume it with --resume {folder}, or give another folder"
                )
            model = folder / MODEL_FOLDER
            if model.is_symlink():
                raise ValueError(
                    f"{model} is a link, and the finished model would replace the folder it points to: "
                    "remove the link, that folder stays"
                )
            if model.exists() and not model.is_dir():
                raise ValueError(
                    f"{model} is no folder, and the finished model could not be put there: move it away"
                )
            for name in WRITTEN:
                writable(folder / name)
            for place in (folder, folder / "checkpoints"):
                remove_partial(place)
            yield folder
    finally:
        if new and not (folder / CONFIG_FILE).exists():
            for place in made:
                with contextlib.suppress(OSError):
                    place.rmdir()


def _make_folder(config: RunConfig) -> tuple[Path, list[Path]]:
    """The folder of the run, and which folders had to be made, it and those above; without a name a new one
    under `runs/`, which nobody else has."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    first = Path(config.out or f"runs/{config.preset}-{config.variant}-{stamp}")
    made = [place for place in (first, *first.parents) if not place.exists()]
    folder, number = first, 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=config.out is not None)
        except FileExistsError:
            if config.out is not None:
                raise ValueError(
                    f"{folder} is a file or a link that leads nowhere: give a folder for the run"
                ) from None
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
        else:
            return folder, made if folder == first else [folder]


def _prepare(
    config: RunConfig,
    folder: Path,
    resumed: bool,
    device: torch.device,
    reason: str,
    reporter: Reporter,
    processes: Processes,
) -> Run:
    corpus = processes.first_alone(lambda: _load_data(config.data, folder, processes.first))
    model_config = config.model_config(corpus.tokenizer.vocab_size)
    refuse_sharing(model_config, config.train)
    checkpoint = processes.from_first(lambda: _claim(config, folder, corpus, device, resumed, reporter))
    process.seed_everything(config.train.seed)
    kind = torch.float64 if config.train.dtype == "float64" else torch.float32
    model = LanguageModel(model_config).to(device, kind)
    if config.start is not None and checkpoint is None:
        model.load_state_dict(load_model(config.start).state_dict())
    replica = Replica(model, config.train, processes)
    if not processes.first:  # noise and dropout of its rows are not those of others
        torch.manual_seed(config.train.seed + (processes.rank << 32))
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
        processes=processes,
        replica=replica,
        saver=Saver(folder / "checkpoints", config.train.keep_last, processes),
    )
    if checkpoint is not None:
        run.restore(checkpoint)
        reporter.say(f"continuing after step {run.counters.step:,}")
    elif resumed:
        reporter.say("no checkpoint to continue from: starting at step 0")
    # Last, because a folder counts as a run that can be resumed once it has this file.
    if processes.first:
        write_json(folder / CONFIG_FILE, config.to_dict())
        for written in (run.metrics, run.samples) if resumed else ():
            written.cut_after(run.counters.step)
    if config.start is not None and not resumed:
        run.save()  # whoever resumes needs that model no more
    return run


def _claim(
    config: RunConfig, folder: Path, corpus: Corpus, device: torch.device, resumed: bool, reporter: Reporter
) -> Checkpoint | None:
    """Write down what the run is; of one that is resumed, after it was compared, the checkpoint to go on
    from."""
    environment = describe_environment(device, config.train.seed)
    data = corpus.record
    if resumed:
        _check_same_data(folder, data)
        _warn_of_other_environment(folder, environment, reporter)
    (folder / "checkpoints").mkdir(exist_ok=True)
    # Only now: a refused resume leaves a complete run complete.
    writable(folder / "result.json").unlink(missing_ok=True)
    write_json(folder / "environment.json", environment)
    write_json(folder / "data.json", data)
    if _is_file(config.data.tokenizer):
        with replacing(folder / TOKENIZER_FILE) as (copy,):
            corpus.tokenizer.save(copy)
    return newest_sound_checkpoint(folder / "checkpoints", reporter.say) if resumed else None


def _is_file(tokenizer: str) -> bool:
    """Whether the setting `data.tokenizer` names a file or folder."""
    return tokenizer != "bytes" and not tokenizer.startswith("bpe:")


def _load_data(data: DataConfig, folder: Path, progress: bool) -> Corpus:
    """What the run reads, with the copy of its tokenizer, if it has one: the first may have gone."""
    copy = folder / TOKENIZER_FILE
    own = copy.is_file() and _is_file(data.tokenizer)
    return load_data(data, progress, tokenizer=load_tokenizer(copy) if own else None)


def _check_same_data(folder: Path, now: dict[str, Any]) -> None:
    """Raise ValueError if the data is not what the run in `folder` was started on."""
    path = folder / "data.json"
    for name, before in json.loads(path.read_text(encoding="utf-8")).items():
        if now.get(name) != before:
            raise ValueError(
                f"the data has changed since the run in {folder} was started ({name} differs from "
                f"{path.name}): "
                "put it back as it was, or start a new run"
            )


def _warn_of_other_environment(folder: Path, environment: dict[str, Any], reporter: Reporter) -> None:
    before = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    changed = [name for name, value in environment.items() if before.get(name, value) != value]
    if changed:
        reporter.say(
            f"the environment differs from before ({', '.join(changed)}): results may not be the same bit "
            "for bit"
        )


def with_model_of_start(config: RunConfig) -> RunConfig:
    """The same run with the architecture and the tokenizer of the model that it starts from.

    Of `config.model` only what acts in training and the banks (`LanguageModel.with_slots`) may differ. Raises
    FileNotFoundError if there is no model, ValueError if it has no tokenizer or the settings ask for another
    architecture or tokenizer.
    """
    assert config.start is not None
    folder = model_folder(config.start)
    own = read_config(folder)
    if config.model.get("gate_bias", own.gate_bias) != own.gate_bias:
        raise ValueError(
            "model.gate_bias is where gates of random weights start: leave it out, they go on as they are"
        )
    free = {*TRAINING_ONLY, *EVICTION_FIELDS}
    if own.memory_position != "rank":  # no weights belong to single slots
        free.add("n_slots")
    for name, value in config.model.items():
        if name not in free and value != getattr(own, name):
            raise ValueError(
                f"model.{name} is {value!r} but the model in {folder} has {getattr(own, name)!r}, and its "
                "weights are for "
                "that: leave it out"
            )
    model = ModelConfig.from_dict({**own.to_dict(), **config.model}).to_dict()
    if not (folder / TOKENIZER_FILE).is_file():
        raise ValueError(f"{folder} has no {TOKENIZER_FILE}: save the model with its tokenizer")
    tokenizer = str(folder / TOKENIZER_FILE)
    if config.data.tokenizer not in (DataConfig.tokenizer, tokenizer):
        raise ValueError(
            f"data.tokenizer is {config.data.tokenizer!r} but training starts from {folder}, which has its "
            "own: leave it out"
        )
    data = dataclasses.replace(config.data, tokenizer=tokenizer)
    return dataclasses.replace(config, model=model, data=data)
