"""Recurrent memory-augmented Transformers with chunked attention for long-context language modelling.

`import rmat` is light; what a name needs is imported when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
    "ModelConfig",
    "LanguageModel",
    "StreamState",
    "RunConfig",
    "DataConfig",
    "TrainConfig",
    "load",
    "load_tokenizer",
    "from_pretrained",
    "generate",
    "json_grammar",
    "complete",
    "Conversation",
    "SessionStore",
    "train",
    "read_parallel",
    "__version__",
]

_HOME = {
    "ModelConfig": "rmat.model",
    "LanguageModel": "rmat.model",
    "StreamState": "rmat.model",
    "RunConfig": "rmat.training.config",
    "TrainConfig": "rmat.training.config",
    "DataConfig": "rmat.data.config",
    "load": "rmat.api",
    "load_tokenizer": "rmat.data.tokenizer",
    "from_pretrained": "rmat.pretrained.model",
    "generate": "rmat.generation.stream",
    "complete": "rmat.generation.completion",
    "json_grammar": "rmat.generation.grammar",
    "Conversation": "rmat.sessions.conversation",
    "SessionStore": "rmat.sessions.store",
    "train": "rmat.api",
    "read_parallel": "rmat.context_parallel",
}

if TYPE_CHECKING:
    from rmat.api import load as load
    from rmat.api import train as train
    from rmat.context_parallel import read_parallel as read_parallel
    from rmat.data.config import DataConfig as DataConfig
    from rmat.data.tokenizer import load_tokenizer as load_tokenizer
    from rmat.generation.completion import complete as complete
    from rmat.generation.grammar import json_grammar as json_grammar
    from rmat.generation.stream import generate as generate
    from rmat.model import LanguageModel as LanguageModel
    from rmat.model import ModelConfig as ModelConfig
    from rmat.model import StreamState as StreamState
    from rmat.pretrained.model import from_pretrained as from_pretrained
    from rmat.sessions.conversation import Conversation as Conversation
    from rmat.sessions.store import SessionStore as SessionStore
    from rmat.training.config import RunConfig as RunConfig
    from rmat.training.config import TrainConfig as TrainConfig


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rmat' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
