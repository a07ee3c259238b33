"""How figures look and how they are written: one style, files that do not change unless their content
does."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmat.storage import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that colour-blind readers tell apart (Okabe and Ito, 2008), without the yellow, which is faint on
white."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"

SUFFIXES = (".png", ".svg")

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "figure.dpi": 100,
    "font.size": 11,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "savefig.dpi": 200,
    # Text stays text and ids depend on content alone: files can be searched, and compared byte for byte.
    "svg.fonttype": "none",
    "svg.hashsalt": "rmat",
}


def require_matplotlib() -> None:
    """Raise ValueError with the remedy if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "drawing plots needs the matplotlib package, which is not installed; "
            "install it with: pip install 'rmat[plots]'"
        ) from None


@contextmanager
def drawing(path: str | Path, height: float = 4.6) -> Iterator[tuple[Figure, list[Path]]]:
    """A figure 8 inches wide and `height` high, and the files that it is written to at the end.

    A path that ends in .png or .svg is one file; one without suffix becomes both. Folders are made. The same
    content gives the same bytes. Raises ValueError for another suffix, or if matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix not in ("", *SUFFIXES):
        raise ValueError(f"{path} ends in {path.suffix!r}: plots are .png or .svg, or both without a suffix")
    files = [path] if path.suffix else [path.with_suffix(suffix) for suffix in SUFFIXES]
    require_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(8, height), layout="constrained")
        yield figure, files
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            unsaid = ("Date", "Creator") if file.suffix == ".svg" else ("Software",)
            picture = io.BytesIO()
            figure.savefig(picture, format=file.suffix[1:], metadata=dict.fromkeys(unsaid))
            write_file(file, picture.getvalue())


def looks(count: int) -> Iterator[dict[str, Any]]:
    """Colour, marker and dash of each of `count` lines; no two are alike up to 28."""
    dashes = ("-", "--", ":", "-.")
    every = (
        {"color": color, "marker": marker, "linestyle": dash}
        for dash in dashes
        for color, marker in zip(COLORS, MARKERS, strict=True)
    )
    return islice(cycle(every), count)


def title_of(axes: Axes, title: str | None) -> None:
    """Put a title over axes, if there is one."""
    if title is not None:
        axes.set_title(title, pad=10)


def size_name(count: int, *, unit: str = "") -> str:
    """A size in short: 256, 4K, 1M for powers of two, 6,400 and 50K for others; with unit="B" 256 B, 4 KiB,
    50 kB."""
    binary = count % 1024 == 0
    if not binary and count < 10_000:
        return f"{count:,} {unit}".rstrip()
    step = 1024 if binary else 1000
    power = next(power for power in (3, 2, 1, 0) if count >= step**power or not power)
    letter = ("", "K" if binary or not unit else "k", "M", "G")[power]
    number = f"{count / step**power:.3g}"
    return f"{number} {letter}{'i' if binary and letter else ''}{unit}" if unit else number + letter


def log_axis(axes: Axes, places: Iterable[float], names: Iterable[str]) -> None:
    """A logarithmic x axis with ticks at the given places, thinned out where their names would touch."""
    ticks = sorted(dict(zip(places, names, strict=True)).items())
    least = math.log2(ticks[-1][0] / ticks[0][0]) / 11
    kept = ticks[-1:]
    for tick in reversed(ticks[:-1]):
        if math.log2(kept[-1][0] / tick[0]) >= least:
            kept.append(tick)
    axes.set_xscale("log", base=2)
    axes.set_xticks([place for place, _ in kept], [name for _, name in kept])
    axes.tick_params(axis="x", which="minor", bottom=False)


def label_ends(axes: Axes, names: Sequence[str], ends: Sequence[tuple[float, float]]) -> None:
    """Write each line's name to the right of its end (x, y), moved apart where they would touch.

    Call it when the limits of the y axis are final and the lines have been drawn in the order of `names`.
    """
    low, high = axes.get_ylim()
    wanted = [(y - low) / (high - low) for _, y in ends]
    places = spread(wanted, gap=0.055)
    for name, end, place, line in zip(names, ends, places, axes.get_lines(), strict=False):
        axes.annotate(
            name,
            end,
            (1.04, place),
            textcoords="axes fraction",
            va="center",
            color=line.get_color(),
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.8, "alpha": 0.6},
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the order of the wanted ones, with the least squared distance to
    them."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    blocks: list[list[float]] = []  # places that touch: sum of what they want, number
    for rank, index in enumerate(order):
        blocks.append([wanted[index] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    starts = [total / count for total, count in blocks for _ in range(int(count))]
    places = dict(zip(order, (start + rank * gap for rank, start in enumerate(starts)), strict=True))
    return [places[index] for index in range(len(wanted))]
