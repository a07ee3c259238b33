"""Speed and memory of both forms of the memory, `admitted` and `recommended`, beside `local` (no memory) and
`full` (plain attention over the whole length).

The same code runs all of them; they differ by config only, and `full` gets segments as long as the text. At
each length T the number of tokens per step is the same (fewer rows of more tokens). Rounds interleave the
systems, so that a slow minute of the machine hits all of them; medians over rounds are reported, ratios are
medians of the ratios within a round. Utilisation is the model's floating-point operations over the rate of a
matrix product in the same run.

    python benchmarks/throughput.py [--quick] [--size tiny] [--lengths 1024 4096 16384] [--device cuda --dtype bfloat16]

The last line printed is one JSON object, which is also written to results/throughput.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import speed
import torch
from torch import Tensor

from rmat.accounting import account
from rmat.machine import describe_environment
from rmat.model import LanguageModel, ModelConfig

MEASURES = ("train", "prefill", "decode")
BASELINES = ("local", "full")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one run measures; it is written beside the numbers."""

    size: str
    """Preset size of all systems."""
    variants: tuple[str, ...]
    """Preset variants to compare."""
    lengths: tuple[int, ...]
    """Lengths T in tokens."""
    tokens: int
    """Tokens of a training step or a prefill, over all rows."""
    decode_tokens: int
    """Tokens decoded one by one; the last one has a context of T tokens."""
    rounds: int
    """Interleaved repeats."""
    vocab_size: int
    """Vocabulary of the models; tokens are random."""
    device: str
    """cpu or cuda."""
    dtype: str
    """float32, or bfloat16 under autocast."""
    compile: bool
    """Whether training steps run through torch.compile."""
    seed: int
    """Seed of weights and tokens."""

    def config(self, variant: str, length: int) -> ModelConfig:
        """The model of a variant at a length."""
        context = {"segment_len": length} if variant == "full" else {}
        return ModelConfig.preset(self.size, variant=variant, vocab_size=self.vocab_size, **context)

    def batch(self, length: int) -> Tensor:
        """(B, T + 1) random tokens, B * T = `tokens` (at least one row)."""
        rows = max(1, self.tokens // length)
        return torch.randint(
            self.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(self.seed)
        )


class System:
    """One model, ready to be timed at one length."""

    def __init__(self, settings: Settings, variant: str, length: int) -> None:
        self.settings = settings
        torch.manual_seed(settings.seed)
        self.config = settings.config(variant, length)
        self.model = LanguageModel(self.config).to(settings.device)
        self.step = speed.trainer(
            self.model, device=settings.device, dtype=settings.dtype, compile_model=settings.compile
        )
        self.tokens_BT = settings.batch(length).to(settings.device)
        self.context = self.prefill(self.tokens_BT[:1, : max(1, length - settings.decode_tokens)])

    def prefill(self, tokens_BT: Tensor) -> Any:
        return speed.prefill(self.model, tokens_BT, device=self.settings.device, dtype=self.settings.dtype)

    def train_step(self) -> None:
        self.model.train()
        self.step(self.tokens_BT)

    def rates(self) -> dict[str, float]:
        """Tokens per second of one training step, one prefill and one run of decoding."""
        settings, inputs = self.settings, self.tokens_BT[:, :-1]
        spent = {
            "train": speed.seconds(self.train_step, settings.device),
            "prefill": speed.seconds(lambda: self.prefill(inputs), settings.device),
            "decode": speed.seconds(lambda: self.decode(settings.decode_tokens), settings.device),
        }
        counts = {"train": inputs.numel(), "prefill": inputs.numel(), "decode": settings.decode_tokens}
        return {name: counts[name] / spent[name] for name in MEASURES}

    def decode(self, tokens: int) -> None:
        settings = self.settings
        speed.decode(self.model, self.context, tokens=tokens, device=settings.device, dtype=settings.dtype)

    def warm_up(self) -> None:
        self.train_step()
        self.prefill(self.tokens_BT[:, :-1])
        self.decode(2)


def training_peak(settings: Settings, variant: str, length: int) -> int:
    """Bytes a training step of one system holds at its peak: weights, gradients, optimiser and
    activations."""

    def work() -> None:
        torch.manual_seed(settings.seed)
        model = LanguageModel(settings.config(variant, length)).to(settings.device)
        step = speed.trainer(model, device=settings.device, dtype=settings.dtype)
        tokens_BT = settings.batch(length).to(settings.device)
        for _ in range(2):
            step(tokens_BT)

    return speed.peak_memory(work, settings.device)


def measure(settings: Settings, length: int, peak_rate: float) -> dict[str, Any]:
    """All systems at one length."""
    peaks = {
        variant: speed.isolated(training_peak, settings, variant, length, device=settings.device)
        for variant in settings.variants
    }
    systems = {variant: System(settings, variant, length) for variant in settings.variants}
    for system in systems.values():
        system.warm_up()
    rounds: list[dict[str, dict[str, float]]] = []
    for index in range(settings.rounds):
        shift = index % len(settings.variants)
        order = settings.variants[shift:] + settings.variants[:shift]
        rounds.append({variant: systems[variant].rates() for variant in order})
        print(f"  T={length}: round {index + 1} of {settings.rounds}", file=sys.stderr, flush=True)
    found: dict[str, Any] = {
        "length": length,
        "rows": systems[settings.variants[0]].tokens_BT.shape[0],
        "systems": {},
    }
    for variant, system in systems.items():
        costs = account(system.config)
        rates = {name: [done[variant][name] for done in rounds] for name in MEASURES}
        found["systems"][variant] = {
            "config": system.config.to_dict(),
            "parameters": costs.parameters,
            "flops_per_token_train": costs.flops_per_token_train,
            "state_bytes": system.model.initial_state(batch_size=1).nbytes,
            "train_peak_bytes": peaks[variant],
            "train_utilisation": median(rates["train"]) * costs.flops_per_token_train / peak_rate,
            "tokens_per_second": {name: median(values) for name, values in rates.items()},
            "tokens_per_second_range": {name: [min(values), max(values)] for name, values in rates.items()},
        }
    found["ratios"] = {
        f"{ours}/{other}": {
            name: median(done[ours][name] / done[other][name] for done in rounds) for name in MEASURES
        }
        for ours in settings.variants
        if ours not in BASELINES
        for other in settings.variants
        if other in BASELINES
    }
    return found


def show(found: dict[str, Any]) -> None:
    """Print one length as a table."""
    rows = f"{found['rows']} row{'s' if found['rows'] > 1 else ''}"
    print(f"\nT = {found['length']} tokens, {rows}; tokens/s (decode: one row)")
    print(
        f"{'':>12} {'train':>10} {'prefill':>10} {'decode':>8} {'used':>6} {'state kB':>9} {'peak MB':>8} {'params':>10}"
    )
    for name, system in found["systems"].items():
        rate = system["tokens_per_second"]
        print(
            f"{name:>12} {rate['train']:>10,.0f} {rate['prefill']:>10,.0f} {rate['decode']:>8,.0f} "
            f"{system['train_utilisation']:>6.0%} {system['state_bytes'] / 1e3:>9,.0f} "
            f"{system['train_peak_bytes'] / 1e6:>8,.0f} {system['parameters']:>10,}"
        )
    for pair, ratio in found["ratios"].items():
        print(
            f"  {pair}: train {ratio['train']:.2f}, prefill {ratio['prefill']:.2f}, decode {ratio['decode']:.2f}"
        )


def parse(arguments: list[str] | None = None) -> tuple[Settings, Path]:
    """Settings and the file to write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", default="tiny", help="preset size of all systems")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["admitted", "recommended", "local", "full"],
        help="preset variants; ratios are of every other one to `local` and to `full`",
    )
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[1024, 4096, 16384], help="lengths T in tokens"
    )
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of a training step over all rows")
    parser.add_argument(
        "--decode-tokens", type=int, default=64, help="tokens decoded at the end of each length"
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats")
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on cuda, float32 on cpu"
    )
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two rounds at 1024 and 4096 tokens")
    parser.add_argument("--out", type=Path, default=Path("results/throughput.json"), help="file to write")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    least = min(given.rounds, given.tokens, given.decode_tokens, *given.lengths)
    if least < 1:
        parser.error(f"{least} is too small: rounds, tokens, decode tokens and lengths are at least 1")
    settings = Settings(
        size=given.size,
        variants=tuple(given.variants),
        lengths=(1024, 4096) if given.quick else tuple(given.lengths),
        tokens=given.tokens,
        decode_tokens=given.decode_tokens,
        rounds=2 if given.quick else given.rounds,
        vocab_size=given.vocab_size,
        device=given.device,
        dtype=given.dtype or ("bfloat16" if given.device == "cuda" else "float32"),
        compile=given.compile,
        seed=given.seed,
    )
    try:
        for variant in settings.variants:
            settings.config(variant, settings.lengths[0])
    except ValueError as error:
        parser.error(str(error))
    return settings, given.out


def main(arguments: list[str] | None = None) -> None:
    """Measure, show, write."""
    settings, out = parse(arguments)
    peak_rate = speed.matmul_rate(settings.device, settings.dtype)
    print(f"matrix product: {peak_rate / 1e9:,.0f} GFLOP/s in {settings.dtype} on {settings.device}")
    result: dict[str, Any] = {
        "benchmark": "throughput",
        "settings": dataclasses.asdict(settings),
        "environment": describe_environment(settings.device),
        "matmul_flops_per_second": peak_rate,
        "lengths": [],
    }
    for length in settings.lengths:
        result["lengths"].append(measure(settings, length, peak_rate))
        show(result["lengths"][-1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
