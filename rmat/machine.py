"""The machine: its devices, its user's folders, and what a result depends on besides the configuration."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
R = TypeVar("R")

_SPREAD = ContextVar("spread", default=False)
_NONE: Any = object()

PATIENCE = 10.0
"""Seconds that the first process has to say what is wrong before the others do."""

PACKAGES = ("rmat", "torch", "numpy", "safetensors", "tokenizers", "rich")


def pick_device(wanted: str) -> tuple[torch.device, str]:
    """The device for the name `wanted` (auto, cpu, cuda) and the reason for the choice.

    Raises ValueError if a GPU is asked for and torch sees none.
    """
    if wanted == "cpu":
        return torch.device("cpu"), "asked for"
    if torch.cuda.is_available():
        return torch.device("cuda"), "asked for" if wanted == "cuda" else "a GPU is there"
    if wanted == "cuda":
        raise ValueError("device is 'cuda' but torch sees no GPU: give cpu or auto")
    return torch.device("cpu"), "torch sees no GPU"


def started_processes() -> int | None:
    """How many processes torchrun started beside each other, this one among them; None if it did not."""
    started = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ["WORLD_SIZE"]) if started else None


def is_first_process() -> bool:
    """Whether this is the one process that speaks and writes files for all."""
    return started_processes() is None or os.environ["RANK"] == "0"


def let_first_speak() -> None:
    """Returns at once in the first process. In others, which are about to end with an error that it may have
    too, only after `PATIENCE`: torchrun ends the others as soon as one has failed, so that by then the first
    has not said what is wrong, or nobody would hear it."""
    if not is_first_process():
        time.sleep(PATIENCE)


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[None]:
    """Inside, the processes that torchrun started can talk to each other; on the CPU, and, unless the
    `device` wanted is that, between GPUs, of which each process takes its own."""
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if dist.is_initialized():
        yield
        return
    store, rank, count = _meeting()
    kind = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(kind, store=store, rank=rank, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


@functools.cache
def _first_store() -> tuple[Any, int, int]:
    """The store that torchrun names, kept for good, this process's rank and how many they are."""
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://"))
    return store, rank, count


def _meeting() -> tuple[Any, int, int]:
    """A store that the processes which torchrun started together have for themselves and for one group; rank
    and number of processes.

    torchrun keeps one store for all its attempts (torch 2.13), and who finds there what a process that died
    has left waits for that one in vain. So they agree on a name first: the first process proposes one, and
    others go by it once they are welcomed by a word that they made up themselves."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    store, rank, count = _first_store()
    own = uuid.uuid4().hex
    if rank == 0:
        name = own
        store.set("rmat", name)
        for other in range(1, count):
            store.set(f"{name}/{other}/welcome", store.get(f"{name}/{other}"))
        return PrefixStore(name, store), rank, count
    while True:
        name = store.get("rmat").decode()
        store.set(f"{name}/{rank}", own)
        welcome = f"{name}/{rank}/welcome"
        if store.check([welcome]) and store.get(welcome).decode() == own:
            return PrefixStore(name, store), rank, count
        time.sleep(0.02)


@contextlib.contextmanager
def spread() -> Iterator[None]:
    """Inside, measurements are shared out over the processes that torchrun started, if there are several: all
    of them call the same, and all get the result."""
    several = (started_processes() or 1) > 1 and dist.is_available()
    token = _SPREAD.set(several)
    try:
        with process_group() if several else contextlib.nullcontext():
            yield
    finally:
        _SPREAD.reset(token)


def team() -> int:
    """How many processes share a measurement: 1 outside of `spread`."""
    return dist.get_world_size() if _SPREAD.get() else 1


def shared(items: Iterable[T], work: Callable[[T], R]) -> Iterator[R]:
    """`work` of every item, in order. Inside `spread` each process does a part and gets what the others
    found; a ValueError of one is raised in all."""
    count = team()
    if count == 1:
        yield from map(work, items)
        return
    own: list[R] | ValueError
    try:
        own = [work(item) for number, item in enumerate(items) if number % count == dist.get_rank()]
    except ValueError as error:
        own = error
    parts: list[Any] = [None] * count
    dist.all_gather_object(parts, own)
    for part in parts:
        if isinstance(part, ValueError):
            raise part
    for row in zip_longest(*parts, fillvalue=_NONE):
        yield from (each for each in row if each is not _NONE)


def summed(x: torch.Tensor) -> torch.Tensor:
    """`x`, of the CPU; inside `spread` the sum of those of all processes, written into it."""
    if team() > 1:
        dist.all_reduce(x)
    return x


def cache_folder() -> Path:
    """$RMAT_CACHE, else the folder `rmat` where this system keeps a user's caches. Raises ValueError if none
    is known."""
    named = os.environ.get("RMAT_CACHE")
    return expand(named) if named else _users("RMAT_CACHE", "cache")


def sessions_folder() -> Path:
    """$RMAT_SESSIONS, else the folder `rmat/sessions` where this system keeps a user's data. Raises
    ValueError if none is known."""
    named = os.environ.get("RMAT_SESSIONS")
    return expand(named) if named else _users("RMAT_SESSIONS", "data") / "sessions"


def expand(path: str | Path) -> Path:
    """`path` with a leading `~` replaced by the home folder. Raises ValueError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{str(path)!r} begins with a home folder that is not known: give the whole path"
        ) from None


def _users(variable: str, kind: str) -> Path:
    import platformdirs

    find = platformdirs.user_cache_dir if kind == "cache" else platformdirs.user_data_dir
    try:
        folder = Path(find("rmat", appauthor=False))
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():
        raise ValueError(
            f"the user's {kind} folder is not known, because HOME is not set and the user has no account "
            "here: set HOME, "
            f"or {variable} to a folder"
        )
    return folder


def describe_environment(device: torch.device | str, seed: int | None = None) -> dict[str, Any]:
    """JSON-able description of what a run or a measurement depends on beside its settings: software, machine,
    seed."""
    device = torch.device(device)
    found = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "seed": seed,
        "device": str(device),
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
    }
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        found["device_bytes"] = torch.cuda.get_device_properties(0).total_memory
    return found


def git_commit() -> str | None:
    """The commit of the working tree that holds this package, with "-dirty" if files differ; None outside
    one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
