"""Rows of metrics: none twice, none missing, none half."""

from pathlib import Path

from rmat.training.records import JsonLines


def test_rows_after_the_checkpoint_are_cut_away(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        lines.append({"step": step, "text": "ä\n"})
    lines.cut_after(3)
    lines.append({"step": 4, "text": "again"})
    lines.sync()
    assert [row["step"] for row in lines.rows()] == [1, 2, 3, 4]
    assert lines.rows()[0]["text"] == "ä\n"


def test_half_a_row_is_dropped(tmp_path: Path) -> None:
    """A process killed while writing leaves a line without its end; the next row must not be glued to it."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})
    with lines.path.open("a") as file:
        file.write('{"step": 2, "lo')
    lines.cut_after(2)
    lines.append({"step": 2})
    assert [row["step"] for row in lines.rows()] == [1, 2]


def test_a_file_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.sync()
    assert lines.rows() == []
    lines.cut_after(0)
    assert lines.rows() == []
