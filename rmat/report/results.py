"""The files of a measurement: result.json with all that it depends on, table.csv, and a picture where one
says more."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from rmat.machine import describe_environment
from rmat.model import LanguageModel
from rmat.report import plots
from rmat.storage import to_json, write_file


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
        "environment": describe_environment(str(model.embedding.weight.device)),
        **result,
    }
    path = folder / "result.json"
    write_file(path, to_json(record, indent=1) + "\n")
    lines = _lines(result)
    rows = (
        result["cells"]
        if "cells" in result
        else [{"memory": name, **row} for name, row in _modes(result).items()]
    )
    written = [path, plots.write_table([_plain(row) for row in rows], folder / "table.csv")]
    if "cells" in result:
        written += plots.plot_accuracy(lines, folder / "accuracy", title=measurement)
    elif any(lines.values()):
        written += plots.plot_by_position(lines, folder / "by_position", title=measurement)
    return written


def _modes(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores by use of the memory."""
    if "modes" in result:
        return {mode: result[mode] for mode in result["modes"]}
    return {result["memory"]: result}


def _lines(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What a picture shows: cells of each task and depth, or bits per byte by position for each use of the
    memory."""
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if "cells" in result:
        for cell in result["cells"]:
            lines[_line(cell)].append(cell)
        return dict(lines)
    return {f"memory {name}": list(score.get("by_position", [])) for name, score in _modes(result).items()}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A table's row without the lists in it."""
    return {name: value for name, value in row.items() if not isinstance(value, list)}


def _line(cell: dict[str, Any]) -> str:
    """The line of a picture that a cell belongs to."""
    depth = cell.get("depth")
    return str(cell["task"]) if depth is None else f"{cell['task']}, depth {depth:g}"
