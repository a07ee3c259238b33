"""Which gated memory is best: the recall task with one axis of the block changed at a time.

Every cell trains the recipe examples/recipes/recall.yaml (2 layers, width 64, segments of 32 tokens, 32
slots; 8 pairs to remember) with one change to the recommended model, then asks on rows as in training and on
rows of 16,384 tokens (questions in the last tenth). `overload` cells ask in a quarter of the places at a
constant learning rate: more is written than the bank holds. Accuracy counts the first question about each
key.

    python benchmarks/memory_axes.py [--cells NAME ...] [--seeds 0 1 2] [--steps 500] [--out results/memory_axes.json]

Cells that the file already has (same seed and steps) are not measured again. The last line printed is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import yaml

from rmat.api import load, train
from rmat.evaluation.rows import ask_rows
from rmat.machine import describe_environment
from rmat.tasks.recall import RecallQuestions, RecallTask
from rmat.training.config import RunConfig
from rmat.training.progress import Silent

RECIPE = Path(__file__).parent.parent / "examples" / "recipes" / "recall.yaml"

CELLS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "paper": {"variant": "paper"},
    "xl": {"variant": "xl"},
    "local": {"variant": "local"},
    "writer mean": {"writer": "mean"},
    "writer pool, 8": {"writer": "pool", "writes_per_segment": 8},
    "writer all": {"writer": "all", "writes_per_segment": 32},
    "gate none": {"gate": "none"},
    "gate gru": {"gate": "gru"},
    "gate both": {"gate": "both"},
    "gradient through the logit": {"gate_gradient": "logit"},
    "open at first, no noise": {"gate_bias": 1.0, "gate_noise": 0.0},
    "closed at first, no noise": {"gate_noise": 0.0},
    "write cost 1e-5": {"write_cost": 1e-5},
    "write cost 1e-4 beyond a tenth": {"write_cost": 1e-4, "write_budget": 0.1},
    "8 writes": {"writes_per_segment": 8},
    "32 writes": {"writes_per_segment": 32},
    "16 slots": {"n_slots": 16},
    "64 slots": {"n_slots": 64},
    "newest first": {"memory_read": "stick_breaking"},
    "weakest leaves": {"eviction": "weakest"},
    "16 slots, weakest leaves": {"n_slots": 16, "eviction": "weakest"},
    "position rank": {"memory_position": "rank"},
    "position age": {"memory_position": "age"},
    "fusion scalar": {"fusion": "scalar"},
    "fusion token": {"fusion": "token"},
    "fusion joint": {"fusion": "joint"},
    "memory in layer 0": {"memory_layers": [0]},
    "memory in layer 1": {"memory_layers": [1]},
    "written from output": {"write_from": "output"},
    "no look-back": {"chunk_lookback": 0},
    "no convolution": {"conv_width": 0},
    "no null slot": {"null_slot": False},
    "segments of 16": {"segment_len": 16},
    "segments of 64": {"segment_len": 64},
    "overload": {"overload": True},
    "overload, weakest leaves": {"overload": True, "eviction": "weakest"},
    "overload, open at first, no noise": {"overload": True, "gate_bias": 1.0, "gate_noise": 0.0},
    "overload, gradient through the logit": {"overload": True, "gate_gradient": "logit"},
    "overload, gradient through the logit, open at first, no noise": {
        "overload": True,
        "gate_gradient": "logit",
        "gate_bias": 1.0,
        "gate_noise": 0.0,
    },
}
"""Name of a cell -> what it changes: fields of the model, `variant`, `overload`."""

TESTS: tuple[tuple[int, Literal["end", "everywhere"]], ...] = ((256, "everywhere"), (16_384, "end"))
"""Lengths in tokens, and where the questions stand."""


def run_config(change: dict[str, Any], seed: int, steps: int, out: Path) -> RunConfig:
    """The recipe with a cell's change."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    change = dict(change)
    recipe["variant"] = change.pop("variant", "recommended")
    if change.pop("overload", False):
        recipe["data"]["specs"] = ["recall:queries=0.25"]
        recipe["train"]["min_lr_ratio"] = 1.0
    recipe["model"] |= change
    recipe["train"] |= {
        "seed": seed,
        "steps": steps,
        "checkpoint_every": steps,
        "eval_every": 50,
        "device": "cpu",
    }
    return RunConfig.from_dict({**recipe, "out": str(out)})


def measure(name: str, seed: int, steps: int, rows: int) -> dict[str, Any]:
    """Train and ask one cell."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(run_config(CELLS[name], seed, steps, Path(folder) / "run"), reporter=Silent())
        model, _ = load(run)
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((run / "result.json").read_text())
    task = RecallTask(query_share=0.25 if CELLS[name].get("overload") else RecallTask.query_share)
    cells = []
    for length, place in TESTS:
        questions = RecallQuestions(task=task, length=(length,), queries=place)
        found = ask_rows(model, questions, rows=rows, batch_size=32, seed=seed + 1)
        cells += found.to_dict()["cells"]
    train_rows = [row for row in metrics if row["kind"] == "train"]
    return {
        "cell": name,
        "seed": seed,
        "steps": steps,
        "change": CELLS[name],
        "config": model.config.to_dict(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": model.initial_state(batch_size=1).nbytes,
        "training_tokens": result["tokens"],
        "openness": train_rows[-1]["openness"],
        "curve": [
            {"step": row["step"], "accuracy": row["accuracy"]} for row in metrics if row["kind"] == "eval"
        ],
        "cells": cells,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure the cells, show, write after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rows", type=int, default=32, help="rows asked at each length")
    parser.add_argument("--out", type=Path, default=Path("results/memory_axes.json"))
    given = parser.parse_args(arguments)
    if min(given.steps, given.rows) < 1:
        parser.error("--steps and --rows must be at least 1")
    record: dict[str, Any] = {
        "benchmark": "memory_axes",
        "environment": describe_environment("cpu"),
        "measured": [],
    }
    if given.out.is_file():
        record["measured"] = json.loads(given.out.read_text(encoding="utf-8"))["measured"]
    for seed in given.seeds:
        for name in given.cells:
            key = (name, seed, given.steps)
            if any((row["cell"], row["seed"], row["steps"]) == key for row in record["measured"]):
                continue
            found = measure(name, seed, given.steps, given.rows)
            record["measured"].append(found)
            short, long = found["cells"]
            print(
                f"{name}, seed {seed}: {short['accuracy']:.3f} at 256, {long['accuracy']:.3f} "
                f"[{long['low']:.3f}, {long['high']:.3f}] at 16,384; state {found['state_bytes'] / 1e3:.1f} kB, "
                f"written {' '.join(f'{share:.0%}' for share in found['openness'])}",
                flush=True,
            )
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"cells": len(record["measured"]), "out": str(given.out)}))


if __name__ == "__main__":
    main()
