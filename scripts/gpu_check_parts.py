"""The parts of `gpu_check.py`: each takes (device, quick) and returns a JSON-able dict with `ok` and a
`summary`."""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from gpu_check_parity import parity_bfloat16, parity_float32, relative_error

import rmat
from benchmarks import processes, speed
from rmat.accounting import account
from rmat.machine import describe_environment
from rmat.model import LanguageModel, ModelConfig, StreamState


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the check."""

    run: Callable[[str, bool], dict[str, Any]]
    """Does the work; what it raises is a failure."""
    limit: float
    """Seconds after which it counts as hanging."""


def has_cuda() -> bool:
    """Whether torch can use a GPU here."""
    return torch.cuda.is_available()


def environment(device: str, quick: bool) -> dict[str, Any]:
    """Versions, device, and the rates of a matrix product in float32 and bfloat16."""
    found = describe_environment(device)
    size = 256 if quick else None
    rates = {dtype: speed.matmul_rate(device, dtype, size=size) for dtype in ("float32", "bfloat16")}
    summary = f"{found['device_name']}, torch {found['versions']['torch']}, bfloat16 {rates['bfloat16'] / 1e12:.1f} TFLOP/s"
    return {"ok": True, "summary": summary, "matmul_flops_per_second": rates, **found}


def attention(device: str, quick: bool) -> dict[str, Any]:
    """Which fused attention kernels forward and backward take, by dtype and variant; FlexAttention for
    information."""
    taken: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        for variant in ("recommended", "paper", "full"):
            config = ModelConfig.preset("tiny", variant=variant, segment_len=32 if quick else 256)
            model = LanguageModel(config).to(device)
            tokens_BT = torch.randint(config.vocab_size, (2, 65 if quick else 1025), device=device)
            step = speed.trainer(model, device=device, dtype=dtype)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                loss = float(step(tokens_BT))
            if not torch.isfinite(torch.tensor(loss)):
                raise RuntimeError(f"the loss of {variant} in {dtype} is {loss}")
            names = {event.key for event in profile.key_averages()}
            marks = ("_scaled_dot_product_", "_efficient_attention", "_flash_attention", "_cudnn_attention")
            kernels = sorted(
                name for name in names if name.startswith("aten::_") and any(m in name for m in marks)
            )
            taken[f"{variant}, {dtype}"] = kernels or ["no fused attention operator"]
    flex = _flex_attention(device)
    shown = sorted({name for names in taken.values() for name in names if "backward" not in name})
    return {"ok": True, "summary": ", ".join(shown), "kernels": taken, "flex_attention": flex}


def _flex_attention(device: str) -> str:
    """What FlexAttention does here; the model does not depend on it."""
    if device == "cpu":
        return "not tried: it has no backward on a CPU"
    try:
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = (torch.randn(1, 2, 256, 64, device=device, requires_grad=True) for _ in range(3))
        torch.compile(flex_attention)(q, k, v).sum().backward()
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "works, forward and backward"


def compiled(device: str, quick: bool) -> dict[str, Any]:
    """A training step and a decoding step with compiled blocks, as train.compile has them, give the numbers of
    the plain ones."""
    # Toy scale checks that the model can be traced; generating code would take a minute and a C++ compiler.
    backend = "aot_eager" if quick else "inductor"
    sizes: dict[str, Any] = {"n_layers": 1, "d_model": 32, "segment_len": 16} if quick else {}
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig.preset("tiny", variant="recommended", **sizes)).to(device)
    length = 4 * model.config.segment_len
    tokens_BT = torch.randint(model.config.vocab_size, (2, length), device=device)
    start = time.monotonic()
    fast = copy.deepcopy(model)
    for block in fast.blocks:
        block.compile(backend=backend)  # type: ignore[operator]
    losses, norms = [], []
    for forward in (model, fast):
        logits_BTV, _ = forward(tokens_BT)
        loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(
            float(torch.nn.utils.get_total_norm([p.grad for p in forward.parameters() if p.grad is not None]))
        )
    spent = time.monotonic() - start
    with torch.no_grad():
        _, state = model(tokens_BT)
        plain, _ = model(tokens_BT[:, :1], state)
        decoded, _ = fast(tokens_BT[:, :1], state)
    differences = {
        "loss": abs(losses[1] - losses[0]) / abs(losses[0]),
        "gradient_norm": abs(norms[1] - norms[0]) / abs(norms[0]),
        "decoded_logits": relative_error(decoded.double(), plain.double()),
    }
    ok = max(differences.values()) < 1e-2
    summary = (
        f"{backend}: largest relative difference {max(differences.values()):.1e}, {spent:.0f} s to compile"
    )
    return {
        "ok": ok,
        "summary": summary,
        "backend": backend,
        "relative_difference": differences,
        "compile_seconds": spent,
    }


def training(device: str, quick: bool) -> dict[str, Any]:
    """A minute of training on the standard library's sources: the loss falls and held-out text is
    predicted.

    At toy scale: a few steps on one source file of this package.
    """
    # Here, because what fails to import should fail this part only.
    from rmat.api import evaluate
    from rmat.data.config import DataConfig
    from rmat.training.config import RunConfig, TrainConfig
    from rmat.training.loop import train
    from rmat.training.progress import Silent

    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "cache")
        if quick:
            config = RunConfig(
                model={"n_layers": 2, "d_model": 32, "segment_len": 16},
                data=DataConfig(
                    specs=(str(Path(rmat.__file__).parent / "model" / "memory.py"),),
                    tokenizer="bytes",
                    cache_dir=cache,
                ),
                train=TrainConfig(
                    device="cpu",
                    steps=30,
                    batch_size=4,
                    window=64,
                    eval_every=0,
                    eval_bytes=4000,
                    sample_every=0,
                ),
                out=str(Path(folder) / "run"),
            )
        else:
            config = RunConfig(
                preset="small",
                data=DataConfig(tokenizer="bpe:4096", cache_dir=cache),
                train=TrainConfig(
                    device="cuda",
                    dtype="bfloat16",
                    max_minutes=1,
                    steps=1_000_000,
                    batch_size=16,
                    window=2048,
                    lr=1e-3,
                    eval_every=0,
                    checkpoint_every=1_000_000,
                    sample_every=0,
                ),
                out=str(Path(folder) / "run"),
            )
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run = train(config, evaluate=evaluate, reporter=Silent())
        result = json.loads((run / "result.json").read_text())
        lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    result |= {"first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"], "dtype": config.train.dtype}
    result["skipped_updates"] = sum(json.loads(line)["kind"] == "skipped" for line in lines)
    result["peak_bytes"] = torch.cuda.max_memory_allocated() if device == "cuda" else None
    del result["run"]
    summary = (
        f"{result['steps']} steps, {result['tokens_per_second']:,.0f} tokens/s, loss {result['first_loss']:.2f} -> "
        f"{result['last_loss']:.2f}, held out {result['valid_bits_per_byte']:.3f} bits per byte "
        f"({result['valid_bits_per_byte_memory_zeroed']:.3f} with the memory zeroed)"
    )
    ok = result["last_loss"] < result["first_loss"] and result["skipped_updates"] == 0
    return {"ok": ok, "summary": summary, **result}


def training_speed(device: str, quick: bool) -> dict[str, Any]:
    """Tokens per second, utilisation and peak memory of training steps, with the memory and without."""
    size, length, rows = ("tiny", 256, 2) if quick else ("small", 4096, 8)
    dtype = "float32" if quick else "bfloat16"
    peak_rate = speed.matmul_rate(device, dtype, size=256 if quick else None)
    found: dict[str, Any] = {}
    for variant in ("recommended", "local"):
        torch.manual_seed(0)
        config = ModelConfig.preset(size, variant=variant)
        model = LanguageModel(config).to(device)
        step = speed.trainer(model, device=device, dtype=dtype)
        tokens_BT = torch.randint(config.vocab_size, (rows, length + 1), device=device)
        peak = speed.peak_memory(lambda step=step, tokens=tokens_BT: [step(tokens) for _ in range(2)], device)
        times = sorted(
            speed.seconds(lambda step=step, tokens=tokens_BT: step(tokens), device) for _ in range(5)
        )
        rate = rows * length / times[2]
        found[variant] = {
            "parameters": account(config).parameters,
            "tokens_per_second": rate,
            "utilisation": rate * account(config).flops_per_token_train / peak_rate,
            "peak_bytes": peak,
        }
    ratio = found["recommended"]["tokens_per_second"] / found["local"]["tokens_per_second"]
    summary = (
        f"{size}, {rows} x {length}, {dtype}: {found['recommended']['tokens_per_second']:,.0f} tokens/s, "
        f"{ratio:.2f} of local, {found['recommended']['utilisation']:.0%} used"
    )
    return {
        "ok": True,
        "summary": summary,
        "size": size,
        "dtype": dtype,
        "rows": rows,
        "length": length,
        **found,
    }


def decoding(device: str, quick: bool) -> dict[str, Any]:
    """Tokens per second one by one after a short and a long context, for one row and many; the state keeps
    its size."""
    size, short, long, many, tokens = ("tiny", 64, 512, 2, 4) if quick else ("small", 1024, 65536, 64, 64)
    dtype = "float32" if quick else "bfloat16"
    config = ModelConfig.preset(size, variant="recommended")
    model = LanguageModel(config).to(device)
    cells, sizes = [], set()
    for rows, context in ((1, short), (1, long), (many, short)):
        tokens_BT = torch.randint(config.vocab_size, (rows, context), device=device)
        state = speed.prefill(model, tokens_BT, device=device, dtype=dtype)
        sizes.add(state.nbytes // rows)

        def work(count: int, state: StreamState = state) -> None:
            speed.decode(model, state, tokens=count, device=device, dtype=dtype)

        work(2)
        took = speed.seconds(lambda work=work: work(tokens), device)
        cells.append({"rows": rows, "context": context, "tokens_per_second": rows * tokens / took})
    rates = [cell["tokens_per_second"] for cell in cells]
    summary = (
        f"{size}, {dtype}: {rates[0]:,.0f} tokens/s after {short} tokens, {rates[1]:,.0f} after {long}, "
        f"{rates[2]:,.0f} for {many} rows, {max(sizes):,} bytes of state a row"
    )
    result = {"size": size, "dtype": dtype, "cells": cells, "state_bytes": sorted(sizes)}
    return {"ok": len(sizes) == 1, "summary": summary, **result}


def sharded(device: str, quick: bool) -> dict[str, Any]:
    """`rmat train` in one process of torchrun with FSDP2, compiled: tokens per second and share of the peak."""
    size, steps = ("tiny", 9) if quick else ("base", 24)
    dtype = "float32" if quick else "bfloat16"
    settings: dict[str, str | int] = {
        "data.tokenizer": "bytes",
        "model.vocab_size": 1024 if quick else 50304,
        "train.parallel": "fsdp",
        "train.compile": "false" if quick else "true",
        "train.device": device,
        "train.dtype": dtype,
        "train.steps": steps,
        "train.batch_size": 2 if quick else 16,
        "train.window": 256 if quick else 4096,
        "train.log_every": 2,
    }
    text = str(Path(rmat.__file__).parent / "model") if quick else "python-stdlib"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
        command += ["-m", "rmat", "train", "--preset", size, "--data", text, *processes.QUIET]
        command += [f"data.cache_dir={folder}/cache", *(f"{name}={x}" for name, x in settings.items())]
        rates = processes.rates_of(command, run, torch.get_num_threads())  # without the updates that compile
        config = rmat.load(run)[0].config
    rate, peak_rate = median(rates), speed.matmul_rate(device, dtype, size=256 if quick else None)
    used = rate * account(config).flops_per_token_train / peak_rate
    summary = f"{size}, {settings['train.batch_size']} x {settings['train.window']}, {dtype}: {rate:,.0f} tokens/s, {used:.0%} used"
    return {
        "ok": True,
        "summary": summary,
        "settings": settings,
        "model": config.to_dict(),
        "parameters": account(config).parameters,
        "tokens_per_second": rate,
        "tokens_per_second_range": [min(rates), max(rates)],
        "utilisation": used,
    }


PARTS: dict[str, Part] = {
    "environment": Part(run=environment, limit=60),
    "parity_float32": Part(run=parity_float32, limit=90),
    "parity_bfloat16": Part(run=parity_bfloat16, limit=60),
    "attention": Part(run=attention, limit=90),
    "decoding": Part(run=decoding, limit=60),
    "training_speed": Part(run=training_speed, limit=60),
    "training": Part(run=training, limit=200),
    "compile": Part(run=compiled, limit=180),
    "sharded": Part(run=sharded, limit=240),
}
