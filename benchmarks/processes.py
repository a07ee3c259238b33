"""Throughput of training in N processes with one thread each beside one process with N threads: `rmat train`
itself, under torchrun and without.

Rounds interleave the two, so that a slow minute of the machine hits both. The rate of a run is the median over
the rows of its metrics but the first third, in which caches fill; of the ratios within rounds the median is
reported.

    python benchmarks/processes.py [--processes 2] [--size tiny] [--rounds 3] [train.parallel=fsdp ...]

The last line printed is one JSON object, which is also written to results/processes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from rmat.machine import describe_environment

QUIET = (
    "train.eval_every=0",
    "train.eval_bytes=1000",
    "train.sample_every=0",
    "train.checkpoint_every=100000",
)
ROW = 3
"""Updates of a row of the metrics."""


def rates_of(command: list[str], out: Path, threads: int) -> list[float]:
    """Tokens a second of `rmat train` as `command` trains in `out`, of each row that counts."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([*command, "--out", str(out)], env=environment, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [row["tokens_per_second"] for row in rows if row["kind"] == "train"]
    return rates[len(rates) // 3 :]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--data", default="python-stdlib")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--out", type=Path, default=Path("results/processes.json"))
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="further settings of rmat train")
    args = parser.parse_args()
    train = ["-m", "rmat", "train", "--preset", args.size, "--data", args.data, *QUIET]
    train += [f"train.steps={args.steps}", f"train.log_every={ROW}", *args.settings]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.processes)]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            samples = {
                "one": rates_of([sys.executable, *train], Path(folder) / f"one{number}", args.processes),
                "many": rates_of([sys.executable, *several, *train], Path(folder) / f"many{number}", 1),
            }
            one, many = (median(each) for each in samples.values())
            rounds.append({"one": one, "many": many, "ratio": many / one, "samples": samples})
            print(
                f"one process {one:,.0f} tokens/s, {args.processes} processes {many:,.0f}: {many / one:.2f}"
            )
    result = {
        "settings": {**vars(args), "out": str(args.out)},
        "environment": describe_environment("cpu"),
        "rounds": rounds,
        "ratio": median(each["ratio"] for each in rounds),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
