"""Training that starts from a model there is, instead of from random numbers (fine-tuning)."""

import dataclasses

from rmat.data.config import DataConfig
from rmat.model import LanguageModel, ModelConfig
from rmat.model.config import TRAINING_ONLY
from rmat.storage import TOKENIZER_FILE, load_model, model_folder, read_config
from rmat.training.config import RunConfig


def with_model_of_start(config: RunConfig) -> RunConfig:
    """The same run with the architecture and the tokenizer of the model that it starts from.

    Of `config.model` only what acts in training and the banks (`LanguageModel.with_slots`) may differ. Raises FileNotFoundError if there is no model, ValueError if
    it has no tokenizer or the settings ask for another architecture or tokenizer.
    """
    assert config.start is not None
    folder = model_folder(config.start)
    own = read_config(folder)
    if config.model.get("gate_bias", own.gate_bias) != own.gate_bias:
        raise ValueError(
            "model.gate_bias is where gates of random weights start: leave it out, they go on as they are"
        )
    free = {*TRAINING_ONLY, "eviction"}
    if own.memory_position != "rank":  # no weights belong to single slots
        free.add("n_slots")
    for name, value in config.model.items():
        if name not in free and value != getattr(own, name):
            raise ValueError(
                f"model.{name} is {value!r} but the model in {folder} has {getattr(own, name)!r}, and its weights are for "
                "that: leave it out"
            )
    model = ModelConfig.from_dict({**own.to_dict(), **config.model}).to_dict()
    if not (folder / TOKENIZER_FILE).is_file():
        raise ValueError(f"{folder} has no {TOKENIZER_FILE}: save the model with its tokenizer")
    tokenizer = str(folder / TOKENIZER_FILE)
    if config.data.tokenizer not in (DataConfig.tokenizer, tokenizer):
        raise ValueError(
            f"data.tokenizer is {config.data.tokenizer!r} but training starts from {folder}, which has its own: leave it out"
        )
    data = dataclasses.replace(config.data, tokenizer=tokenizer)
    return dataclasses.replace(config, model=model, data=data)


def copy_weights(start: str, model: LanguageModel) -> None:
    """Give `model` the weights of the model `start`; device and dtype stay those of `model`."""
    model.load_state_dict(load_model(start).state_dict())
