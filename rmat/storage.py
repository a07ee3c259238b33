"""What is written to disk: every file whole or not at all, and nobody but a regular file replaced; the model
folder and the stream state, whose only reader and writer this is.

A model folder holds config.json (`{"format": "rmat-model", "format_version": 1, "config": {fields of
ModelConfig}}`), model.safetensors and, if there is one, tokenizer.json. The weights carry the fingerprint of
the configuration in their metadata, so that files of two models are not mixed up. A matrix that stands at two
places of the model (tied embeddings) is stored once, under its first name.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmat.model import LanguageModel, ModelConfig, StreamState

FORMAT, FORMAT_VERSION = "rmat-model", 1
CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.json"

STATE_FORMAT, STATE_VERSION = "rmat-state", "1"
LOGITS_KEY = "rmat.next_logits"
"""Metadata entry of a state file: base64 of V little-endian float32."""

MAPPED_BYTES = 2**20
"""Tensors of at least so many bytes are read from a model folder when they are used."""

ASSETS = Path(__file__).parent / "assets"
"""Models that come with the package, each in a folder of its name."""

_NAMES: WeakKeyDictionary[LanguageModel, str] = WeakKeyDictionary()


class NotWritten(OSError):
    """Something could not be written; what was there before is as it was. The message is one sentence,
    `errno` the operating system's number."""


class SavesItself(Protocol):
    """What is needed of a tokenizer here."""

    def save(self, path: Path, /) -> None: ...


def writable(path: str | Path) -> Path:
    """The file that writing to `path` makes or replaces: `path`, or the file that a link there points to.

    Raises FileNotFoundError where its folder is missing, PermissionError where it may not be written, and
    IsADirectoryError or FileExistsError where `path` is something that no file may take the place of: a
    folder, a device, a pipe, a socket.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise FileExistsError(f"{path} is no regular file, and is not replaced by one: give another name")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {target.parent}; make it first")
    for place in (target.parent, target):
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(f"cannot write {path}: {place} is read-only for this user; give another")
    return target


@contextlib.contextmanager
def replacing(*paths: str | Path, mode: int = 0o666) -> Iterator[tuple[Path, ...]]:
    """Files to be written by the caller, beside `paths`, whose places they take when all are on the disk.

    Where the caller raises, or the disk is full, they are removed and what was there stays. A file that is
    replaced keeps its permission bits; a new one gets `mode` but for the process's mask. Raises as
    `writable`, and `NotWritten`.
    """
    targets = [writable(path) for path in paths]
    written: list[Path] = []
    try:
        with _sentence(paths[0]):
            for target in targets:
                # Created exclusively, so that no two writers ever share it; in a folder of its own, since
                # safetensors
                # leaves a file of a name that nobody knows beside it when it is killed.
                folder = _partial(target)
                folder.mkdir(mode=0o700)
                written.append(folder / target.name)
                os.close(os.open(written[-1], os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
            modes = [
                (target if target.exists() else partial).stat().st_mode & 0o777
                for target, partial in zip(targets, written, strict=True)
            ]
            yield tuple(written)
            for partial, bits in zip(written, modes, strict=True):
                partial.chmod(bits)  # safetensors makes a file of its own that only its owner can read
                flush(partial)
            for target, partial in zip(targets, written, strict=True):
                os.replace(partial, target)
            for folder in {target.parent for target in targets}:
                with contextlib.suppress(PermissionError):  # of a folder that may be written but not listed
                    flush(folder)
    finally:
        for partial in written:
            shutil.rmtree(partial.parent, ignore_errors=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder to be filled by the caller, beside `path`, whose place it takes when all in it is on
    the disk.

    Otherwise as `replacing`; a link is refused, because a whole folder elsewhere would be replaced.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise FileExistsError(f"{path} is no folder of its own but a link or a file: move it away")
    partial, old = _partial(path), _partial(path)
    try:
        with _sentence(path):
            partial.mkdir(parents=True)
            yield partial
            for file in (*partial.iterdir(), partial):
                flush(file)
            if path.exists():
                os.rename(path, old)
            try:
                os.rename(partial, path)
            except BaseException:
                if old.exists():
                    os.rename(old, path)
                raise
            flush(path.parent)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def remove_partial(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`. The caller knows that nobody writes there
    now."""
    for left in folder.glob(".*.partial"):
        remove(left)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; neither need be there."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_file(path: str | Path, content: str | bytes, mode: int = 0o666) -> None:
    """Put `content`, text as UTF-8, at `path`; see `replacing`."""
    with replacing(path, mode=mode) as (partial,):
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any) -> None:
    """`write_file` of indented JSON."""
    write_file(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON whose text can be written as UTF-8, also where a name in it is none."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if text.isascii() or not _SURROGATE.search(text) else json.dumps(value, indent=indent)


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None, mode: int = 0o666
) -> None:
    """Put a safetensors file at `path`; see `replacing`. Equal tensors and metadata give equal bytes."""
    with replacing(path, mode=mode) as (partial,):
        _fill_with_tensors(partial, tensors, metadata)


