"""Tokens per second of many texts written at once by the serving engine, beside the same texts one at a time.

All rounds interleave: in each one the engine writes all texts at once, the same engine writes some of them
one after the other, and `rmat.generate` writes those too. Ratios are medians of the ratios within a round.
Prompts are random tokens, different for every text and round, and nothing is cached; so every token of every
prompt is read, and counted as time.

    python benchmarks/batching.py [--model starter] [--streams 64] [--quick] [--device cuda]

The last line printed is one JSON object, which is also written to results/batching.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import speed
import torch

from rmat.cli.loading import load_with_tokenizer
from rmat.engine.engine import Engine
from rmat.engine.request import Request, Stream
from rmat.generation.sampling import SamplingConfig
from rmat.generation.stream import Generation, generate
from rmat.machine import describe_environment


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one run measures; it is written beside the numbers."""

    model: str
    """Model folder, run folder or name."""
    streams: int
    """Texts written at once."""
    alone: int
    """So many of them are written one at a time."""
    prompt_tokens: int
    """Random tokens before each text."""
    new_tokens: int
    """Tokens of each text; fewer where the model ends it."""
    rounds: int
    """Interleaved repeats."""
    device: str
    """cpu or cuda."""
    seed: int
    """Seed of prompts and draws."""


class Writer:
    """The model, written with in the three ways that are compared. Each returns the tokens written."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model, self.tokenizer = load_with_tokenizer(settings.model, settings.device)
        self.engine = Engine(
            self.model,
            self.tokenizer,
            max_rows=settings.streams,
            max_waiting=settings.streams,
            cache_bytes=0,
        )
        self._tokens = torch.Generator().manual_seed(settings.seed)

    def requests(self) -> list[Request]:
        """New prompts for one round."""
        settings, document = self.settings, self.tokenizer.special_id("document")
        shape = (settings.streams, settings.prompt_tokens - 1)
        # The special tokens, some of which end a text, come last.
        prompts = torch.randint(self.tokenizer.vocab_size - 16, shape, generator=self._tokens).tolist()
        return [
            Request(
                ids=(document, *prompt),
                sampling=SamplingConfig(temperature=1.0, seed=settings.seed + row),
                max_new_tokens=settings.new_tokens,
            )
            for row, prompt in enumerate(prompts)
        ]

    def together(self, requests: Sequence[Request]) -> int:
        """All requests at once."""
        return sum(map(_written, [self.engine.submit(request) for request in requests]))

    def in_turn(self, requests: Sequence[Request]) -> int:
        """One request after the other through the same engine."""
        return sum(_written(self.engine.submit(request)) for request in requests)

    def by_generate(self, requests: Sequence[Request]) -> int:
        """One request after the other by `rmat.generate`."""
        return sum(_written(self._generation(request)) for request in requests)

    def _generation(self, request: Request) -> Generation:
        return generate(
            self.model,
            self.tokenizer,
            list(request.ids),
            max_new_tokens=request.max_new_tokens,
            temperature=request.sampling.temperature,
            seed=request.sampling.seed,
        )


def _written(text: Stream | Generation) -> int:
    for _ in text:
        pass
    return len(text.tokens)


def measure(settings: Settings) -> dict[str, Any]:
    """All rounds, and what follows from them."""
    writer = Writer(settings)
    ways = {"together": writer.together, "in_turn": writer.in_turn, "generate": writer.by_generate}
    rounds: list[dict[str, float]] = []
    try:
        warm = [dataclasses.replace(request, max_new_tokens=4) for request in writer.requests()]
        writer.together(warm)
        writer.by_generate(warm[:1])
        for index in range(settings.rounds):
            requests = writer.requests()
            rates: dict[str, float] = {}
            for name in sorted(ways, reverse=index % 2 == 1):
                given = requests if name == "together" else requests[: settings.alone]
                counts: list[int] = []
                spent = speed.seconds(lambda: counts.append(ways[name](given)), settings.device)  # noqa: B023
                rates[name] = counts[0] / spent
            rounds.append(rates)
            print(f"round {index + 1} of {settings.rounds}: {rates}", file=sys.stderr, flush=True)
    finally:
        writer.engine.stop()
    state_bytes = writer.model.initial_state(batch_size=1).nbytes
    return {
        "benchmark": "batching",
        "settings": dataclasses.asdict(settings),
        "environment": describe_environment(settings.device),
        "state_bytes": {"one_stream": state_bytes, "all_streams": state_bytes * settings.streams},
        "tokens_per_second": {name: median(rates[name] for rates in rounds) for name in ways},
        "rounds": rounds,
        "ratios": {
            f"together/{name}": median(rates["together"] / rates[name] for rates in rounds)
            for name in ("in_turn", "generate")
        },
        "engine": writer.engine.stats(),
    }


def parse(arguments: list[str] | None = None) -> tuple[Settings, Path]:
    """Settings and the file to write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="starter", help="model folder, run folder or name")
    parser.add_argument("--streams", type=int, default=64, help="texts written at once")
    parser.add_argument("--alone", type=int, default=8, help="so many of them are written one at a time")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two rounds of 32 tokens")
    parser.add_argument("--out", type=Path, default=Path("results/batching.json"), help="file to write")
    given = parser.parse_args(arguments)
    if min(given.streams, given.alone, given.prompt_tokens, given.new_tokens, given.rounds) < 1:
        parser.error("streams, alone, prompt tokens, new tokens and rounds are at least 1")
    settings = Settings(
        model=given.model,
        streams=given.streams,
        alone=min(given.alone, given.streams),
        prompt_tokens=given.prompt_tokens,
        new_tokens=32 if given.quick else given.new_tokens,
        rounds=2 if given.quick else given.rounds,
        device=given.device,
        seed=given.seed,
    )
    return settings, given.out


def main(arguments: list[str] | None = None) -> None:
    """Measure, show, write."""
    settings, out = parse(arguments)
    try:
        result = measure(settings)
    except (ValueError, OSError) as error:
        raise SystemExit(f"batching.py: {error}") from None
    rates, held = result["tokens_per_second"], result["state_bytes"]
    print(f"{settings.streams} texts at once  {rates['together']:>8,.0f} tokens/s")
    print(
        f"one at a time     {rates['in_turn']:>8,.0f} tokens/s  ({result['ratios']['together/in_turn']:.1f} times less)"
    )
    print(
        f"rmat.generate     {rates['generate']:>8,.0f} tokens/s  ({result['ratios']['together/generate']:.1f} times less)"
    )
    print(f"state: {held['one_stream'] / 1e3:,.0f} kB a text, {held['all_streams'] / 1e6:,.1f} MB for all")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
