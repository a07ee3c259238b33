"""A server under load: many streams at once against one at a time, over HTTP, in the same run.

The server is `rmat serve` in a process of its own. Rounds interleave the two loads, so that a slow minute of
the machine hits both: `--streams` clients, each asking again as soon as it is answered, and one such client
alone. Every answer must be complete; the server's resident memory is read every second.

    python benchmarks/serving_load.py [--seconds 60] [--streams 64] [--tokens 64] [--model starter]

The last line printed is one JSON object, which is also written to results/serving_load.json. Ends with status
1 if an answer was not what it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

from rmat.machine import describe_environment


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one run measures; it is written beside the numbers."""

    model: str
    """Name or folder."""
    streams: int
    """Streams at once."""
    seconds: float
    """How long so many run, over all rounds."""
    rounds: int
    """Interleaved repeats."""
    tokens: int
    """Tokens of an answer."""
    device: str
    """Where the server runs."""


@dataclass
class Load:
    """What some clients got."""

    seconds: float = 0.0
    answers: int = 0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    """Seconds to the first token of each answer."""
    errors: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    """Resident bytes of the server, every second, where the system tells them (Linux)."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A process that serves."""

    pid: int
    address: str

    def resident_bytes(self) -> int | None:
        """Memory of the process; None where the system does not tell."""
        status = Path(f"/proc/{self.pid}/status")
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return int(found.group(1)) * 1024 if found else None


@contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    """A server with room for all streams."""
    rows = str(settings.streams)
    command = [
        sys.executable,
        "-m",
        "rmat",
        "serve",
        settings.model,
        "--port",
        "0",
        "--device",
        settings.device,
    ]
    room = ["--max-rows", rows, "--max-waiting", rows, "--max-requests", str(2 * settings.streams)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([*command, *room, "--sessions", folder], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            found = re.search(r"http://[\d.:]+", process.stdout.readline())
            if not found:
                raise SystemExit("the server did not start")
            yield Server(pid=process.pid, address=found.group())
        finally:
            process.terminate()
            status = process.wait(60)
            print(f"the server ended with status {status}", file=sys.stderr)


async def ask(address: str, number: int, tokens: int, load: Load) -> None:
    """One streamed answer, by hand, so that the client takes little of the machine."""
    body = json.dumps(
        {
            "prompt": f"# file {number}\nimport os\n\n\ndef function_{number}(",
            "max_tokens": tokens,
            "seed": number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    place = urlsplit(address)
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    status, usage, done = (await reader.readline()).decode().strip(), b"", False
    first = None
    async for line in reader:
        if line.startswith(b"data: "):
            first = first or time.perf_counter() - started
            usage = line if b'"prompt_tokens"' in line else usage
            done = line.startswith(b"data: [DONE]")
    writer.close()
    if " 200 " not in status or not done or not usage or first is None:
        load.errors.append(status)
        return
    load.answers += 1
    load.tokens += int(json.loads(usage[6:])["usage"]["completion_tokens"])
    load.first.append(first)


async def put_load(server: Server, clients: int, seconds: float, tokens: int, numbers: Iterator[int]) -> Load:
    """So many clients for so long; answers that have begun then are waited for and counted."""
    load, started = Load(), time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - started < seconds:
            try:
                await ask(server.address, next(numbers), tokens, load)
            except OSError as error:
                load.errors.append(repr(error))

    async def watch() -> None:
        while (resident := server.resident_bytes()) is not None:
            load.resident.append(resident)
            await asyncio.sleep(1)

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(client() for _ in range(clients)))
    watching.cancel()
    load.seconds = time.perf_counter() - started
    return load


async def measure(settings: Settings, server: Server) -> dict[str, Any]:
    """All rounds."""
    numbers = count()
    part = settings.seconds / settings.rounds
    await put_load(server, settings.streams, 5, settings.tokens, numbers)
    together, alone = [], []
    for index in range(settings.rounds):
        together.append(await put_load(server, settings.streams, part, settings.tokens, numbers))
        alone.append(await put_load(server, 1, part / 2, settings.tokens, numbers))
        print(f"  round {index + 1} of {settings.rounds}", file=sys.stderr, flush=True)
    rates = [
        (many.tokens / many.seconds, one.tokens / one.seconds)
        for many, one in zip(together, alone, strict=True)
    ]
    loads = [*together, *alone]
    errors = [error for load in loads for error in load.errors]
    resident = [median(load.resident) for load in together if load.resident]
    return {
        "answers": sum(load.answers for load in loads),
        "errors": len(errors),
        "first_errors": errors[:5],
        "tokens_per_second": median(many for many, _ in rates),
        "tokens_per_second_one_at_a_time": median(one for _, one in rates),
        "speed_up": median(many / one for many, one in rates),
        "speed_up_range": [min(many / one for many, one in rates), max(many / one for many, one in rates)],
        "seconds_to_first_token": spread([first for load in together for first in load.first]),
        "seconds_to_first_token_one_at_a_time": spread([first for load in alone for first in load.first]),
        "resident_bytes_by_round": resident,
        "resident_growth_bytes": resident[-1] - resident[0] if resident else None,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    cuts = quantiles(values, n=20, method="inclusive") if len(values) > 1 else values * 19
    return {"median": cuts[9], "p95": cuts[18]} if values else {}


def main(arguments: list[str] | None = None) -> int:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="starter", help="name or folder of a model")
    parser.add_argument("--streams", type=int, default=64, help="streams at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long so many run")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved repeats")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("results/serving_load.json"), help="file to write")
    given = vars(parser.parse_args(arguments))
    out: Path = given.pop("out")
    settings = Settings(**given)
    if min(settings.streams, settings.rounds, settings.tokens) < 1 or settings.seconds <= 0:
        parser.error("streams, rounds, tokens and seconds must be above 0")
    with serving(settings) as server:
        found = asyncio.run(measure(settings, server))
    device = "cuda" if settings.device == "cuda" else "cpu"
    result = {
        "benchmark": "serving_load",
        "settings": asdict(settings),
        "environment": describe_environment(device),
        **found,
    }
    print(
        f"{settings.streams} streams: {found['tokens_per_second']:,.0f} tokens/s, one: "
        f"{found['tokens_per_second_one_at_a_time']:,.0f}, {found['speed_up']:.1f} times; "
        f"{found['answers']} answers, {found['errors']} errors"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 1 if found["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
