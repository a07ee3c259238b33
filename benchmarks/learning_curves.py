"""Compare how runs learn: their training loss on the same batches, less that of one of them.

    python benchmarks/learning_curves.py RUN ... --base RUN [--every 50] [--out results/FILE.json]

Runs with the same data, tokenizer, seed and batch read the same rows in the same order, so the difference at
an update is paired. Prints the mean difference over every so many updates, and the bits per byte of the valid
split at the last evaluation.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from far_context import write_result


def read_run(folder: Path) -> tuple[dict[str, Any], dict[int, float]]:
    """What a run wrote of itself, finished or not, with its last evaluation, and the training loss in nats
    per token by update."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ("config", "environment")
    wrote = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    wrote["valid"] = next((line for line in reversed(lines) if line["kind"] == "eval"), None)
    return wrote, {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def main() -> None:
    """Compare, show, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--base", type=Path, required=True, help="the run that the others are compared with")
    parser.add_argument("--every", type=int, default=50, help="updates in a mean (default: 50)")
    parser.add_argument("--out", type=Path, help="file of the result (default: standard output)")
    args = parser.parse_args()
    base, base_loss = read_run(args.base)
    same = [("data",), *(("train", name) for name in ("seed", "batch_size", "window", "accumulate"))]
    rows: list[dict[str, Any]] = []
    for folder in dict.fromkeys((args.base, *args.runs)):
        wrote, loss = read_run(folder)
        for keys in same:
            own, other = wrote["config"], base["config"]
            for key in keys:
                own, other = own[key], other[key]
            if own != other:
                parser.error(f"{folder} and {args.base} differ in {'.'.join(keys)}: their batches differ")
        steps = sorted(loss.keys() & base_loss.keys())
        means = {}
        for stop in range(args.every, max(steps) + args.every, args.every):
            inside = [loss[step] - base_loss[step] for step in steps if stop - args.every < step <= stop]
            if inside:
                means[f"{stop - args.every + 1} to {stop}"] = mean(inside)
        del wrote["config"]["out"]
        wrote["config"]["data"]["specs"] = [Path(spec).name for spec in wrote["config"]["data"]["specs"]]
        rows.append({"run": folder.name, **wrote, "nats_per_token_minus_base": means})
        shown = "  ".join(f"{difference:+.3f}" for difference in means.values())
        if valid := wrote["valid"]:
            on, zeroed = (valid[name] for name in ("bits_per_byte", "bits_per_byte_memory_zeroed"))
            shown += f"   valid at update {valid['step']}: {on:.4f}, zeroed {zeroed:.4f}"
        print(f"{folder.name:24} {shown}", file=sys.stderr)
    write_result({"base": args.base.name, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
