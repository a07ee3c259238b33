"""Side by side with other systems: speed, memory and state at each length, or accuracy at equal updates.

    python benchmarks/peers.py [--lengths 1024 4096 16384] [--systems recommended llama ...] [--quick]
    python benchmarks/peers.py --quality [--updates 400] [--tasks recall mqar] [--seeds 0]

Systems (`systems.py`) have the same parameters within a tenth. `make peers` installs those of other people;
one that is not installed, fails or exceeds `--limit` is reported with its message, and the run goes on. At
each length T the tokens of a step are the same (fewer rows of more tokens). Rounds interleave the systems;
medians over rounds are reported, ratios are medians of the ratios within a round. Peak memory is that of
training, state is what one row needs to go on after almost T tokens.

`--quality` trains each system on rows of recall and MQAR by the recipes of examples/recipes: the same rows,
optimiser, schedule and number of updates for all, then asks it. Settings of a recipe that belong to the gated
memory are ours alone; width, depth, heads and segments are everybody's.

The last line printed is one JSON object, which is also written to results/peers.json or
results/peers_quality.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import speed
import torch
import torch.nn.functional as F
import yaml
from systems import SYSTEMS, Size, System
from torch import Tensor

from rmat.data.config import DataConfig
from rmat.data.lanes import IGNORED
from rmat.evaluation.intervals import bootstrap_ratio, wilson
from rmat.evaluation.rows import Answers
from rmat.machine import describe_environment
from rmat.model import ModelConfig
from rmat.tasks.corpus import load_tasks
from rmat.tasks.mqar import MqarQuestions
from rmat.tasks.recall import RecallQuestions
from rmat.tasks.task import RowPart, RowQuestions
from rmat.training.config import TrainConfig
from rmat.training.optimizer import build_optimizers, learning_rate_factor, set_learning_rate

MEASURES = ("train", "prefill", "decode")
RECIPES = Path(__file__).parent.parent / "examples" / "recipes"
PIECE = 4096
"""Tokens of a row that questions are made of at once."""

PART = ("tokens", "targets", "first")
"""Fields of a part of a row."""


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """What a run for speed measures; it is written beside the numbers."""

    systems: tuple[str, ...]
    """Names of `SYSTEMS`; ratios are of the first to each of the others."""
    size: str
    """Preset size."""
    segment_len: int | None
    """Segment and local window of all; None for that of the size."""
    lengths: tuple[int, ...]
    """Lengths T in tokens."""
    tokens: int
    """Tokens of a training step or a prefill, over all rows."""
    decode_tokens: int
    """Tokens decoded one by one; the last one has a context of T tokens."""
    rounds: int
    """Interleaved repeats."""
    vocab_size: int
    """Vocabulary; tokens are random."""
    limit: float | None
    """Most seconds that two training steps and one prefill of a system may take, its start included, on a
    CPU."""
    device: str
    """cpu or cuda."""
    dtype: str
    """float32, or bfloat16 under autocast."""
    seed: int
    """Seed of the tokens."""

    def system(self, name: str, length: int) -> System:
        """A system at a length."""
        shared: dict[str, Any] = {"vocab_size": self.vocab_size}
        if self.segment_len is not None:
            shared["segment_len"] = self.segment_len
        return SYSTEMS[name](Size(preset=self.size, shared=shared, length=length, compute=True), self.device)

    def batch(self, length: int) -> Tensor:
        """(B, T + 1) random tokens, B * T = `tokens` (at least one row)."""
        random = torch.Generator().manual_seed(self.seed)
        rows = max(1, self.tokens // length)
        return torch.randint(self.vocab_size, (rows, length + 1), generator=random).to(self.device)


class Timed:
    """A system at one length, ready to be timed."""

    def __init__(self, settings: SpeedSettings, name: str, length: int) -> None:
        self.settings = settings
        self.system = settings.system(name, length)
        self.optimizer = torch.optim.AdamW(self.system.model.parameters(), lr=1e-4)
        self.tokens_BT = settings.batch(length)

    def train(self) -> None:
        self.system.model.train()
        with speed.autocast(self.settings.device, self.settings.dtype):
            self.optimizer.zero_grad(set_to_none=True)
            self.system.backward(self.tokens_BT)
            self.optimizer.step()

    def prefill(self, tokens_BT: Tensor) -> Any:
        self.system.model.eval()
        with torch.no_grad(), speed.autocast(self.settings.device, self.settings.dtype):
            return self.system.read(tokens_BT)

    def decode(self, state: Any, tokens: int) -> None:
        with torch.no_grad(), speed.autocast(self.settings.device, self.settings.dtype):
            self.system.decode(state, tokens)

    def warm_up(self) -> None:
        """All that is timed, once; keeps a context to decode from."""
        self.train()
        self.prefill(self.tokens_BT[:, :-1])
        before = max(1, self.tokens_BT.shape[1] - 1 - self.settings.decode_tokens)
        self.context = self.prefill(self.tokens_BT[:1, :before])
        self.decode(self.system.fork(self.context), 2)

    def rates(self) -> dict[str, float]:
        """Tokens per second of one training step, one prefill and one run of decoding."""
        inputs, tokens, device = self.tokens_BT[:, :-1], self.settings.decode_tokens, self.settings.device
        state = self.system.fork(self.context)
        spent = {
            "train": speed.seconds(self.train, device),
            "prefill": speed.seconds(lambda: self.prefill(inputs), device),
            "decode": speed.seconds(lambda: self.decode(state, tokens), device),
        }
        counts = {"train": inputs.numel(), "prefill": inputs.numel(), "decode": tokens}
        return {name: counts[name] / spent[name] for name in MEASURES}


def training_peak(settings: SpeedSettings, name: str, length: int) -> int:
    """Bytes that training a system holds at its peak: weights, gradients, optimiser and activations."""
    settings.system(name, 2 * (settings.segment_len or 128))  # its packages take no part

    def work() -> None:
        timed = Timed(settings, name, length)
        for _ in range(2):
            timed.train()

    return speed.peak_memory(work, settings.device)


def message(error: BaseException, limit: float | None = None) -> str:
    """What a failure says, in one line."""
    if isinstance(error, ImportError):
        return f"not installed: {error} (make peers installs it)"
    if isinstance(error, TimeoutError):
        return f"left out: more than the limit of {limit:.0f} seconds"
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}"


def measure(settings: SpeedSettings, length: int) -> dict[str, Any]:
    """All systems at one length."""
    found: dict[str, Any] = {name: {} for name in settings.systems}
    running: dict[str, Timed] = {}

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives; a failure ends the system's part in this length."""
        try:
            return work()
        except Exception as error:
            found[name] = {"failed": message(error, settings.limit)}
            running.pop(name, None)
            print(f"  T={length}: {name}: {found[name]['failed']}", file=sys.stderr, flush=True)
            return None

    def prepare(name: str) -> None:
        peak = speed.isolated(
            training_peak, settings, name, length, device=settings.device, limit=settings.limit
        )
        timed = Timed(settings, name, length)
        timed.warm_up()
        running[name] = timed
        found[name] = {
            "config": timed.system.config,
            "versions": timed.system.versions(),
            "parameters": timed.system.parameters,
            "state_bytes": timed.system.state_bytes(timed.context),
            "train_peak_bytes": peak,
        }

    for name in settings.systems:
        attempt(name, lambda name=name: prepare(name))
    rounds: list[dict[str, dict[str, float]]] = []
    for index in range(settings.rounds):
        shift = index % len(settings.systems)
        order = settings.systems[shift:] + settings.systems[:shift]
        done = {name: attempt(name, running[name].rates) for name in order if name in running}
        rounds.append(done)
        print(f"  T={length}: round {index + 1} of {settings.rounds}", file=sys.stderr, flush=True)
    for name in running:
        rates = {measure: [done[name][measure] for done in rounds] for measure in MEASURES}
        found[name]["tokens_per_second"] = {key: median(values) for key, values in rates.items()}
        found[name]["tokens_per_second_range"] = {
            key: [min(values), max(values)] for key, values in rates.items()
        }
    first, *others = settings.systems
    ratios = {
        f"{first}/{other}": {
            key: median(done[first][key] / done[other][key] for done in rounds) for key in MEASURES
        }
        for other in others
        if first in running and other in running
    }
    rows = max(1, settings.tokens // length)
    return {"length": length, "rows": rows, "systems": found, "ratios": ratios}


def show(found: dict[str, Any]) -> None:
    """Print one length as a table, with the ratios of the first system to each."""
    print(f"\nT = {found['length']} tokens, {found['rows']} rows; tokens/s (decode: one row)")
    first = next(iter(found["systems"]))
    print(
        f"{'':>16} {'train':>9} {'prefill':>9} {'decode':>7} {'state kB':>9} {'peak MB':>8} {'params':>10}"
        f"   {first} against it: train, prefill, decode"
    )
    for name, system in found["systems"].items():
        if "failed" in system:
            print(f"{name:>16} {system['failed']}")
            continue
        rate, ratio = system["tokens_per_second"], found["ratios"].get(f"{first}/{name}")
        print(
            f"{name:>16} {rate['train']:>9,.0f} {rate['prefill']:>9,.0f} {rate['decode']:>7,.0f} "
            f"{system['state_bytes'] / 1e3:>9,.0f} {system['train_peak_bytes'] / 1e6:>8,.0f} "
            f"{system['parameters']['all']:>10,}   "
            + (", ".join(f"{ratio[measure]:.2f}" for measure in MEASURES) if ratio else "")
        )


QUESTIONS: dict[str, Callable[[tuple[int, ...]], RowQuestions]] = {
    "recall": lambda lengths: RecallQuestions(length=lengths or (256,), queries="everywhere"),
    "mqar": lambda lengths: MqarQuestions(),
}
"""Task, which is a recipe's name too -> what is asked, given the lengths of `--ask`."""

SHARED_FIELDS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "segment_len")
"""Fields of a recipe's model that all systems follow; the others are of our memory."""


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """What a run for quality measures; it is written beside the numbers."""

    systems: tuple[str, ...]
    """Names of `SYSTEMS`."""
    tasks: tuple[str, ...]
    """Names of `QUESTIONS`."""
    updates: int
    """Updates of each system."""
    batch_size: int | None
    """Rows of an update; None for the recipe's."""
    lr: tuple[float, ...]
    """Learning rates to train with, each; none for the recipe's."""
    segment_len: int | None
    """Segment and local window of all; None for the recipe's."""
    ask: tuple[int, ...]
    """Lengths of the rows of recall that are asked, in tokens."""
    rows: int
    """Rows asked in each cell."""
    seeds: tuple[int, ...]
    """Seeds of weights and training rows."""
    device: str
    """cpu or cuda."""


