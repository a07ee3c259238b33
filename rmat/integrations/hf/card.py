"""The model card of a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmat.accounting import account
from rmat.model import ModelConfig
from rmat.pretrained import SHORT_NAMES
from rmat.storage import model_folder, run_folder

CARD_FILE = "README.md"

_CARD = """\
---
{metadata}
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
{training}
{own}
"""

_TRAINING = """
## Training and evaluation

Trained by `rmat train` on {specs}: {steps:,} updates, {tokens:,} tokens.

| validation split | |
|---|---|
{scores}
"""

_OWN = """
## Intended use, limits

Not written yet: say here what the model is for, what it must not be used for, and what it was trained on."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of a model beside its configuration."""

    license: str | None = None
    """As the hub calls licences, such as apache-2.0."""
    base_model: str | None = None
    """Hub id of the model whose weights it has."""
    training: dict[str, Any] = field(default_factory=dict)
    """The result of its training run, and its `specs`."""
    own: str | None = None
    """What its folder's own card says."""


def origin(source: str | Path, license: str | None = None) -> Origin:
    """What the folder of a model or of a run, or a name such as `smollm2`, tells. Raises
    FileNotFoundError."""
    from huggingface_hub import ModelCard

    if str(source) in SHORT_NAMES:
        package = SHORT_NAMES[str(source)]
        return Origin(license=license or package.license, base_model=package.base_model)
    own, training = model_folder(source) / CARD_FILE, {}
    text = ModelCard(own.read_text("utf-8"), ignore_metadata_errors=True) if own.is_file() else None
    if (run := run_folder(source)) is not None and (run / "result.json").is_file():
        training = json.loads((run / "result.json").read_text("utf-8"))
        training["specs"] = json.loads((run / "config.json").read_text("utf-8"))["data"]["specs"]
    return Origin(
        license=license or (text.data.get("license") if text else None),
        training=training,
        own=text.text.strip() if text else None,
    )


def card(
    config: ModelConfig,
    title: str = "A recurrent memory-augmented language model",
    known: Origin | None = None,
) -> str:
    """The card of a model: what its configuration says and what is known else; its owner writes the rest."""
    from huggingface_hub import EvalResult, ModelCardData

    costs, known = account(config), known or Origin()
    names = {
        "full": "attention inside a segment",
        "chunked": "attention in chunks",
        "memory": "a gated memory",
    }
    result = known.training
    specs = ", ".join(result.get("specs", ()))
    scores = {
        name.removeprefix("valid_").replace("_", " "): value
        for name, value in result.items()
        if name.startswith("valid_") and value is not None
    }
    metadata = ModelCardData(
        license=known.license,
        base_model=known.base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["rmat", "long-context", "recurrent-memory"],
        model_name=title if scores else None,
        eval_results=[
            EvalResult("text-generation", specs, specs, name.replace(" ", "_"), value, dataset_split="valid")
            for name, value in scores.items()
        ]
        or None,
    )
    training = ""
    if result:
        rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items())
        named = ", ".join(f"`{spec}`" for spec in result["specs"])
        training = _TRAINING.format(
            specs=named, steps=result["steps"], tokens=result["tokens"], scores=rows or "| not evaluated | |"
        )
    return _CARD.format(
        metadata=metadata.to_yaml(),
        title=title,
        streams=", ".join(names[stream] for stream in config.streams),
        config=config,
        parameters=costs.parameters,
        state_bytes=costs.state_bytes,
        horizon=costs.horizon,
        training=training,
        own=f"\n{known.own}" if known.own else _OWN,
    )
