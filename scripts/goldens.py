"""What must not change in a restructuring: logits, states, gradients, checkpoints, scores and texts, bit for
bit.

    python scripts/goldens.py make FOLDER       before the change: runs everything, writes FOLDER/goldens.json
    python scripts/goldens.py compare FOLDER    after it: runs everything again, names each difference, exit status 1 if any

Numbers depend on the machine and on torch, so goldens are made and compared on one machine and not kept in
the repository. Only the public API and the command line are used: what lies between may change. `--only PART`
runs a part.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", COLUMNS="100")

import argparse
import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import rmat

AXES: dict[str, list[Any]] = {
    "streams": [
        ("full", "chunked", "memory"),
        ("chunked", "memory"),
        ("full", "memory"),
        ("memory",),
        ("full", "chunked"),
    ],
    "projections": ["separate", "shared"],
    "writer": ["mean", "pool", "select", "all"],
    "gate": ["gru", "push", "both", "none"],
    "gate_gradient": ["logit", "value"],
    "write_from": ["input", "output"],
    "memory_position": ["none", "rank", "age"],
    "memory_read": ["softmax", "stick_breaking"],
    "eviction": ["oldest", "weakest"],
    "null_slot": [False, True],
    "fusion": ["scalar", "head", "token", "joint"],
    "chunk_lookback": [0, 1],
    "conv_width": [0, 3],
    "norm": ["layernorm", "rmsnorm"],
    "mlp": ["gelu", "swiglu"],
    "tie_embeddings": [True, False],
    "memory_layers": [None, (0,)],
    "n_kv_heads": [4, 2],
    "write_cost": [0.0, 0.01],
    "gate_noise": [0.0, 0.5],
    "dropout": [0.0, 0.1],
}
SMALL = [
    "train.batch_size=2",
    "train.window=64",
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=2",
]
SMALL += [
    "train.eval_every=4",
    "train.eval_bytes=1000",
    "train.sample_every=4",
    "train.steps=8",
    "train.checkpoint_every=4",
]
TIMES = re.compile(
    r"second|time|elapsed|version|created|machine|commit|date|host|python|platform|path|folder|peak|when|updated|cpu|memory_bytes|rss",
    re.I,
)


def digest(tensors: Any) -> str:
    """SHA-256 of a tree of tensors, numbers and texts."""
    whole = hashlib.sha256()

    def feed(x: Any) -> None:
        if isinstance(x, torch.Tensor):
            whole.update(f"{x.dtype}{tuple(x.shape)}".encode())
            whole.update(x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(x, dict):
            for name in sorted(x):
                whole.update(str(name).encode())
                feed(x[name])
        elif isinstance(x, (list, tuple)):
            for item in x:
                feed(item)
        else:
            whole.update(repr(x).encode())

    feed(tensors)
    return whole.hexdigest()[:20]


def scrambled(config: rmat.ModelConfig) -> rmat.LanguageModel:
    """A model whose parameters do not depend on the order in which modules are made."""
    model = rmat.LanguageModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
            parameter.copy_(
                parameter + 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            )
    return model


def configurations() -> Iterator[tuple[str, rmat.ModelConfig]]:
    """Every variant, and legal points drawn from all axes."""
    for variant in ("recommended", "paper", "local", "xl", "full"):
        sizes = dict(
            vocab_size=61, n_layers=2, d_model=32, n_heads=4, n_kv_heads=4 if variant == "paper" else 2
        )
        yield variant, rmat.ModelConfig.preset("tiny", variant, **sizes, segment_len=8, chunk_len=4)
    draw, found = random.Random(0), 0
    for attempt in itertools.count():
        chosen = {name: draw.choice(values) for name, values in AXES.items()}
        writes = {"mean": 1, "all": 8}.get(chosen["writer"], 3)
        try:
            config = rmat.ModelConfig(
                vocab_size=61, d_model=32, n_layers=2, n_heads=4, segment_len=8, chunk_len=4, d_ff=40,
                n_slots=10, writes_per_segment=writes, gate_bias=0.2, **chosen,
            )  # fmt: skip
        except ValueError:
            continue
        found += 1
        yield f"drawn{attempt}", config
        if found == 70:
            return


def models() -> Iterator[tuple[str, Any]]:
    """Logits, states and gradients over schedules, splits, resets, padding and ablations."""
    for name, config in configurations():
        torch.manual_seed(1)
        fresh = dict(rmat.LanguageModel(config).state_dict())
        yield f"model {name} initial", digest(fresh)
        yield f"model {name} fingerprint", config.fingerprint()
        model = scrambled(config).eval()
        draw = torch.Generator().manual_seed(2)
        tokens = torch.randint(0, 61, (3, 45), generator=draw)
        resets = torch.rand(3, 45, generator=draw) < 0.06
        valid = torch.rand(3, 45, generator=draw) < 0.8
        for schedule in ("auto", "sequential"):
            logits, state = model(tokens, schedule=schedule)
            yield f"model {name} {schedule}", digest([logits, state.tensors()])
            logits, state = model(tokens, resets=resets, valid=valid, schedule=schedule)
            yield f"model {name} {schedule} ragged", digest([logits, state.tensors()])
        state, parts = None, []
        for piece, reset, live in zip(
            *(x.split([1, 7, 1, 13, 2, 21], 1) for x in (tokens, resets, valid)), strict=True
        ):
            logits, state = model(piece, state, resets=reset, valid=live)
            parts.append(logits)
        yield f"model {name} split", digest([parts, state.tensors()])
        if config.has_memory:
            for memory in ("zeroed", "frozen", "shuffled"):
                logits, state = model(tokens, resets=resets, memory=memory)
                yield f"model {name} {memory}", digest([logits, state.tensors()])
        model.train()
        torch.manual_seed(3)
        logits, state = model(tokens, resets=resets)
        logits, state = model(tokens.flip(1), state)
        (
            logits.square().mean() + sum(t.sum() for t in state.tensors().values() if t.requires_grad)
        ).backward()
        yield (
            f"model {name} gradients",
            digest({k: p.grad for k, p in model.named_parameters() if p.grad is not None}),
        )


def texts(folder: Path) -> None:
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for i in range(12):
        lines = [" ".join(f"w{draw.randrange(50)}" for _ in range(8)) for _ in range(60)]
        (folder / f"d{i}.py").write_text("def f(x):\n    return x\n\n" + "\n".join(lines) + "\n")


def told(value: Any) -> Any:
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {k: told(v) for k, v in sorted(value.items()) if not TIMES.search(k)}
    return [told(item) for item in value] if isinstance(value, list) else value


def stored(path: Path) -> Any:
    """What a safetensors file holds."""
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def command(*arguments: str, json_last: bool = False, given: str = "") -> Any:
    """What `rmat ARGUMENTS` prints: its last line as JSON, or a digest of its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "rmat", *arguments], input=given, capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        return [done.returncode, done.stderr[-400:]]
    if json_last:
        return told(json.loads(done.stdout.strip().splitlines()[-1]))
    return re.sub(r"\d+\.\d+ s \([^)]*\)", "", done.stdout)


