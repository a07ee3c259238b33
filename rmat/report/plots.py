"""Plots and tables of results, beside their JSON: the same numbers, nothing computed anew.

Every plot writes PNG and SVG (`figures.drawing`), returns the files, and raises ValueError where there is
nothing to draw or matplotlib is missing. Bands and bars are the 95 % intervals of the numbers.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmat.report.figures import drawing, label_ends, log_axis, looks, size_name, title_of
from rmat.storage import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]


def plot_by_position(
    series: Mapping[str, Sequence[Row]], path: str | Path, *, title: str | None = None
) -> list[Path]:
    """Bits per byte against the position in the document.

    Args:
        series: by name the buckets of `PerplexityResult.to_dict()["by_position"]`: `from` and `to` in bytes,
            `bits_per_byte`, `low`, `high` (null for none).
        path: without suffix for PNG and SVG.
        title: what stands above.
    """
    named = _named(series)
    edges = sorted({edge for rows in named.values() for row in rows for edge in (row["from"], row["to"])})
    with drawing(path) as (figure, files):
        axes = figure.add_subplot()
        ends = []
        for (name, rows), look in zip(named.items(), looks(len(named)), strict=True):
            x = [(_positive(row["from"], edges) * row["to"]) ** 0.5 for row in rows]
            axes.plot(x, [row["bits_per_byte"] for row in rows], label=name, **look)
            low, high = _bounds(rows, "bits_per_byte")
            axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
            ends.append((x[-1], rows[-1]["bits_per_byte"]))
        log_axis(
            axes, [_positive(edge, edges) for edge in edges], [size_name(edge, unit="B") for edge in edges]
        )
        axes.set(xlabel="position in the document (bytes)", ylabel="bits per byte (lower is better)")
        axes.margins(y=0.08)
        title_of(axes, title)
        label_ends(axes, list(named), ends)
    return files


def plot_accuracy(
    series: Mapping[str, Sequence[Row]], path: str | Path, *, title: str | None = None
) -> list[Path]:
    """Accuracy against length; lines at the same place are drawn a little apart.

    Args:
        series: by name, for example of a depth or task, cells with `length` in tokens (0: nothing but the
            facts), `accuracy` from 0 to 1, `low`, `high`.
        path: without suffix for PNG and SVG.
        title: what stands above.
    """
    named = _named(series)
    lengths = sorted({row["length"] for rows in named.values() for row in rows})
    places = [_positive(length, lengths) for length in lengths]
    with drawing(path) as (figure, files):
        axes = figure.add_subplot()
        # So that bars of equal lengths stand side by side, over 4 % of the axis at most.
        step = max(places[-1] / places[0], 2.0) ** (0.04 / max(1, len(named) - 1))
        for number, ((name, rows), look) in enumerate(zip(named.items(), looks(len(named)), strict=True)):
            rows = sorted(rows, key=lambda row: row["length"])
            shift = step ** (number - (len(named) - 1) / 2)
            x = [_positive(row["length"], lengths) * shift for row in rows]
            _bars(axes, x, rows, label=name, **look)
        log_axis(axes, places, [size_name(length) for length in lengths])
        axes.set(xlabel="length (tokens)", ylabel="accuracy (share of right answers)", ylim=(-0.03, 1.03))
        title_of(axes, title)
        if len(named) > 1:
            figure.legend(loc="outside right upper")
        elif title is None:
            axes.set_title(next(iter(named)))
    return files


def write_table(cells: Iterable[Row], path: str | Path) -> Path:
    """A CSV file with one line a cell and a column for every key that any has.

    Keys of objects inside a cell are joined with a point; lists are written as JSON, null as nothing. Raises
    ValueError without cells.
    """
    flat = [dict(_flat(cell)) for cell in cells]
    if not flat:
        raise ValueError("there is nothing to write: give at least one cell")
    columns = list(dict.fromkeys(name for row in flat for name in row))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_file(path, table.getvalue())
    return path


def _named(series: Mapping[str, Sequence[Row]]) -> dict[str, Sequence[Row]]:
    named = {name: rows for name, rows in series.items() if rows}
    if not named:
        raise ValueError("there is nothing to plot: no series has a row")
    return named


def _positive(value: float, values: Sequence[float]) -> float:
    """The value, or for zero, which a logarithmic axis has no place for, half of the smallest other."""
    return value or min((other for other in values if other > 0), default=2) / 2


def _bounds(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Lower and upper bounds; the value itself where a row has none."""
    low = [row[key] if row.get("low") is None else row["low"] for row in rows]
    high = [row[key] if row.get("high") is None else row["high"] for row in rows]
    return low, high


def _bars(axes: Axes, x: Sequence[float], rows: Sequence[Row], **look: Any) -> None:
    """Accuracies joined by a line, with their intervals."""
    y = [row["accuracy"] for row in rows]
    low, high = _bounds(rows, "accuracy")
    below = [value - bound for value, bound in zip(y, low, strict=True)]
    above = [bound - value for value, bound in zip(y, high, strict=True)]
    axes.errorbar(x, y, [below, above], capsize=2.5, elinewidth=1, **look)


def _flat(cell: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in cell.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            yield prefix + key, json.dumps(value)
        else:
            yield prefix + key, value
