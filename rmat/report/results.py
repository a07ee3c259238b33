"""The files of a measurement: result.json with all that it depends on, table.csv, and a picture where one says more."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from rmat.evaluation.speed import environment
from rmat.model import LanguageModel
from rmat.report import plots


def write_result(
    folder: Path, measurement: str, result: dict[str, Any], model: LanguageModel, options: dict[str, Any]
) -> list[Path]:
    """Write a measurement into `folder`, which is made; the files written.

    Args:
        measurement: its name, for example "passkey".
        result: what was measured, JSON-able: `cells`, or scores by mode.
        model: what was measured.
        options: how it was asked for; what JSON cannot hold is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = (str, int, float, bool, list, tuple, type(None))
    record = {
        "measurement": measurement,
        "options": {name: value for name, value in options.items() if isinstance(value, plain)},
        "config": model.config.to_dict(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "environment": environment(str(model.embedding.weight.device)),
        **result,
    }
    path = folder / "result.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = (
        result["cells"]
        if "cells" in result
        else [{"memory": mode, **result[mode]} for mode in result["modes"]]
    )
    written = [path, plots.write_table(rows, folder / "table.csv")]
    if "cells" in result:
        series: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for cell in result["cells"]:
            series[_line(cell)].append(cell)
        written += plots.plot_accuracy(dict(series), folder / "accuracy", title=measurement)
    return written


def _line(cell: dict[str, Any]) -> str:
    """The line of a picture that a cell belongs to."""
    depth = cell.get("depth")
    return str(cell["task"]) if depth is None else f"{cell['task']}, depth {depth:g}"
