"""Training that starts from a model there is, instead of from random numbers (fine-tuning)."""

import dataclasses
from typing import Any

from rmat.model import LanguageModel, ModelConfig
from rmat.training.config import RunConfig
from rmat.weights import TOKENIZER_FILE, load_model, model_folder, read_config


def with_model_of_start(config: RunConfig) -> RunConfig:
    """The same run with the architecture and the tokenizer of the model that it starts from.

    Of `config.model` only what acts in training may differ. Raises FileNotFoundError if there is no model, ValueError if
    it has no tokenizer or the settings ask for another architecture or tokenizer.
    """
    assert config.start is not None
    folder = model_folder(config.start)
    own = read_config(folder)
    settings: dict[str, Any] = {**own.to_dict(), **config.model}
    if settings["gate_bias"] != own.gate_bias:
        raise ValueError(
            "model.gate_bias is where gates of random weights start: leave it out, they go on as they are"
        )
    if ModelConfig.from_dict(settings).fingerprint() != own.fingerprint():
        was = own.to_dict()
        other = next(name for name, value in config.model.items() if _plain(value) != was[name])
        raise ValueError(
            f"model.{other} is {config.model[other]!r} but the model in {folder} has {was[other]!r}, and its weights are for "
            "that: leave it out"
        )
    if not (folder / TOKENIZER_FILE).is_file():
        raise ValueError(f"{folder} has no {TOKENIZER_FILE}: save the model with its tokenizer")
    tokenizer = str(folder / TOKENIZER_FILE)
    default = type(config.data)(specs=config.data.specs).tokenizer
    if config.data.tokenizer not in (default, tokenizer):
        raise ValueError(
            f"data.tokenizer is {config.data.tokenizer!r} but training starts from {folder}, which has its own: leave it out"
        )
    data = dataclasses.replace(config.data, tokenizer=tokenizer)
    return dataclasses.replace(config, model=settings, data=data)


def copy_weights(config: RunConfig, model: LanguageModel) -> None:
    """Give `model` the weights of the one that the run starts from; the dtype stays that of `model`."""
    assert config.start is not None
    model.load_state_dict(load_model(config.start).state_dict())


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
