"""Plots: both kinds of file, the words on them, the same bytes every time, and what is refused."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rmat.report import figures
from rmat.report.plots import (
    plot_accuracy,
    plot_by_position,
    write_table,
)

pytest.importorskip("matplotlib", reason="plots need the extra `plots`")

POSITIONS = {
    name: [
        {"from": start, "to": stop, "bits_per_byte": level + 1 / stop, "low": level, "high": level + 0.5}
        for start, stop in ((0, 256), (256, 512), (512, 1024))
    ]
    for name, level in (("memory on", 1.0), ("memory zeroed", 1.2))
}
CELLS = {
    name: [
        {"length": length, "accuracy": share, "low": share - 0.1, "high": None}
        for length in (16384, 0, 1000000)
    ]
    for name, share in (("start", 0.9), ("end", 1.0))
}
Draw = Callable[[Path], list[Path]]
PLOTS: dict[str, tuple[Draw, list[str]]] = {
    "position": (
        lambda path: plot_by_position(POSITIONS, path, title="Books"),
        ["Books", "memory on", "memory zeroed", "bits per byte", "(bytes)", "0 B", "256 B", "1 KiB"],
    ),
    "accuracy": (
        lambda path: plot_accuracy(CELLS, path, title="Pass key"),
        ["Pass key", "start", "end", "length (tokens)", "accuracy", "16K", "1M"],
    ),
}


def texts(path: Path) -> str:
    """All text of an SVG file, which must be well-formed."""
    return "\n".join(
        "".join(node.itertext()) for node in ElementTree.parse(path).iter() if "text" in node.tag
    )


@pytest.mark.parametrize("name", PLOTS)
def test_png_and_svg_with_all_labels(tmp_path: Path, name: str) -> None:
    draw, labels = PLOTS[name]
    png, svg = draw(tmp_path / "new folder" / name)
    assert png.read_bytes().startswith(b"\x89PNG")
    found = texts(svg)
    for label in labels:
        assert label in found, label


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    """Also in another process, where hashes are seeded anew."""
    code = (
        "import sys; from pathlib import Path; from tests.report.test_plots import PLOTS\n"
        "for name in PLOTS: PLOTS[name][0](Path(sys.argv[1]) / name)"
    )
    there = tmp_path / "there"
    subprocess.run([sys.executable, "-c", code, str(there)], check=True, cwd=Path(__file__).parents[2])
    for name, (draw, _) in PLOTS.items():
        first = [file.read_bytes() for file in draw(tmp_path / "here" / name)]
        assert first == [(there / f"{name}{suffix}").read_bytes() for suffix in (".png", ".svg")]
        assert b"<dc:date>" not in first[1]


def test_settings_of_the_user_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    (before,) = plot_by_position(POSITIONS, tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        (after,) = plot_by_position(POSITIONS, tmp_path / "b.svg")
        assert matplotlib.rcParams["font.size"] == 30
    assert before.read_bytes() == after.read_bytes()


def test_a_suffix_picks_one_file(tmp_path: Path) -> None:
    assert plot_accuracy(CELLS, tmp_path / "a.svg") == [tmp_path / "a.svg"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
    with pytest.raises(ValueError, match=r"ends in '\.pdf': plots are \.png or \.svg"):
        plot_accuracy(CELLS, tmp_path / "a.pdf")


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot_by_position({"on": []}, path),
        lambda path: plot_accuracy({}, path),
    ],
)
def test_nothing_to_plot(tmp_path: Path, draw: Draw) -> None:
    with pytest.raises(ValueError, match="nothing to plot"):
        draw(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"needs the matplotlib package.*pip install 'rmat\[plots\]'"):
        plot_accuracy(CELLS, tmp_path / "a")
    assert write_table([{"a": 1}], tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([0.1, 0.9], [0.1, 0.9]),
        ([0.5, 0.5], [0.525, 0.475]),
        ([0.5, 0.52, 0.51], [0.46, 0.56, 0.51]),
        ([0.9, 0.5, 0.9, 0.52], [0.875, 0.485, 0.925, 0.535]),
    ],
)
def test_labels_are_moved_apart_and_keep_their_order(wanted: list[float], expected: list[float]) -> None:
    found = figures.spread(wanted, 0.05)
    assert sorted(found) == pytest.approx(sorted(expected))
    for a, b in ((i, j) for i in range(len(wanted)) for j in range(len(wanted)) if wanted[i] < wanted[j]):
        assert found[a] + 0.05 <= found[b] + 1e-9


@pytest.mark.parametrize(
    ("count", "name", "with_unit"),
    [
        (0, "0", "0 B"),
        (640, "640", "640 B"),
        (1024, "1K", "1 KiB"),
        (6400, "6,400", "6,400 B"),
        (65536, "64K", "64 KiB"),
        (131000, "131K", "131 kB"),
        (1_000_000, "1M", "1 MB"),
        (2**20, "1M", "1 MiB"),
        (3 * 2**29, "1.5G", "1.5 GiB"),
    ],
)
def test_sizes(count: int, name: str, with_unit: str) -> None:
    assert figures.size_name(count) == name
    assert figures.size_name(count, unit="B") == with_unit


def test_lines_can_be_told_apart() -> None:
    found = [tuple(look.items()) for look in figures.looks(28)]
    assert len(set(found)) == 28
    assert len({look["color"] for look in figures.looks(7)}) == 7


def test_tables_have_a_column_for_every_key(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"task": "recall, far", "accuracy": 0.1 + 0.2, "all": {"low": None, "high": 1}},
        {"task": "ünïcode", "depth": [0, 0.5], "accuracy": math.inf},
    ]
    path = write_table(cells, tmp_path / "new folder" / "cells.csv")
    assert path.read_bytes().decode() == (
        "task,accuracy,all.low,all.high,depth\n"
        '"recall, far",0.30000000000000004,,1,\n'
        'ünïcode,inf,,,"[0, 0.5]"\n'
    )
    with pytest.raises(ValueError, match="nothing to write"):
        write_table([], path)
