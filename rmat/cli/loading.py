"""Loading a model for a command that measures or writes text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmat.data.tokenizer import Tokenizer
    from rmat.model import LanguageModel


DEVICES = ("auto", "cpu", "cuda")
"""Where a command may run; auto takes a GPU if there is one."""


def load_with_tokenizer(path: str, device: str) -> tuple[LanguageModel, Tokenizer]:
    """Model and tokenizer in `path`; ValueError if the device is not there or the model was saved without tokenizer."""
    from rmat.api import load
    from rmat.machine import pick_device

    model, tokenizer = load(path, pick_device(device)[0])
    if tokenizer is None:
        raise ValueError(
            f"the model in {path} was saved without a tokenizer: save it with model.save(folder, tokenizer=...)"
        )
    return model, tokenizer


def with_banks(model: LanguageModel, args: argparse.Namespace) -> LanguageModel:
    """The model with the banks that `--slots` and `--eviction` ask for; ValueError if it cannot have them."""
    if args.slots is None and args.eviction is None:
        return model
    return model.with_slots(args.slots, args.eviction)
