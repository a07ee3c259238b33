"""Our models as models of Hugging Face's transformers: `import rmat.integrations.hf`, then
`AutoModelForCausalLM.from_pretrained(folder)`."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from rmat.integrations.hf.cache import RmatCache
from rmat.integrations.hf.configuration import RmatConfig
from rmat.integrations.hf.modeling import RmatForCausalLM, RmatModel

__all__ = ["RmatCache", "RmatConfig", "RmatForCausalLM", "RmatModel"]

AutoConfig.register(RmatConfig.model_type, RmatConfig, exist_ok=True)
AutoModel.register(RmatConfig, RmatModel, exist_ok=True)
AutoModelForCausalLM.register(RmatConfig, RmatForCausalLM, exist_ok=True)
