"""Tiny runs: their data and settings, stand-ins for evaluation and sampling, and what makes two runs the
same.

Started as a script with the file of a configuration it trains in a process of its own, resuming where there
is something to resume."""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmat.storage import load_model
from rmat.training.checkpoint import list_checkpoints, read_checkpoint
from rmat.training.config import RunConfig
from rmat.training.loop import train
from rmat.training.progress import Silent
from rmat.training.records import JsonLines

TIMES = {"tokens_per_second", "elapsed", "seconds_left"}
"""Keys of metrics rows that no two runs share."""

SHARD = "shard-00001-model-00001-of-00001.safetensors"
"""The tensors of a checkpoint that one process wrote."""

MODEL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "segment_len": 8, "n_slots": 8, "dropout": 0.1}


class Spoken(Silent):
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def logged(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def write_texts(folder: Path, documents: int = 40) -> None:
    """Small files of made-up words, the same each time."""
    folder.mkdir()
    chance = random.Random(0)
    words = ["".join(chance.choices("aeionrst", k=chance.randint(2, 6))) for _ in range(30)]
    for number in range(documents):
        text = " ".join(chance.choices(words, k=chance.randint(20, 60)))
        (folder / f"{number:02d}.txt").write_text(text)


def make_config(
    texts: Path, out: Path, model: dict[str, Any] | None = None, **train_fields: Any
) -> RunConfig:
    """A run of a second on the texts of `write_texts`."""
    settings = {
        "steps": 8,
        "batch_size": 2,
        "window": 16,
        "warmup_steps": 3,
        "eval_every": 4,
        "sample_every": 4,
        "log_every": 3,
        "checkpoint_every": 2,
        "seed": 3,
        "device": "cpu",
    }
    return RunConfig.from_dict(
        {
            "model": {**MODEL, **(model or {})},
            "data": {
                "specs": [str(texts)],
                "tokenizer": "bytes",
                "cache_dir": str(texts.parent / "cache"),
                "valid_share": 0.2,
            },
            "train": {**settings, **train_fields},
            "out": str(out),
        }
    )


def evaluate(model: Any, tokenizer: Any, store: Any, *, max_bytes: int) -> dict[str, float]:
    """Scores that depend on the weights, from code that draws random numbers of every kind."""
    assert not model.training and not torch.is_grad_enabled()
    torch.rand(3), random.random(), np.random.rand()
    size = sum(float(parameter.double().abs().mean()) for parameter in model.parameters())
    return {"bits_per_byte": size, "bits_per_byte_memory_zeroed": size + max_bytes / 1e6}


def sample(model: Any, tokenizer: Any) -> str:
    """A text that depends on the weights, from code that draws random numbers."""
    torch.rand(5), random.random(), np.random.rand()
    return f"{float(next(iter(model.parameters())).sum()):.9f}"


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All rows of the metrics file without what differs from run to run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def last_checkpoint(folder: Path) -> Path:
    return list_checkpoints(folder / "checkpoints")[-1]


def assert_same_run(left: Path, right: Path) -> None:
    """Weights, optimiser, memory, generators, counters, metrics, samples and exported model are equal bit for
    bit."""
    one, two = last_checkpoint(left), last_checkpoint(right)
    assert one.name == two.name
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    assert_same_tensors(one, two)
    assert _values(one) == _values(two)
    assert metrics(left) == metrics(right)
    assert JsonLines(left / "samples.jsonl").rows() == JsonLines(right / "samples.jsonl").rows()
    exported, other = load_model(left / "model").state_dict(), load_model(right / "model").state_dict()
    assert all(torch.equal(value, other[name]) for name, value in exported.items())


def assert_same_tensors(left: Path, right: Path) -> None:
    """Two checkpoints hold the same tensors, bit for bit."""
    one, two = (read_checkpoint(path).read() for path in (left, right))
    assert one.keys() == two.keys()
    for name, x in one.items():
        assert x.dtype == two[name].dtype and torch.equal(x, two[name]), name


def _values(checkpoint: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((checkpoint / "trainer.json").read_text())
    for name in ("elapsed", "step_seconds"):
        del values["counters"][name]
    del values["counters"]["interval"]["seconds"]
    return values


def pausing_sample(model: Any, tokenizer: Any) -> str:
    """`sample`, slowly: makes the length of a run, and so the points where it may be killed, predictable."""
    time.sleep(0.02)
    return sample(model, tokenizer)


if __name__ == "__main__":
    wanted = RunConfig.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    assert wanted.out is not None
    begun = (Path(wanted.out) / "config.json").exists()
    print("ready", flush=True)
    train(
        wanted,
        resume=Path(wanted.out) if begun else None,
        evaluate=evaluate,
        sample=pausing_sample,
        reporter=Silent(),
    )
