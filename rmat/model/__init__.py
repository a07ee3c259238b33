"""The paper's model. Read in this order: config, notation, layout, rotary, streams, writers, memory, feedforward, block,
state, language_model, initialization, accounting."""

from rmat.model.config import ModelConfig
from rmat.model.language_model import LanguageModel
from rmat.model.state import StreamState

__all__ = ["LanguageModel", "ModelConfig", "StreamState"]
