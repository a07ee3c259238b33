"""Which memory recalls: small models trained on rows of 256 tokens, tested on rows of up to a million.

Each variant (2 layers, width 64, segments of 32 tokens, 32 slots) learns to recall 8 key-value pairs among filler with
the same recipe and seed, and is then asked on rows as in training, on rows of 16,384 tokens (queries everywhere, and
queries in the last tenth only) and, with --long, of 1,048,576 tokens. Accuracy counts the first query of each key, with
its Wilson interval; the accuracy of all queries stands beside it.

    python benchmarks/recall.py [--variants recommended paper local xl] [--long] [--steps 500] [--seed 0]

The last line printed is one JSON object, which is also written to results/recall.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from rmat.data.synthetic.recall import RecallTask
from rmat.evaluation.recall import Answers, Place, recall
from rmat.evaluation.recall_training import RecallTraining, recall_config, train_recall
from rmat.evaluation.speed import environment
from rmat.model.accounting import account

TESTS: tuple[tuple[int, Place], ...] = ((256, "everywhere"), (16_384, "everywhere"), (16_384, "end"))
"""Lengths in tokens, and where the queries stand."""

LONG: tuple[int, Place] = (1_048_576, "end")
LONG_ROWS = 8
"""Rows at the long length."""


def run(
    variant: str, task: RecallTask, training: RecallTraining, *, rows: int, long: bool, device: str
) -> dict[str, Any]:
    """Train one variant, test it at every length."""
    config = recall_config(variant, task)
    curve: list[dict[str, float]] = []
    seen = Answers()

    def note(step: int, loss: float, answers: Answers) -> None:
        nonlocal seen
        seen += answers
        if step % 25 == 0 or step == training.steps:
            share = seen.first_right / max(1, seen.first_asked)
            curve.append({"step": step, "loss": loss, "first_accuracy": share})
            seen = Answers()
            print(
                f"  {variant}: step {step}, loss {loss:.3f}, first queries {share:.3f}",
                file=sys.stderr,
                flush=True,
            )

    model = train_recall(config, task, training, device=device, on_step=note)
    cells = []
    for length, queries in (*TESTS, LONG) if long else TESTS:
        count = LONG_ROWS if (length, queries) == LONG else rows
        scored = recall(model, task, lengths=(length,), queries=queries, rows=count, seed=training.seed + 1)
        cells += scored.to_dict()["cells"]
    return {
        "config": config.to_dict(),
        "parameters": account(config).parameters,
        "training_tokens": training.steps * training.batch_size * task.length,
        "state_bytes": model.initial_state(batch_size=1).nbytes,
        "curve": curve,
        "cells": cells,
    }


def show(variant: str, found: dict[str, Any]) -> None:
    """Print one variant's line."""
    print(f"{variant}: {found['parameters']:,} parameters, state {found['state_bytes'] / 1e3:,.1f} kB")
    for cell in found["cells"]:
        print(
            f"{cell['length']:>12,} tokens, queries {cell['queries']:>10}: "
            f"first {cell['accuracy']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}] of {cell['samples']}, "
            f"all {cell['all']['accuracy']:.3f} of {cell['all']['samples']}",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> None:
    """Train and test all variants, show, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--variants", nargs="+", default=["recommended", "paper", "local", "xl"])
    parser.add_argument("--steps", type=int, default=500, help="updates of 32 rows of 256 tokens")
    parser.add_argument("--lr", type=float, default=RecallTraining.lr, help="peak learning rate")
    parser.add_argument("--rows", type=int, default=64, help="rows tested at each length")
    parser.add_argument("--long", action="store_true", help="also test at 1,048,576 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--out", type=Path, default=Path("results/recall.json"), help="file to write")
    given = parser.parse_args(arguments)
    task = RecallTask()
    if given.rows < 1:
        parser.error(f"--rows {given.rows} is too small: test at least one row")
    try:
        training = RecallTraining(steps=given.steps, lr=given.lr, seed=given.seed)
        for variant in given.variants:
            recall_config(variant, task)
    except ValueError as error:
        parser.error(str(error))
    result: dict[str, Any] = {
        "benchmark": "recall",
        "task": dataclasses.asdict(task),
        "training": dataclasses.asdict(training),
        "test_seed": training.seed + 1,
        "environment": environment(given.device),
        "variants": {},
    }
    for variant in given.variants:
        found = run(variant, task, training, rows=given.rows, long=given.long, device=given.device)
        result["variants"][variant] = found
        show(variant, found)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