def flush(path: Path) -> None:
    """Have the file or folder on the disk, not only in the operating system's memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_model(model: LanguageModel, folder: str | Path, tokenizer: SavesItself | None = None) -> None:
    """Write the model folder, making it if need be.

    Every file is complete on disk before the first takes its place; other files in the folder are left alone.
    Without `tokenizer` a tokenizer.json of an earlier save is removed, since nothing says that it fits.
    Raises as `replacing`.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder to save the model in")
    folder.mkdir(parents=True, exist_ok=True)
    layout = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": model.config.to_dict()}
    names = [WEIGHTS_FILE, CONFIG_FILE] + ([] if tokenizer is None else [TOKENIZER_FILE])
    with replacing(*(folder / name for name in names)) as (weights, config, *vocabulary):
        _fill_with_tensors(
            weights, _tensors(model), {"format": "pt", "fingerprint": model.config.fingerprint()}
        )
        config.write_text(json.dumps(layout, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(vocabulary[0])
    if tokenizer is None:
        (folder / TOKENIZER_FILE).unlink(missing_ok=True)


# What a program in inference mode loads can be trained later.
@torch.inference_mode(False)
def load_model(folder: str | Path, device: torch.device | str = "cpu") -> LanguageModel:
    """The model in `folder` (a model folder or the folder of a training run), in evaluation mode and in the
    dtype it was saved in.

    Raises FileNotFoundError if there is none, ValueError if a file is damaged, of another format version, or
    does not fit the configuration, naming the tensor.
    """
    folder = model_folder(folder)
    config = read_config(folder)
    with torch.device("cpu"):  # whatever the process's default device is
        stored = _read_weights(folder / WEIGHTS_FILE, config)
    _refuse_difference(folder / WEIGHTS_FILE, _tensors(_unfilled(config)), stored)
    floats = {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()}
    if len(floats) > 1:
        raise ValueError(
            f"{folder / WEIGHTS_FILE} mixes {sorted(map(str, floats))}: save the model in one dtype"
        )
    model = assigned(config, stored).to(device)
    path = folder.resolve()
    _NAMES[model] = path.parent.name if path.name == "model" else path.name
    return model.eval()


def assigned(config: ModelConfig, tensors: Mapping[str, Tensor]) -> LanguageModel:
    """The model whose parameters are `tensors`, in their type and without a copy but of small ones: large
    ones stay where they are, such as in a file that is memory-mapped."""
    model = _unfilled(config)
    # The addresses in a file are odd, and kernels may round differently there; where it costs nothing it is
    # avoided.
    held = {name: x if x.nbytes >= MAPPED_BYTES else x.clone() for name, x in tensors.items()}
    model.load_state_dict(held, assign=True)
    return model.eval()


def _unfilled(config: ModelConfig) -> LanguageModel:
    """A model whose tensors have shapes and no memory; what a seeded program draws next stays the same."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return LanguageModel(config)


def model_name(model: LanguageModel) -> str | None:
    """Name of the folder that the model was loaded from, of the run's where it is a run's; None if it was not
    loaded."""
    return _NAMES.get(model)


def model_folder(path: str | Path) -> Path:
    """`path` if it is a model folder, the exported model inside it if it is the folder of a training run, or
    the folder of the model of that name that comes with the package.

    Raises FileNotFoundError if it is none of them.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / WEIGHTS_FILE).is_file():
            return folder
    if not path.exists():
        shipped = shipped_models()
        if str(path) in shipped:
            return ASSETS / path
        come = f"; models that come with rmat: {', '.join(shipped)}" if shipped else ""
        raise FileNotFoundError(f"no model at {path}: there is no such folder{come}")
    if (path / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"no model in {path} yet: the training run is not complete; go on with: rmat train --resume "
            f"{path}"
        )
    raise FileNotFoundError(f"no model in {path}: neither it nor its folder 'model' has a {WEIGHTS_FILE}")


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{WEIGHTS_FILE}"))


def run_folder(path: str | Path) -> Path | None:
    """`path` if it is the folder of a training run, whose configuration and data lie beside its model; else
    None. Raises as `model_folder` does."""
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
    if isinstance(layout, dict) and layout.get("model_type") == "rmat":
        raise ValueError(f"{folder} is a folder for transformers: rmat convert makes one of rmat of it")
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
    """16 hexadecimal digits of SHA-256 over the configuration's fingerprint and all tensors: names, dtypes,
    shapes, bytes.

    Models with the same weights agree, on whatever device they are; any change of a weight gives other
    digits.
    """
    whole = f"{model.config.fingerprint()} {digest(_tensors(model))}"
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of `tensors`, in the order of their names; 64 hexadecimal
    digits."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # As bytes, because numpy has no bfloat16; flat, because a tensor without dimensions cannot be seen as
        # bytes.
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def save_state(path: str | Path, state: StreamState, next_logits: Tensor | None = None) -> None:
    """Write a place in a text: `state` and, so that the text goes on without a prompt, the logits (V,) of the
    token that comes next. Raises as `replacing`."""
    description = {"format": STATE_FORMAT, "version": STATE_VERSION, "fingerprint": state.fingerprint}
    metadata = {"rmat": json.dumps(description)}
    if next_logits is not None:
        raw = next_logits.detach().float().cpu().numpy().astype("<f4").tobytes()
        metadata[LOGITS_KEY] = base64.b64encode(raw).decode()
    write_tensors(path, state.tensors(), metadata)


@torch.inference_mode(False)
def load_state(path: str | Path, config: ModelConfig) -> tuple[StreamState, Tensor | None]:
    """The state in a file of `save_state`, on the CPU, and the logits (V,) float32 or None.

    Raises FileNotFoundError if there is no file, ValueError if it is damaged, of another format version, or
    of a model with another configuration than `config`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no state file at {path}")
    metadata, tensors = read_tensors(path)
    try:
        description = json.loads(metadata.get("rmat", "{}"))
        raw = base64.b64decode(metadata.get(LOGITS_KEY, ""), validate=True)
        logits = torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(description, dict) or description.get("format") != STATE_FORMAT:
        raise ValueError(f"{path} holds no stream state: give a file that StreamState.save wrote")
    if description.get("version") != STATE_VERSION:
        raise ValueError(
            f"{path} has state format {description.get('version')}, this version reads {STATE_VERSION}"
        )
    if description.get("fingerprint") != config.fingerprint():
        raise ValueError(
            f"{path} belongs to a model with another configuration (fingerprint "
            f"{description.get('fingerprint')}, "
            f"this model has {config.fingerprint()}): load it with the model that made it"
        )
    state = StreamState.from_tensors(config, tensors)
    if LOGITS_KEY not in metadata:
        return state, None
    if logits.shape != (config.vocab_size,):
        raise ValueError(
            f"{path} is damaged: it has logits for {len(logits)} tokens, the model has {config.vocab_size}"
        )
    return state, logits


def _tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each tensor once under the first of its names."""
    first: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first.values()}


