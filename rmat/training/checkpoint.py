"""Checkpoints: folders that are whole or not there, and that know when they were damaged.

    checkpoints/step-00000250/
        model.safetensors       weights and buffers by name
        optimizer.safetensors   "parameter:quantity"
        stream.safetensors      the memory each row carries into the next window (absent if none)
        rng.safetensors         torch's generators
        trainer.json            counters, data position, Python's and numpy's generators
        manifest.json           format version, SHA-256 and size of every file above

A folder is filled under another name, brought to the disk and renamed. Of the finished ones the newest are
kept, two or more, so that damage to one costs only the steps since the one before, and the best by
validation."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from rmat.storage import replacing_folder, to_json, write_tensors

FORMAT = 1
"""Version of the layout above; raised when a reader of the old one would misread the new one."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of one checkpoint."""

    step: int
    """Updates done when it was written."""
    tensors: dict[str, dict[str, Tensor]]
    """File name without ending -> name -> tensor, on the CPU."""
    values: dict[str, Any]
    """JSON-able values of trainer.json."""


class DamagedCheckpointError(Exception):
    """A checkpoint whose files are not the ones that were written."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` under `folder`; whatever happens meanwhile, no incomplete checkpoint is left under
    its name."""
    target = folder / f"step-{checkpoint.step:08d}"
    with replacing_folder(target) as partial:
        for name, tensors in checkpoint.tensors.items():
            write_tensors(partial / f"{name}.safetensors", tensors)
        (partial / "trainer.json").write_text(to_json(checkpoint.values) + "\n", encoding="utf-8")
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(partial.iterdir())
        }
        manifest = {"format": FORMAT, "step": checkpoint.step, "files": files}
        (partial / "manifest.json").write_text(to_json(manifest) + "\n", encoding="utf-8")
    return target


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the folder `path`.

    Raises DamagedCheckpointError if a file is missing, truncated or changed, and ValueError if it was written
    by a newer version of this package."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version, step, files = manifest["format"], int(manifest["step"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError("its manifest.json is missing or unreadable") from error
    if version != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {version}, this version of rmat reads {FORMAT}: update rmat"
        )
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpointError(f"its {name} is missing")
        if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise DamagedCheckpointError(f"its {name} is not what was written (size or checksum differ)")
    tensors = {Path(name).stem: _load(path / name) for name in files if name.endswith(".safetensors")}
    values = json.loads((path / "trainer.json").read_text(encoding="utf-8"))
    return Checkpoint(step=step, tensors=tensors, values=values)


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


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `model_tensors` gave."""
    unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    missing = set(model_tensors(model)) - set(tensors)
    if unexpected or missing:
        raise ValueError(f"the checkpoint is of another model: {sorted({*unexpected, *missing})} do not fit")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, copied: those of the file lie at addresses at which kernels may round
    differently, and a resumed run must go on exactly."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}
