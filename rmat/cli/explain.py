"""A run's settings as YAML with the docstring of each field above it: can be edited and given back with
--config."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import yaml

from rmat.data.config import DataConfig
from rmat.model import ModelConfig
from rmat.training.config import RunConfig, TrainConfig

WIDTH = 100


def explain(config: RunConfig) -> str:
    """The settings of `config` as commented YAML."""
    values = config.to_dict()
    sections = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}
    lines: list[str] = []
    for name, text in field_docs(RunConfig).items():
        lines += _comment(text, 0)
        if name not in sections:
            lines.append(_entry(name, values[name], 0))
        elif not values[name]:
            lines.append(f"{name}: {{}}")
        else:
            lines.append(f"{name}:")
            docs = field_docs(sections[name])
            for key, value in values[name].items():
                lines += [*_comment(docs[key], 2), _entry(key, value, 2)]
    return "\n".join(lines)


def field_docs(cls: type) -> dict[str, str]:
    """Name -> docstring of every field of the dataclass `cls`, read from its source; "" where there is
    none."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for node, following in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            docs[node.target.id] = " ".join(str(text.value).split()) if isinstance(text, ast.Constant) else ""
    return docs


def _comment(text: str, indent: int) -> list[str]:
    return [" " * indent + "# " + line for line in textwrap.wrap(text, WIDTH - indent - 2)]


def _entry(name: str, value: Any, indent: int) -> str:
    # A bare scalar is dumped as a document, whose end mark is not wanted here.
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return " " * indent + f"{name}: " + dumped.strip().removesuffix("...").strip()