def tree(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor file and every table of metrics in a run's folder."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            yield name, digest(stored(path))
        elif path.name == "metrics.jsonl":
            yield name, [told(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.is_file():
            yield name, "there"


def training() -> Iterator[tuple[str, Any]]:
    """Runs on text and tasks, and a resumed one."""
    texts(Path("data"))
    Path("talks.jsonl").write_text(
        "".join(
            json.dumps({"turns": [{"role": "user", "text": f"hello {i} {j}"} for j in range(6)]}) + "\n"
            for i in range(40)
        )
    )
    runs = {
        "text": ["--data", "data", "data.tokenizer=bytes"],
        "bpe": ["--data", "data", "data.tokenizer=bpe:400", "data.fim_rate=0.5", "train.optimizer=muon"],
        "paper": ["--data", "data", "--variant", "paper", "data.tokenizer=bytes"],
        "talks": ["--data", "talks.jsonl", "data.tokenizer=bytes"],
        "recall": ["--data", "recall"],
        "mqar": ["--data", "mqar"],
        "passkey": ["--data", "passkey", "data.tokenizer=bytes", "train.window=640"],
        "needle": ["--data", "needle", "data.tokenizer=bytes", "train.window=640"],
    }
    for name, arguments in runs.items():
        yield f"train {name}", command("train", *SMALL, *arguments, "--out", name, "--json", json_last=True)
        if Path(name).is_dir():
            for file, content in tree(Path(name)):
                yield f"train {name} {file}", content
    yield "resume", command("train", "--resume", "text", "train.steps=12", json_last=False) and None
    for file, content in tree(Path("text")):
        yield f"resume text {file}", content


def starter() -> Iterator[tuple[str, Any]]:
    """Texts, sessions and scores of the model that comes with the package."""
    os.environ["RMAT_SESSIONS"] = str(Path("sessions").resolve())
    Path("long.py").write_text(
        "".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(300)) + "def g("
    )
    Path("doc.md").write_text("# Title\n\n" + "A sentence about sessions and states.\n" * 200)
    yield (
        "generate greedy",
        command("generate", "starter", "def main", "--max-new-tokens", "40", "--temperature", "0"),
    )
    yield (
        "generate drawn",
        command("generate", "starter", "def main", "--max-new-tokens", "60", "--seed", "4", "--top-p", "0.9"),
    )
    yield (
        "generate file",
        command(
            "generate",
            "starter",
            "--file",
            "long.py",
            "--state-out",
            "s",
            "--max-new-tokens",
            "9",
            "--seed",
            "1",
        ),
    )
    yield "state", digest(stored(Path("s")))
    yield (
        "generate on",
        command("generate", "starter", "x", "--state-in", "s", "--max-new-tokens", "9", "--seed", "1"),
    )
    yield "complete", command("complete", "starter", "long.py:5", "--max-new-tokens", "30", "--seed", "0")
    yield "read", command("read", "starter", "doc.md", "long.py", "--session", "card")
    for path in sorted(Path("sessions").rglob("*.safetensors")):
        yield f"session {path.name}", digest(stored(path))
    yield (
        "ask",
        command(
            "ask",
            "starter",
            "--session",
            "card",
            "What is a session?",
            "--max-new-tokens",
            "30",
            "--seed",
            "0",
        ),
    )
    yield (
        "chat",
        command(
            "chat",
            "starter",
            "--session",
            "t",
            "--seed",
            "0",
            "--max-new-tokens",
            "20",
            given="hello\nhow are you\n",
        ),
    )
    texts(Path("data"))
    scores = {
        "perplexity": ["--data", "data"],
        "ablation": ["--data", "data"],
        "passkey": ["--length", "300", "--samples", "3"],
        "needle": ["--length", "300", "--samples", "3"],
        "recall": ["--length", "256"],
    }
    for name, arguments in scores.items():
        yield f"eval {name}", command("eval", name, "starter", *arguments, "--json", json_last=True)
    yield "report", told(json.loads(line)) if (line := _report()) else None


def _report() -> str:
    command("report", "starter", "--text", "doc.md", "--out", "report.html", "--json")
    page = Path("report.html").read_text() if Path("report.html").exists() else ""
    found = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.S)
    return found.group(1) if found else ""


def describe() -> Iterator[tuple[str, Any]]:
    """Costs of all presets."""
    for size, variant in itertools.product(
        ("tiny", "small", "base", "large"), ("recommended", "paper", "local", "xl", "full")
    ):
        yield (
            f"describe {size} {variant}",
            command("describe", size, "--variant", variant, "--json", json_last=True),
        )


PARTS: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
    "models": models,
    "training": training,
    "starter": starter,
    "describe": describe,
}


def main() -> int:
    """Make or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["make", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=sorted(PARTS), action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = options.folder.resolve() / "goldens.json"
    os.environ["PYTHONPATH"] = str(Path(rmat.__file__).parents[1])
    found: dict[str, Any] = {}
    for part in options.only or PARTS:
        os.environ["RMAT_CACHE"] = tempfile.mkdtemp()
        os.chdir(tempfile.mkdtemp())
        found |= json.loads(json.dumps(dict(PARTS[part]())))
        print(f"{part}: {len(found)} values so far", file=sys.stderr)
    if options.action == "make":
        kept.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(kept.read_text()) if options.only and kept.exists() else {}
        kept.write_text(json.dumps({**before, **found}, indent=1, sort_keys=True))
        return 0
    wanted = json.loads(kept.read_text())
    odd = [name for name in found if found[name] != wanted.get(name)]
    odd += [name for name in wanted if name not in found and not options.only]
    for name in odd:
        print(
            f"{name}\n    was {json.dumps(wanted.get(name))[:300]}\n    is  {json.dumps(found.get(name))[:300]}"
        )
    print(f"{len(found)} values, {len(odd)} differ")
    return bool(odd)


if __name__ == "__main__":
    sys.exit(main())
