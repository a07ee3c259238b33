"""The model folder, its only reader and writer: config.json, model.safetensors and, if there is one, tokenizer.json.

config.json holds `{"format": "rmat-model", "format_version": 1, "config": {fields of ModelConfig}}`. The weights carry
the fingerprint of that config in their metadata, so that files of two models are not mixed up. A matrix that
stands at two places of the model (tied embeddings) is stored once, under its first name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmat.model import LanguageModel, ModelConfig

FORMAT = "rmat-model"
FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.json"

ASSETS = Path(__file__).parent / "assets"
"""Models that come with the package, each in a folder of its name."""


class SavesItself(Protocol):
    """What is needed of a tokenizer here."""

    def save(self, path: Path, /) -> None: ...


def save_model(model: LanguageModel, folder: str | Path, tokenizer: SavesItself | None = None) -> None:
    """Write the model folder, making it if need be.

    Every file is complete on disk before the first takes its place; other files in the folder are left alone. Without
    `tokenizer` a tokenizer.json of an earlier save is removed, since nothing says that it fits.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder to save the model in")
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        name: folder / f".{name}.{os.getpid()}" for name in (WEIGHTS_FILE, TOKENIZER_FILE, CONFIG_FILE)
    }
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(model).items()}
        save_file(tensors, written[WEIGHTS_FILE], {"format": "pt", "fingerprint": model.config.fingerprint()})
        if tokenizer is not None:
            tokenizer.save(written[TOKENIZER_FILE])
        layout = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": model.config.to_dict()}
        written[CONFIG_FILE].write_text(json.dumps(layout, indent=2) + "\n", encoding="utf-8")
        for path in written.values():
            if path.exists():
                shutil.copymode(
                    written[CONFIG_FILE], path
                )  # safetensors makes files that only their owner can read
                flush(path)
        if tokenizer is None:
            (folder / TOKENIZER_FILE).unlink(missing_ok=True)
        for name, path in written.items():
            if path.exists():
                path.replace(folder / name)
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)
    flush(folder)


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> LanguageModel:
    """The model in `folder` (a model folder or the folder of a training run), in evaluation mode and in the dtype it
    was saved in.

    Raises FileNotFoundError if there is none, ValueError if a file is damaged, of another format version, or does not
    fit the configuration, naming the tensor.
    """
    folder = model_folder(folder)
    config = read_config(folder)
    with torch.random.fork_rng(devices=[]):  # loading must not change what a seeded program draws next
        model = LanguageModel(config)
    expected = _tensors(model)
    stored = _read_weights(folder / WEIGHTS_FILE, config)
    _refuse_difference(folder / WEIGHTS_FILE, expected, stored)
    floats = {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()}
    if len(floats) > 1:
        raise ValueError(
            f"{folder / WEIGHTS_FILE} mixes {sorted(map(str, floats))}: save the model in one dtype"
        )
    model = model.to(device=device, dtype=next(iter(floats)))
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(stored[name])
    return model.eval()


def model_folder(path: str | Path) -> Path:
    """`path` if it is a model folder, the exported model inside it if it is the folder of a training run, or the folder
    of the model of that name that comes with the package.

    Raises FileNotFoundError if it is none of them.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / WEIGHTS_FILE).is_file():
            return folder
    if not path.exists():
        shipped = sorted(folder.parent.name for folder in ASSETS.glob(f"*/{WEIGHTS_FILE}"))
        if str(path) in shipped:
            return ASSETS / path
        come = f"; models that come with rmat: {', '.join(shipped)}" if shipped else ""
        raise FileNotFoundError(f"no model at {path}: there is no such folder{come}")
    if (path / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"no model in {path} yet: the training run is not complete; go on with: rmat train --resume {path}"
        )
    raise FileNotFoundError(f"no model in {path}: neither it nor its folder 'model' has a {WEIGHTS_FILE}")


def run_folder(path: str | Path) -> Path | None:
    """`path` if it is the folder of a training run, whose configuration and data lie beside its model; else None. Raises
    as `model_folder` does."""
    path = Path(path)
    return path if model_folder(path) == path / "model" else None


def read_config(folder: Path) -> ModelConfig:
    """The configuration in a model folder; errors as in `load_model`."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no {CONFIG_FILE} in {folder}: the model folder is incomplete, save the model again"
        )
    try:
        layout: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): save the model again") from None
    if (
        not isinstance(layout, dict)
        or layout.get("format") != FORMAT
        or not isinstance(layout.get("config"), dict)
    ):
        raise ValueError(f"{path} does not describe a model of rmat: give a folder that model.save wrote")
    if layout.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {layout.get('format_version')}, this rmat reads {FORMAT_VERSION}: "
            "use the version of rmat that saved it"
        )
    try:
        return ModelConfig.from_dict(layout["config"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def weights_fingerprint(model: LanguageModel) -> str:
    """16 hexadecimal digits of SHA-256 over the configuration's fingerprint and all tensors: names, dtypes, shapes, bytes.

    Models with the same weights agree, on whatever device they are; any change of a weight gives other digits.
    """
    whole = f"{model.config.fingerprint()} {digest(_tensors(model))}"
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of `tensors`, in the order of their names; 64 hexadecimal digits."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # As bytes, because numpy has no bfloat16; flat, because a tensor without dimensions cannot be seen as bytes.
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each tensor once under the first of its names."""
    first: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first.values()}


def _read_weights(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}): save the model again"
        ) from None
    fingerprint = metadata.get("fingerprint", config.fingerprint())
    if fingerprint != config.fingerprint():
        raise ValueError(
            f"{path} belongs to another configuration (fingerprint {fingerprint}) than the {CONFIG_FILE} beside it "
            f"({config.fingerprint()}): save the model again"
        )
    return stored


def _refuse_difference(path: Path, expected: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    missing, extra = sorted(set(expected) - set(stored)), sorted(set(stored) - set(expected))
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} tensors of its configuration, the first is {missing[0]!r}"
        )
    if extra:
        raise ValueError(
            f"{path} has {len(extra)} tensors unknown to its configuration, the first is {extra[0]!r}"
        )
    for name, tensor in expected.items():
        if tensor.shape != stored[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(stored[name].shape)}, its configuration needs {tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() != stored[name].is_floating_point():
            raise ValueError(
                f"{path}: {name} is {stored[name].dtype}, its configuration needs {tensor.dtype}"
            )


def flush(path: Path) -> None:
    """Have the file or folder on the disk, not only in the operating system's memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
