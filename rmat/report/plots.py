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

from rmat.report.figures import (
    COLORS,
    GREY,
    drawing,
    label_ends,
    label_points,
    log_axis,
    looks,
    size_name,
    title_of,
)
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


def plot_state_tradeoff(points: Sequence[Row], path: str | Path, *, title: str | None = None) -> list[Path]:
    """Accuracy on MQAR against the size of the state.

    Args:
        points: `name`, `state_bytes` of one sequence in float32, `accuracy` (mean over the test sets, 0 to
            1), perhaps `low` and `high`; with `reference` true it is another system's published number.
            Points of one name are one line.
        path: without suffix for PNG and SVG.
        title: what stands above.
    """
    own: dict[str, list[Row]] = {}
    for point in points:
        if not point.get("reference"):
            own.setdefault(point["name"], []).append(point)
    peers = [point for point in points if point.get("reference")]
    if not points:
        raise ValueError("there is nothing to plot: give at least one point")
    with drawing(path) as (figure, files):
        axes = figure.add_subplot()
        labels = []
        for (name, rows), look in zip(own.items(), looks(len(own)), strict=True):
            rows = sorted(rows, key=lambda row: row["state_bytes"])
            _bars(axes, [row["state_bytes"] for row in rows], rows, **look)
            labels.append((rows[-1], name, look["color"]))
        x = [peer["state_bytes"] for peer in peers]
        axes.plot(
            x, [peer["accuracy"] for peer in peers], "D", color=GREY, fillstyle="none", label="published"
        )
        labels += [(peer, peer["name"], GREY) for peer in peers]
        sizes = sorted({point["state_bytes"] for point in points})
        ticks = [2**k for k in range(sizes[0].bit_length() - 2, sizes[-1].bit_length() + 2)]
        log_axis(axes, ticks, [size_name(tick, unit="B") for tick in ticks])
        axes.set_xlim(sizes[0] / 1.6, sizes[-1] * 1.6)
        axes.set(xlabel="state of one sequence (float32)", ylabel="accuracy (share of right answers)")
        axes.margins(y=0.12)
        title_of(axes, title)
        if peers and own:
            axes.legend(loc="lower right")
        places = [(point["state_bytes"], point["accuracy"]) for point in points]
        label_points(
            figure, axes, places, [(_index(points, point), text, color) for point, text, color in labels]
        )
    return files


def plot_curves(rows: Iterable[Row], path: str | Path, *, title: str | None = None) -> list[Path]:
    """The course of a training run: loss, accuracy if it is a task's, and the share written to memory by
    layer.

    Args:
        rows: those of `metrics.jsonl`, in order; an evaluation stands at the tokens of the training row
            before it.
        path: without suffix for PNG and SVG.
        title: what stands above.
    """
    panels = [(name, lines) for name, lines in _panels(list(rows)).items() if lines]
    if not panels:
        raise ValueError("there is nothing to plot: the rows hold no losses; give those of metrics.jsonl")
    with drawing(path, height=1.2 + 2.9 * len(panels)) as (figure, files):
        shared: Axes | None = None
        for number, (name, lines) in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, number + 1, sharex=shared)
            shared = shared or axes
            for label, (x, y, look) in lines.items():
                axes.plot(x, y, label=label, **look)
            _leave_out_the_start(axes, lines)
            if name.startswith("share"):
                axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            axes.set_ylabel(name)
            axes.label_outer()
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
            if number == 0:
                title_of(axes, title)
        axes.set_xlabel("training tokens (millions)")
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


def _index(points: Sequence[Row], point: Row) -> int:
    return next(number for number, other in enumerate(points) if other is point)


Lines = dict[str, tuple[list[float], list[float], dict[str, Any]]]


def _panels(rows: Sequence[Row]) -> dict[str, Lines]:
    """By the name of its y axis the lines of each panel, each with x in millions of tokens."""
    train, evals = [], []
    tokens = 0.0
    for row in rows:
        if row["kind"] == "train":
            tokens = row["tokens"] / 1e6
            train.append((tokens, row))
        elif row["kind"] == "eval":
            evals.append((tokens, row))

    def line(among: list[tuple[float, Row]], key: str, **look: Any) -> Iterator[Any]:
        found = [(x, row[key]) for x, row in among if row.get(key) is not None]
        if found:
            yield ([x for x, _ in found], [y for _, y in found], look)

    def lines(*wanted: tuple[str, Iterator[Any]]) -> Lines:
        return {label: drawn for label, found in wanted for drawn in found}

    heavy = {"marker": "o", "markersize": 4}
    text = lines(
        ("training", line(train, "bits_per_byte", color=GREY, linewidth=1)),
        ("held out, memory on", line(evals, "bits_per_byte", color=COLORS[0], **heavy)),
        (
            "held out, memory zeroed",
            line(evals, "bits_per_byte_memory_zeroed", color=COLORS[1], linestyle="--", **heavy),
        ),
    )
    task = lines(
        ("training", line(train, "loss", color=GREY, linewidth=1)),
        ("held out", line(evals, "nats", color=COLORS[0], **heavy)),
    )
    right = lines(
        ("tokens", line(evals, "accuracy", color=COLORS[0], **heavy)),
        ("whole rows", line(evals, "rows_right", color=COLORS[1], linestyle="--", **heavy)),
    )
    layers = max((len(row.get("openness", ())) for _, row in train), default=0)
    written: Lines = {}
    for layer, look in enumerate(looks(layers)):
        kept = [(x, row["openness"][layer]) for x, row in train if len(row.get("openness", ())) > layer]
        written[f"layer {layer + 1}"] = (
            [x for x, _ in kept],
            [y for _, y in kept],
            {**look, "marker": None, "linewidth": 1.2},
        )
    return {
        "bits per byte": text,
        "nats per scored token": {} if text else task,
        "share right": right,
        "share written to memory": written,
    }


def _leave_out_the_start(axes: Axes, lines: Lines) -> None:
    """Let the axis end above what is seen after the first twentieth: the fall before would flatten all the
    rest."""
    last = max(x[-1] for x, _, _ in lines.values())
    later = [b for x, y, _ in lines.values() for a, b in zip(x, y, strict=True) if a >= last / 20]
    every = [b for _, y, _ in lines.values() for b in y]
    if later and max(every) > max(later):
        axes.set_ylim(top=max(later) + 0.05 * (max(later) - min(every)))


def _flat(cell: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in cell.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            yield prefix + key, json.dumps(value)
        else:
            yield prefix + key, value