def _read_weights(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    metadata, stored = read_tensors(path)
    fingerprint = metadata.get("fingerprint", config.fingerprint())
    if fingerprint != config.fingerprint():
        raise ValueError(
            f"{path} belongs to another configuration (fingerprint {fingerprint}) than the {CONFIG_FILE} "
            "beside it "
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
                f"{path}: {name} has shape {tuple(stored[name].shape)}, its configuration needs "
                f"{tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() != stored[name].is_floating_point():
            raise ValueError(
                f"{path}: {name} is {stored[name].dtype}, its configuration needs {tensor.dtype}"
            )


_SURROGATE = re.compile("[\ud800-\udfff]")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def _partial(target: Path) -> Path:
    """A name beside `target` that nothing has."""
    name = target.name if len(os.fsencode(target.name)) < 200 else target.name[:40]
    return target.with_name(f".{name}.{secrets.token_hex(6)}.partial")


@contextlib.contextmanager
def _sentence(path: str | Path) -> Iterator[None]:
    """Errors of writing as one sentence; libraries in Rust tell theirs in words that end in "(os error
    28)"."""
    try:
        yield
    except NotWritten:
        raise
    except Exception as error:
        told = _OS_ERROR.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number is None:
            raise
        failure = NotWritten(
            f"{path} could not be written ({os.strerror(number).lower()}): what was there stays as it was"
        )
        failure.errno = number
        raise failure from error


def _fill_with_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> None:
    held: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        # The format refuses tensors that share memory, as views of one state may.
        held[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in places else tensor
        places.add(tensor.untyped_storage().data_ptr())
    save_file(held, path, metadata)
    if metadata and len(metadata) > 1:
        # The library writes these entries in another order each time; sorted, equal content gives equal
        # bytes.
        with path.open("r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
            if len(text) != size:
                raise ValueError(f"the metadata of {path} cannot be sorted in its place")
            file.seek(8)
            file.write(text)


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file."""
    try:
        with safe_open(str(path), framework="pt") as file:
            names = file.keys()  # a list: the file is no mapping
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): save it again") from None
