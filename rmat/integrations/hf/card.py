"""The model card of a folder."""

from __future__ import annotations

from rmat.accounting import account
from rmat.model import ModelConfig

CARD_FILE = "README.md"

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- rmat
- long-context
- recurrent-memory
---

# {title}

A language model that reads texts of any length in a state of one size: {streams}.
Method: *Recurrent Memory-Augmented Transformers with Chunked Attention for Long-Context Language Modeling*
(arXiv 2507.00453), package `rmat`.

```python
# pip install 'rmat[hf]'
import rmat.integrations.hf
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_HUB_ID")
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_HUB_ID")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```

Without the first import give `trust_remote_code=True`; the code of this folder is a line that imports `rmat`.

| | |
|---|---|
| parameters | {parameters:,} |
| layers, width, vocabulary | {config.n_layers}, {config.d_model}, {config.vocab_size:,} |
| state of one stream, float32 | {state_bytes:,} bytes, after any number of tokens |
| memory horizon | {horizon} |

## Training, intended use, limits

Not written yet: say here what the model was trained on, what it is for, and what it was measured to do.
"""


def card(config: ModelConfig, title: str = "A recurrent memory-augmented language model") -> str:
    """The card of a model, with what its configuration says; its owner writes the rest."""
    costs = account(config)
    names = {
        "full": "attention inside a segment",
        "chunked": "attention in chunks",
        "memory": "a gated memory",
    }
    return _CARD.format(
        title=title,
        streams=", ".join(names[stream] for stream in config.streams),
        config=config,
        parameters=costs.parameters,
        state_bytes=costs.state_bytes,
        horizon=costs.horizon,
    )