def train_and_ask(
    settings: QualitySettings, name: str, task: str, lr: float | None, seed: int
) -> dict[str, Any]:
    """Train one system on one task, then ask it."""
    recipe = yaml.safe_load((RECIPES / f"{task}.yaml").read_text(encoding="utf-8"))
    given = {"batch_size": settings.batch_size, "lr": lr}
    config = TrainConfig(
        **recipe["train"]
        | {key: value for key, value in given.items() if value is not None}
        | {"steps": settings.updates, "seed": seed, "device": settings.device}
    )
    corpus = load_tasks(DataConfig(**recipe["data"]))
    questions = QUESTIONS[task](settings.ask)
    model = {**recipe["model"], "vocab_size": corpus.tokenizer.vocab_size}
    if settings.segment_len is not None:
        model["segment_len"] = settings.segment_len
    shared = {key: model[key] for key in (*SHARED_FIELDS, "vocab_size") if key in model}
    size = Size(
        preset=recipe["preset"],
        shared=shared,
        ours={key: value for key, value in model.items() if key not in shared},
        length=config.window,
        compute=False,
    )
    system = SYSTEMS[name](size, settings.device, seed)
    start = time.perf_counter()
    losses = train(system, corpus.lanes(config.batch_size, config.window, config.seed), config)
    spent = time.perf_counter() - start
    row = torch.zeros(1, config.window, dtype=torch.int64, device=settings.device)
    with torch.no_grad():
        state_bytes = system.state_bytes(system.read(row))
    return {
        "system": name,
        "task": task,
        "seed": seed,
        "train": dataclasses.asdict(config),
        "config": system.config,
        "versions": system.versions(),
        "parameters": system.parameters,
        "state_bytes": state_bytes,
        "training_seconds": spent,
        "losses": losses,
        **ask(system, questions, settings.rows, config.batch_size, seed + 1),
    }


