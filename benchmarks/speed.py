"""Speed and memory of a model on one device: training, prefill and decoding rates, and the rate of a matrix
product.

Every timing here is one measurement in seconds; who compares systems interleaves them and takes medians.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmat.model import LanguageModel, StreamState


def autocast(device: str, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for `dtype` "bfloat16", nothing for "float32"."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.split(":")[0], dtype=getattr(torch, dtype))


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of `work`, with the device's queue empty before and after."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def matmul_rate(device: str, dtype: str = "float32", *, size: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of the best of `repeats` square matrix products: the peak that utilisation is measured against.

    `size` is the edge of the matrices; None takes 8192 on a GPU and 1024 elsewhere.
    """
    edge = size or (8192 if device.startswith("cuda") else 1024)
    random = torch.Generator(device).manual_seed(0)
    left, right = torch.randn(2, edge, edge, device=device, dtype=getattr(torch, dtype), generator=random)
    seconds(lambda: left @ right, device)
    return 2 * edge**3 / min(seconds(lambda: left @ right, device) for _ in range(repeats))


def trainer(
    model: LanguageModel, *, device: str, dtype: str = "float32", compile_model: bool = False
) -> Callable[[Tensor], Tensor]:
    """A function of tokens (B, T + 1) int64 that does one training step (forward, backward, AdamW) from an
    empty state.

    It returns the loss, detached, so that a caller may look at it after the timing.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for block in model.blocks if compile_model else ():
        block.compile()  # type: ignore[operator]

    def step(tokens_BT: Tensor) -> Tensor:
        with autocast(device, dtype):
            logits_BTV, _ = model(tokens_BT[:, :-1])
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def prefill(
    model: LanguageModel, tokens_BT: Tensor, *, device: str, dtype: str = "float32", piece: int | None = None
) -> StreamState:
    """Read tokens (B, T) from an empty state in pieces of at most `piece` and return the state after them.

    None for `piece` reads about 16,384 tokens at once over all rows, which bounds the memory for logits.
    """
    model.eval()
    piece = piece or max(1, 16384 // tokens_BT.shape[0])
    state = model.initial_state(batch_size=tokens_BT.shape[0])
    with torch.inference_mode(), autocast(device, dtype):
        for part in tokens_BT.split(piece, dim=1):
            _, state = model(part, state)
    return state


def decode(
    model: LanguageModel, state: StreamState, *, tokens: int, device: str, dtype: str = "float32"
) -> None:
    """Greedily generate `tokens` tokens one by one from `state`, for every row of it."""
    model.eval()
    token_B1 = torch.zeros(state.batch_size, 1, dtype=torch.int64, device=device)
    with torch.inference_mode(), autocast(device, dtype):
        for _ in range(tokens):
            logits_BTV, state = model(token_B1, state)
            token_B1 = logits_BTV[:, -1].argmax(-1, keepdim=True)


def peak_memory(work: Callable[[], object], device: str) -> int:
    """Bytes that `work` held at its peak above what was held before it.

    On a GPU by the allocator's own count. Elsewhere by the process's high-water mark, which earlier and
    larger work
    hides: call it once, in a fresh process.
    """
    _wait(device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        _wait(device)
        return torch.cuda.max_memory_allocated() - before
    before = _resident_bytes()
    work()
    return max(0, _peak_resident_bytes() - before)


def isolated(work: Callable[..., Any], *arguments: object, device: str, limit: float | None = None) -> Any:
    """`work(*arguments)`; without a GPU in a process of its own, whose high-water mark is that of this work
    alone.

    Raises what `work` raises, TimeoutError after `limit` seconds, BrokenProcessPool if the process dies; on a
    GPU there is no limit.
    """
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        return work(*arguments)
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(work, *arguments)
        try:
            return future.result(limit)
        except TimeoutError:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _status_bytes(key: str) -> int | None:
    """A line of /proc/self/status in bytes.

    `getrusage` will not do: its peak is kept across exec, so a child process starts with its parent's.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def _resident_bytes() -> int:
    return _status_bytes("VmRSS") or _maxrss_bytes()


def _peak_resident_bytes() -> int:
    return _status_bytes("VmHWM") or _maxrss_bytes()


def _maxrss_bytes() -> int:
    """Peak of this process where there is no /proc: bytes on macOS, kilobytes elsewhere."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
