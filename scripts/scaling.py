"""A model of training on many GPUs, on paper: seconds of an update from a configuration, FLOPs and speeds of links.

    python scripts/scaling.py --size base --tokens 16384
    python scripts/scaling.py --size large --parallel fsdp --node-link 450e9 --net-link 50e9

Nothing here is measured: `--share` says which share of a GPU's peak the model reaches on one GPU, the links their bytes
per second in one direction. Weak scaling: every GPU reads the same number of tokens, whatever their number.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from rmat import ModelConfig
from rmat.accounting import account
from rmat.context_parallel import handed_bytes

WEIGHT = 4
"""Bytes of a weight and of a gradient as they travel: float32."""

SUMS = 4
"""Collectives of a few numbers that an update waits for: widest row, scored tokens, cross entropy, stop."""

PLACES = 2e-6
"""Seconds that a process spends on the place of every row of the global batch that another one reads."""


@dataclass(frozen=True)
class Machine:
    """GPUs in nodes."""

    peak: float
    """FLOP/s of one GPU."""
    share: float
    """Share of it that the model reaches alone."""
    node: int
    """GPUs of a node."""
    node_link: float
    """Bytes a second between GPUs of a node, per GPU and direction."""
    net_link: float
    """The same between nodes, per GPU."""
    latency: float
    """Seconds of a message between nodes."""


def update(
    config: ModelConfig, tokens: int, rows: int, gpus: int, parallel: str, machine: Machine
) -> dict[str, float]:
    """Seconds of one update in which every GPU reads `tokens` in `rows` rows.

    What travels can hide behind the backward pass (two thirds of the work), with fsdp behind the forward too; what does
    not fit is waited for.
    """
    cost = account(config)
    work = cost.flops_per_token_train * tokens / (machine.peak * machine.share)
    weights = WEIGHT * cost.parameters
    link = machine.node_link if gpus <= machine.node else machine.net_link
    passes = {"ddp": 2, "fsdp": 3}[parallel]  # an all-reduce is a reduce-scatter and an all-gather
    share = (gpus - 1) / gpus
    units = 1 if parallel == "ddp" else config.n_layers + 1
    hops = math.ceil(math.log2(gpus)) if gpus > 1 else 0
    travel = passes * share * weights / link + passes * units * hops * machine.latency
    hidden = work * (2 / 3 if parallel == "ddp" else 1)
    sums = SUMS * 2 * hops * machine.latency
    places = PLACES * rows * (gpus - 1)
    seconds = work + max(0.0, travel - hidden) + sums + places
    return {"seconds": seconds, "work": work, "travel": travel, "efficiency": work / seconds}


def ring_bytes(config: ModelConfig, length: int, width: int = 2) -> int:
    """Bytes that ring attention moves through each GPU at a layer: all keys and values of a row."""
    return 2 * length * config.n_kv_heads * config.head_dim * width


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="base")
    parser.add_argument("--variant", default="recommended")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="fsdp")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens a GPU reads in an update")
    parser.add_argument("--rows", type=int, default=8, help="rows they stand in")
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s of a GPU (H100, bfloat16)")
    parser.add_argument("--share", type=float, default=0.35, help="share of it reached on one GPU")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a node")
    parser.add_argument("--node-link", type=float, default=450e9, help="bytes/s inside a node")
    parser.add_argument("--net-link", type=float, default=50e9, help="bytes/s between nodes, per GPU")
    parser.add_argument("--latency", type=float, default=10e-6, help="seconds of a message")
    parser.add_argument("--gpus", type=int, nargs="*", default=[1, 8, 16, 64, 256, 1024, 4096])
    args = parser.parse_args(arguments)
    config = ModelConfig.preset(args.size, variant=args.variant)
    machine = Machine(args.peak, args.share, args.node, args.node_link, args.net_link, args.latency)
    print(
        f"{args.size} {args.variant}, {args.parallel}, {args.tokens:,} tokens a GPU: {account(config).parameters:,} weights"
    )
    print(f"{'GPUs':>6} {'work ms':>9} {'travel ms':>9} {'update ms':>9} {'tokens/s':>13} {'of linear':>9}")
    for gpus in args.gpus:
        found = update(config, args.tokens, args.rows, gpus, args.parallel, machine)
        speed = gpus * args.tokens / found["seconds"]
        times = " ".join(f"{1e3 * found[name]:9.2f}" for name in ("work", "travel", "seconds"))
        print(f"{gpus:6,} {times} {speed:13,.0f} {found['efficiency']:9.2f}")
    handed = max(handed_bytes(config))
    print(
        f"\ncontext parallel, bytes a layer hands on for one row (float32): {handed:,}, whatever its length"
    )
    for length in (16_384, 131_072, 1_048_576):
        ring = ring_bytes(config, length, width=4)
        print(f"  ring attention over {length:9,} tokens: {ring:15,} ({ring / handed:,.0f} times)")


if __name__ == "__main__":
    main()