def train(system: System, lanes: Any, config: TrainConfig) -> list[float]:
    """Train on rows, each from an empty memory. Returns the mean loss of each tenth of the updates."""
    optimizers = build_optimizers(system.model, config)
    system.model.train()
    losses = []
    for update in range(config.steps):
        batch = lanes.batch(update)
        tokens_BT, targets_BT = (x.to(system.device) for x in (batch.tokens, batch.targets))
        logits_BTV = system.logits(tokens_BT)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED)
        system.model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(system.model.parameters(), config.clip)
        set_learning_rate(optimizers, config.lr * learning_rate_factor(update, update / config.steps, config))
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    return [float(part.mean()) for part in np.array_split(losses, min(10, len(losses)))]


@torch.no_grad()
def ask(system: System, questions: RowQuestions, rows: int, batch_size: int, seed: int) -> dict[str, Any]:
    """Accuracy with its interval in each of `cells`: over the first question about each key, or over rows where
    each has its share; then `mean` is that of all rows, equally many in each cell."""
    system.model.eval()
    cells: list[dict[str, Any]] = []
    shares: list[float] = []
    for cell in questions.cells(rows, seed, PIECE):
        right, asked = [], []
        for start in range(0, rows, batch_size):
            parts = list(cell.batch(start, min(batch_size, rows - start)))
            whole = RowPart(*(torch.cat([getattr(part, name) for part in parts], dim=1) for name in PART))
            answers = Answers.none(len(whole.tokens))
            answers.count(system.logits(whole.tokens.to(system.device)).argmax(-1).cpu(), whole)
            right += answers.first_right.tolist()
            asked += answers.first_asked.tolist()
        if cell.by_row:
            of_rows = [one / all_ for one, all_ in zip(right, asked, strict=True)]
            shares += of_rows
            samples, interval = rows, bootstrap_ratio(of_rows, np.ones(rows), seed=seed)
        else:
            samples, interval = sum(asked), wilson(sum(right), sum(asked))
        cells.append({**cell.labels, "samples": samples, **interval.to_dict("accuracy")})
    if not shares:
        return {"cells": cells}
    mean = bootstrap_ratio(shares, np.ones(len(shares)), seed=seed)
    return {"cells": cells, "mean": {"samples": len(shares), **mean.to_dict("accuracy")}}


