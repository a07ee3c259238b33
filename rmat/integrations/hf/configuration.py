"""`ModelConfig` as a configuration of transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from rmat.model import ModelConfig
from rmat.storage import write_file

_FIELDS = frozenset(field.name for field in dataclasses.fields(ModelConfig))
_VOCABULARY = 512
"""Tokens of a configuration that says nothing about them."""

CODE_FILE = "modeling_rmat.py"
CODE = """\
# The model's code is the package rmat: pip install 'rmat[hf]'
from rmat.integrations.hf import RmatConfig, RmatForCausalLM, RmatModel
"""
"""Remote code of a folder: it brings transformers to the installed package, or to say that it is missing."""


class RmatConfig(PreTrainedConfig):
    """Every field of `ModelConfig`, in the dict `rmat`, and what transformers wants beside it.

    The fields can be given, read and set by their names or by those that transformers has for them
    (hidden_size, num_hidden_layers, ...). Those that are not given are those of the preset `tiny`.
    Raises ValueError as `ModelConfig` does.
    """

    model_type = "rmat"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012 (as the base class has it)
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "d_ff",
        "tie_word_embeddings": "tie_embeddings",
    }

    rmat: dict[str, Any] | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        names = self.attribute_map
        given = {names.get(key, key): kwargs.pop(key) for key in [*kwargs] if names.get(key, key) in _FIELDS}
        if self.rmat:
            chosen = ModelConfig.from_dict({**self.rmat, **given})
        else:
            chosen = ModelConfig.preset("tiny", **{"vocab_size": _VOCABULARY, **given})
        self.rmat = chosen.to_dict()
        self.auto_map = {
            auto: f"{CODE_FILE.removesuffix('.py')}.{name}"
            for auto, name in (
                ("AutoConfig", "RmatConfig"),
                ("AutoModel", "RmatModel"),
                ("AutoModelForCausalLM", "RmatForCausalLM"),
            )
        }
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)

    def __getattr__(self, name: str) -> Any:  # asked for what is found nowhere else
        field = type(self).attribute_map.get(name, name)
        held = self.__dict__.get("rmat")
        if held is not None and field in held:
            return held[field]
        raise AttributeError(f"RmatConfig has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        field = type(self).attribute_map.get(name, name)
        held = self.__dict__.get("rmat")
        if held is not None and field in _FIELDS:
            self.__dict__["rmat"] = {**held, field: value}
        else:
            super().__setattr__(name, value)

    def to_model_config(self) -> ModelConfig:
        """The configuration of the model itself."""
        assert self.rmat is not None
        return ModelConfig.from_dict(self.rmat)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """config.json, and the line of code that loads the folder where nobody has imported this package."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_file(Path(save_directory) / CODE_FILE, CODE)
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: object = "AutoConfig") -> None:
        """Nothing: the code of a folder is `CODE`, not a copy of this file."""
