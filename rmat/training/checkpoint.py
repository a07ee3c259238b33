"""Checkpoints: folders that are whole or not there, and that know when they were damaged.

    checkpoints/step-00000250/
        shard-0000R-model-*.safetensors  what process R wrote (PyTorch's distributed checkpoint):
            weights and buffers by name; "parameter:quantity" of the optimisers; the memory that rows carry
            into the next window ("position", "layers.0.slot_key", ...), absent if none; torch's generators,
            "torch" and "cuda", of process R > 0 "torch.R" and "cuda.R"
        trainer.json   counters, data position, Python's and numpy's generators
        manifest.json  format version, SHA-256 and size of every file above

Whatever number of processes wrote them, any number reads them: each takes its share of every tensor. A folder
is filled under another name, brought to the disk and renamed, while training goes on. Of the finished ones
the newest are kept, two or more, so that damage to one costs only the steps since the one before, and the
best by validation."""

import contextlib
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from rmat.storage import replacing_folder, to_json
from rmat.training.distributed import Processes

FORMAT = 2
"""Version of the layout above; raised when a reader of the old one would misread the new one."""

READ = (1, FORMAT)
"""Versions that are read. In 1 the tensors lay, under the same names, in a file of each kind."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that was found whole."""

    path: Path
    step: int
    """Updates done when it was written."""
    values: dict[str, Any] = field(repr=False)
    """JSON-able values of trainer.json."""
    tensors: Mapping[str, TensorStorageMetadata] = field(repr=False)
    """Size and type of every tensor in it."""

    def load(self, into: Mapping[str, Tensor]) -> None:
        """Fill tensors of this process, or its shares of tensors, with those of the same names."""
        with _without_warnings():
            # A copy of the dict: its entries are replaced by what they hold.
            load(dict(into), storage_reader=HuggingFaceStorageReader(str(self.path)), no_dist=True)

    def read(self, names: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
        """Whole tensors on the CPU, those whose names are wanted."""
        made = {
            name: torch.empty(known.size, dtype=known.properties.dtype, device="cpu")
            for name, known in self.tensors.items()
            if names(name)
        }
        self.load(made)
        return made


class DamagedCheckpointError(Exception):
    """A checkpoint whose files are not the ones that were written."""


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    values: dict[str, Any],
    processes: Processes,
    group: Any = None,
) -> None:
    """Write a checkpoint under `folder`; whatever happens meanwhile, no incomplete checkpoint is left under
    its name. All processes call it at once, each with its shares; `group` is what they talk through."""
    named: list[Any] = [None]
    if not processes.first:
        dist.broadcast_object_list(named, src=0, group=group)
        _write_tensors(Path(named[0]), tensors, group)
        return
    with replacing_folder(folder / f"step-{step:08d}") as partial:
        if group is not None:
            named = [str(partial)]
            dist.broadcast_object_list(named, src=0, group=group)
        _write_tensors(partial, tensors, group)
        (partial / "trainer.json").write_text(to_json(values) + "\n", encoding="utf-8")
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(partial.iterdir())
        }
        manifest = {"format": FORMAT, "step": step, "files": files}
        (partial / "manifest.json").write_text(to_json(manifest) + "\n", encoding="utf-8")


class Saver:
    """Writes checkpoints behind the back of training, one after the other, and drops those no longer kept."""

    def __init__(self, folder: Path, keep_last: int, processes: Processes) -> None:
        self.folder, self.keep_last, self.processes = folder, keep_last, processes
        # Its own group: on that of training the messages of both would mix.
        self._group = None if processes.mesh is None else dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, step: int, tensors: Mapping[str, Tensor], values: dict[str, Any], best_step: int | None
    ) -> None:
        """Begin to write what the tensors hold now. Raises what went wrong with the one before."""
        self.wait()
        # The share of a process that is a view with an offset cannot be copied as it is (torch 2.13).
        copies = BlockingAsyncStager().stage(
            {
                name: x.clone() if isinstance(x, DTensor) and x.to_local().storage_offset() else x
                for name, x in tensors.items()
            }
        )
        self._pending = self._thread.submit(self._write, step, copies, values, best_step)

    def wait(self) -> None:
        """Until all is on the disk. Raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(
        self, step: int, tensors: Mapping[str, Tensor], values: dict[str, Any], best_step: int | None
    ) -> None:
        write_checkpoint(self.folder, step, tensors, values, self.processes, self._group)
        if self.processes.first:
            prune_checkpoints(self.folder, self.keep_last, best_step)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the folder `path`.

    Raises DamagedCheckpointError if a file is missing, truncated or changed, and ValueError if it was written
    by a newer version of this package."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version, step, files = manifest["format"], int(manifest["step"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError("its manifest.json is missing or unreadable") from error
    if version not in READ:
        raise ValueError(
            f"{path} has checkpoint format {version}, this version of rmat reads {FORMAT}: update rmat"
        )
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpointError(f"its {name} is missing")
        if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise DamagedCheckpointError(f"its {name} is not what was written (size or checksum differ)")
    tensors: Any = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    values = json.loads((path / "trainer.json").read_text(encoding="utf-8"))
    return Checkpoint(path, step, values, tensors)


def newest_sound_checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint under `folder` that is whole, or None.

    Each damaged one is told to `say` and renamed from step-* to damaged-step-*, so that it is not counted
    among the checkpoints to keep."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path)
        except DamagedCheckpointError as error:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            say(
                f"checkpoint {path.name} is damaged: {error}. It is kept as {aside.name}; using the one "
                "before."
            )
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints under `folder`, oldest first."""
    return sorted(folder.glob("step-*"))


def prune_checkpoints(folder: Path, keep_last: int, best_step: int | None) -> None:
    """Delete all checkpoints but the `keep_last` newest and the one of `best_step`."""
    for path in list_checkpoints(folder)[:-keep_last]:
        if path.name != f"step-{best_step or 0:08d}":
            shutil.rmtree(path)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What `model.load_state_dict` needs, each shared tensor once, under its first name."""
    unique = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    return {name: value for name, value in model.state_dict().items() if name in unique}


def is_state(name: str) -> bool:
    """Whether a tensor of a checkpoint is of the memory that rows carry."""
    return name == "position" or name.startswith("layers.")


def is_weight(name: str) -> bool:
    """Whether a tensor of a checkpoint is of the model: not of an optimiser, a generator or the memory."""
    return ":" not in name and name.partition(".")[0] not in ("torch", "cuda") and not is_state(name)


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor], group: Any) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    whole = {name: x if isinstance(x, DTensor) else x.contiguous() for name, x in tensors.items()}
    try:
        with _without_warnings():
            save(whole, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:  # what went wrong, in whichever process
        raise next(iter(error.failures.values()))[0] from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """DCP warns where one process works alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