def quality(settings: QualitySettings, write: Callable[[list[dict[str, Any]]], None]) -> None:
    """All systems on all tasks, written and shown one by one."""
    measured: list[dict[str, Any]] = []
    grid = itertools.product(settings.tasks, settings.seeds, settings.lr or (None,), settings.systems)
    for task, seed, lr, name in grid:
        try:
            found = train_and_ask(settings, name, task, lr, seed)
            scores = [("mean of all", found["mean"])] if "mean" in found else []
            scores += [] if scores else [(f"{cell['length']} tokens", cell) for cell in found["cells"]]
            line = "; ".join(
                f"{label} {score['accuracy']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
                for label, score in scores
            )
            line += (
                f"; state {found['state_bytes'] / 1e3:.0f} kB, "
                f"{found['parameters']['blocks']:,} parameters in blocks, {found['training_seconds']:.0f} s"
            )
        except Exception as error:
            line = message(error)
            found = {"system": name, "task": task, "seed": seed, "lr": lr, "failed": line}
        measured.append(found)
        print(f"{task}, seed {seed}, {name}: {line}", flush=True)
        write(measured)


def parse(arguments: list[str] | None = None) -> tuple[SpeedSettings | QualitySettings, Path]:
    """Settings and the file to write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quality", action="store_true", help="accuracy at equal updates, not speed")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), metavar="NAME")
    parser.add_argument("--segment-len", type=int, help="segment and local window of all systems")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--out", type=Path, help="file to write")
    for_speed = parser.add_argument_group("speed")
    for_speed.add_argument("--size", default="tiny", help="preset size")
    for_speed.add_argument(
        "--lengths", nargs="+", type=int, default=[1024, 4096, 16384], help="lengths T in tokens"
    )
    for_speed.add_argument(
        "--tokens", type=int, default=16384, help="tokens of a training step over all rows"
    )
    for_speed.add_argument(
        "--decode-tokens", type=int, default=32, help="tokens decoded at the end of each length"
    )
    for_speed.add_argument("--rounds", type=int, default=3, help="interleaved repeats")
    for_speed.add_argument("--vocab-size", type=int, default=1024)
    for_speed.add_argument(
        "--limit", type=float, help="leave a system out whose two training steps take more seconds"
    )
    for_speed.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on cuda, else float32"
    )
    for_speed.add_argument("--seed", type=int, default=0)
    for_speed.add_argument("--quick", action="store_true", help="two rounds of 4096 tokens at 1024 and 4096")
    for_quality = parser.add_argument_group("quality")
    for_quality.add_argument("--tasks", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    for_quality.add_argument("--updates", type=int, default=400)
    for_quality.add_argument("--batch-size", type=int, help="rows of an update (default: the recipe's)")
    for_quality.add_argument(
        "--lr", nargs="+", type=float, default=[], help="learning rates (default: the recipe's)"
    )
    for_quality.add_argument(
        "--ask", nargs="+", type=int, default=[], help="lengths of the rows of recall (default: 256)"
    )
    for_quality.add_argument("--rows", type=int, default=64, help="rows asked in each cell")
    for_quality.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    for name in (
        "tokens",
        "decode_tokens",
        "rounds",
        "updates",
        "batch_size",
        "rows",
        "segment_len",
        "limit",
    ):
        value = getattr(given, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}: give at least 1")
    if min(given.lengths + given.ask) < 2:
        parser.error(f"{min(given.lengths + given.ask)} is no length: give at least 2 tokens")
    common = {"systems": tuple(given.systems), "segment_len": given.segment_len, "device": given.device}
    if given.quality:
        names = ("tasks", "lr", "ask", "seeds")
        return QualitySettings(
            **common,
            **{name: tuple(getattr(given, name)) for name in names},
            updates=given.updates,
            batch_size=given.batch_size,
            rows=given.rows,
        ), given.out or Path("results/peers_quality.json")
    settings = SpeedSettings(
        **common,
        size=given.size,
        lengths=(1024, 4096) if given.quick else tuple(given.lengths),
        tokens=4096 if given.quick else given.tokens,
        rounds=2 if given.quick else given.rounds,
        decode_tokens=given.decode_tokens,
        vocab_size=given.vocab_size,
        limit=given.limit,
        dtype=given.dtype or ("bfloat16" if given.device == "cuda" else "float32"),
        seed=given.seed,
    )
    try:
        shared = {} if given.segment_len is None else {"segment_len": given.segment_len}
        ModelConfig.preset(given.size, vocab_size=given.vocab_size, **shared)
    except ValueError as error:
        parser.error(str(error))
    return settings, given.out or Path("results/peers.json")


def main(arguments: list[str] | None = None) -> None:
    """Measure, show, write."""
    settings, out = parse(arguments)
    result: dict[str, Any] = {
        "benchmark": "peers",
        "settings": dataclasses.asdict(settings),
        "environment": describe_environment(settings.device),
    }
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(**part: Any) -> None:
        result.update(part)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    if isinstance(settings, QualitySettings):
        quality(settings, lambda measured: write(measured=measured))
    else:
        lengths: list[dict[str, Any]] = []
        for length in settings.lengths:
            lengths.append(measure(settings, length))
            show(lengths[-1])
            write(lengths=lengths)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
