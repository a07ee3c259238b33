"""Folders of imported models: written, exported to Hugging Face's form, and kept in the cache under a short
name."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import rmat
from rmat.data.tokenizer import Tokenizer, load_tokenizer
from rmat.machine import cache_folder
from rmat.model import LanguageModel, ModelConfig
from rmat.model.config import EVICTION_FIELDS
from rmat.pretrained import SHORT_NAMES
from rmat.pretrained.architecture import source_config, source_names
from rmat.pretrained.model import GATES_FILE, from_pretrained
from rmat.storage import ASSETS, WEIGHTS_FILE, load_model, model_folder, replacing_folder, write_tensors


def import_model(source: str | Path, out: str | Path, **options: Any) -> tuple[LanguageModel, Tokenizer]:
    """Write the model folder `out` from a pretrained model; arguments and errors as in `from_pretrained`.

    Raises also FileExistsError where `out` is something already.
    """
    _require_free(Path(out))
    model, tokenizer = from_pretrained(source, **options)
    model.save(out, tokenizer=tokenizer)
    return model, tokenizer


def export_model(folder: str | Path, out: str | Path) -> None:
    """Write a folder of Hugging Face from an imported model's: full attention, as plain transformers load it;
    what the memory has of its own in a file beside it, which an import of `out` finds again.

    Raises ValueError for a model that is no Llama-type model, FileExistsError where `out` is something
    already.
    """
    out = Path(out)
    _require_free(out)
    folder = model_folder(folder)
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    chat, config = tokenizer.chat, model.config
    if chat is None:
        raise ValueError(
            f"{folder} was not imported from a pretrained model: only what was can be exported; rmat convert "
            "writes any model for transformers"
        )
    described = source_config(config, chat.context)
    named = model.state_dict()
    theirs = dict(source_names(iter(named)))
    of_source = {name: named[ours] for ours, name in theirs.items() if name is not None}
    of_memory = {ours: named[ours] for ours, name in theirs.items() if name is None}
    tokens = {**chat.tokens, "chat_template": chat.template, "model_max_length": chat.context}
    tokens |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    ids: dict[str, Any] = {"eos_token_id": [tokenizer.token_id(end) for end in chat.ends]}
    if "bos_token" in chat.tokens:
        ids["bos_token_id"] = tokenizer.token_id(chat.tokens["bos_token"])
    described |= {**ids, "dtype": str(model.embedding.weight.dtype).removeprefix("torch.")}
    with replacing_folder(out) as partial:
        write_tensors(partial / WEIGHTS_FILE, of_source, {"format": "pt"})
        if of_memory:
            write_tensors(partial / GATES_FILE, of_memory, {"rmat": json.dumps(gates_state(config))})
        (partial / "tokenizer.json").write_text(tokenizer.backend_json(), "utf-8")
        for name, value in (
            ("config.json", described),
            ("tokenizer_config.json", tokens),
            ("generation_config.json", ids),
        ):
            (partial / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def gates_state(config: ModelConfig) -> dict[str, Any]:
    """What stands beside gates in their file: the state that they are for."""
    names = ("n_slots", "n_sinks", *EVICTION_FIELDS)
    return {"window": 2 * config.chunk_len, **{name: getattr(config, name) for name in names}}


def cached(name: str | Path) -> str | Path:
    """The folder of the pretrained model with that short name, which is imported if it is not there yet;
    `name` itself if it is none, or a folder that is there. Raises OSError where it cannot be brought."""
    if str(name) not in SHORT_NAMES or Path(name).exists():
        return name
    # Other gates make another model, also between two releases.
    gates = hashlib.sha256((ASSETS / SHORT_NAMES[str(name)].gates).read_bytes()).hexdigest()[:8]
    folder = cache_folder() / "pretrained" / f"{rmat.__version__}-{gates}" / str(name)
    if not (folder / WEIGHTS_FILE).is_file():
        print(f"rmat: importing {name} into {folder} (once)", file=sys.stderr)
        import_model(name, folder)
    return folder


def _require_free(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already: give another folder, or remove it first")
