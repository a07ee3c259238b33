"""Model folders of ours to folders of transformers, and back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import GenerationConfig

from rmat.data.tokenizer import load_tokenizer
from rmat.integrations.hf.card import CARD_FILE, card, origin
from rmat.integrations.hf.configuration import RmatConfig
from rmat.integrations.hf.modeling import RmatForCausalLM
from rmat.integrations.hf.tokenizer import end_ids, from_transformers, to_transformers
from rmat.model import LanguageModel
from rmat.pretrained.folder import cached
from rmat.storage import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, load_model, model_folder, replacing_folder


def convert(source: str | Path, out: str | Path, license: str | None = None) -> str:
    """Write the folder `out` from `source`: for transformers where that is a model of ours, with the licence
    in its card, and a model folder of ours where it is one of those.

    Returns: which of the two was written, in words. Raises ValueError for a folder of another architecture,
    FileNotFoundError where there is no model, FileExistsError where `out` is something already.
    """
    source, out = Path(source), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already: give another folder, or remove it first")
    kind = model_type(source)
    if kind is None:
        write_for_transformers(source, out, license)
        return "a folder for transformers"
    if license is not None:
        raise ValueError("a licence is for the card of a folder for transformers: leave it out")
    if kind != RmatConfig.model_type:
        raise ValueError(
            f"{source} is a {kind!r} of transformers, no rmat model: bring it with rmat import, and write it "
            "again with rmat export"
        )
    read_from_transformers(source, out)
    return "a model folder of rmat"


def model_type(folder: Path) -> str | None:
    """What a folder of transformers says that it holds; None for any other folder."""
    path = folder / CONFIG_FILE
    try:
        value = json.loads(path.read_text("utf-8")).get("model_type") if path.is_file() else None
    except (ValueError, AttributeError):
        return None
    return None if value is None else str(value)


def write_for_transformers(source: str | Path, out: Path, license: str | None = None) -> None:
    """The folder that `AutoModelForCausalLM.from_pretrained` loads: weights, configurations, tokenizer with
    chat template, card, and the line of code that brings this package."""
    folder = model_folder(cached(source))
    wrapped, known = RmatForCausalLM.wrap(load_model(folder)), origin(source, license)
    ids: dict[str, int | list[int]] = {}
    with replacing_folder(out) as partial:
        if (folder / TOKENIZER_FILE).is_file():
            ours = load_tokenizer(folder)
            theirs = to_transformers(ours)
            ids = {"eos_token_id": end_ids(ours), "pad_token_id": theirs.pad_token_id}
            if theirs.bos_token_id is not None:
                ids["bos_token_id"] = theirs.bos_token_id
            theirs.save_pretrained(partial)
        for name, value in ids.items():
            setattr(wrapped.config, name, value)
        wrapped.generation_config = GenerationConfig(**ids)
        (partial / CARD_FILE).write_text(card(wrapped.model.config, out.name, known), encoding="utf-8")
        wrapped.save_pretrained(partial)


def read_from_transformers(source: Path, out: Path) -> None:
    """The model folder of ours."""
    if not any(source.glob("*.safetensors")):
        raise FileNotFoundError(f"no {WEIGHTS_FILE} in {source}: save the model with save_pretrained")
    model, info = RmatForCausalLM.from_pretrained(source, dtype="auto", output_loading_info=True)
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise ValueError(
            f"the weights in {source} do not fit its config.json: {wrong[0]!r} is missing or odd"
        )
    core = model.model
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        plain = LanguageModel(core.config)
    plain.load_state_dict(core.state_dict(), assign=True)
    plain.save(out, tokenizer=from_transformers(source))
