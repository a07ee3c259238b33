"""Does everything work on this machine's GPU, and how fast? One command, under 8 minutes, no network.

    python scripts/gpu_check.py [--out gpu_check.json]          on a machine with a CUDA device
    python scripts/gpu_check.py --device cpu --quick            the same parts at toy scale, without one

It needs what the package needs (`dependencies` in pyproject.toml); the package itself is taken from beside
this script. Every part runs in a process of its own with a time limit: a part that fails, crashes
the device or hangs is recorded and the rest still runs. The report is written to `--out`; the last line
printed is the same as one JSON object. Exit status: 0 all parts passed, 1 a part failed, 2 wrong arguments or
no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import gpu_check_parts as parts  # noqa: E402

BUDGET_SECONDS = 465
"""All parts together; what is left of it bounds each part's own limit."""

SKIPPED = {
    "command line": "the parts call the library directly; `make test` runs it on a CPU",
    "Parquet and hf: sources": "they need pyarrow and datasets; training reads the standard library's own sources",
    "property tests": "they need hypothesis; `make test` runs them on a CPU",
    "several GPUs": "one device is checked",
}


def main(arguments: list[str] | None = None) -> int:
    """Run all parts, or one of them when called by itself for it; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy scale: seconds a part")
    parser.add_argument(
        "--parts", nargs="+", choices=list(parts.PARTS), default=list(parts.PARTS), help="only these"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="file to write")
    parser.add_argument(
        "--single", choices=list(parts.PARTS), help="run one part here and print its result as JSON"
    )
    given = parser.parse_args(arguments)
    if given.device == "cpu" and not given.quick:
        parser.error("--device cpu runs at toy scale only: add --quick")
    if given.single:
        print(json.dumps(parts.PARTS[given.single].run(given.device, given.quick)))
        return 0
    if given.device == "cuda" and not parts.has_cuda():
        print(
            "There is no GPU that torch can use here: run this on a machine with one, or the toy-scale check with "
            "--device cpu --quick.",
            file=sys.stderr,
        )
        return 2
    report = check(given.parts, given.device, given.quick)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0 if report["passed"] else 1


def check(names: list[str], device: str, quick: bool) -> dict[str, Any]:
    """Run the named parts one after the other and collect their results."""
    start = time.monotonic()
    results: dict[str, Any] = {}
    for name in names:
        left = BUDGET_SECONDS - (time.monotonic() - start)
        begin = time.monotonic()
        results[name] = isolated(name, device, quick, min(parts.PARTS[name].limit, left))
        results[name]["seconds"] = round(time.monotonic() - begin, 1)
        line = results[name].get("error") or results[name].get("summary", "")
        print(
            f"{'ok    ' if results[name]['ok'] else 'FAILED'} {name} ({results[name]['seconds']} s)  {line}",
            flush=True,
        )
    for what, why in SKIPPED.items():
        print(f"skipped {what}: {why}")
    return {
        "check": "gpu",
        "passed": all(result["ok"] for result in results.values()),
        "device": device,
        "quick": quick,
        "seconds": round(time.monotonic() - start, 1),
        "parts": results,
        "skipped": SKIPPED,
    }


def isolated(name: str, device: str, quick: bool, limit: float) -> dict[str, Any]:
    """One part in a process of its own: its result, or what went wrong."""
    if limit <= 0:
        return {"ok": False, "error": f"not run: the {BUDGET_SECONDS} s for all parts were used up before"}
    command = [
        sys.executable,
        __file__,
        "--single",
        name,
        "--device",
        device,
        *(["--quick"] if quick else []),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT)
    except subprocess.TimeoutExpired as late:
        shown = late.stderr.decode(errors="replace") if isinstance(late.stderr, bytes) else late.stderr or ""
        return {"ok": False, "error": f"still running after {limit:.0f} s", "log": shown[-2000:]}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode} without a message"]
        return {"ok": False, "error": lines[-1], "log": done.stderr[-4000:]}
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        return {"ok": False, "error": "the part printed no result", "log": done.stdout[-2000:]}


if __name__ == "__main__":
    sys.exit(main())
