"""The paper's model. Read after `rmat.reference`, in this order: config, block, streams, memory, state,
layout, language_model. `docs/reading-guide.md` tells more."""

from rmat.model.config import ModelConfig
from rmat.model.language_model import LanguageModel
from rmat.model.state import StreamState

__all__ = ["LanguageModel", "ModelConfig", "StreamState"]
