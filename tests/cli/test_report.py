import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Rmat


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def test_report_of_a_run_on_its_own_data(rmat: Rmat, run_folder: Path, page: Path) -> None:
    result = rmat("report", run_folder, "--out", page, "--max-tokens", 300, "--json").json
    assert result["page"] == str(page) and result["tokens"] == 300 and result["unit"] == "byte"
    assert 0 < result["bits"] < 10 and result["bits_zeroed"] > 0
    assert result["page_bytes"] == page.stat().st_size
    assert [layer["layer"] for layer in result["layers"]] == [1]
    data = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert data["total"]["bits"] == result["bits"] and len(data["text"]["tokens"]) == 300
    assert [row["step"] for row in data["training"]["eval"]] == [3, 6]
    assert len(data["text"]["documents"]) > 1, "documents are read until there are enough tokens"
    html = page.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and "http://" not in html.replace(
        "http://www.w3.org/2000/svg", ""
    )


def test_report_of_a_model_on_a_file(rmat: Rmat, run_folder: Path, page: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("A short note, é included.", encoding="utf-8")
    outcome = rmat("report", run_folder / "model", "--text", tmp_path / "notes.txt", "--out", page)
    assert outcome.status == 0 and "27 tokens" in outcome.out and str(page) in outcome.out
    data = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert "".join(data["text"]["tokens"]) == "A short note, é included." and data["training"] is None
    again = rmat("report", run_folder / "model", "--text", tmp_path / "notes.txt", "--out", page)
    assert again.status == 0, "a report is made anew in its place"


def test_report_of_a_task(rmat: Rmat, page: Path, tmp_path: Path) -> None:
    """Loss is told of the answers alone, and which slot a query read can be looked up."""
    settings = [
        "train.steps=2",
        "train.window=64",
        "train.batch_size=2",
        "train.eval_every=0",
        "model.d_model=16",
    ]
    run = tmp_path / "run"
    sizes = ["model.n_layers=1", "model.n_heads=2", "model.segment_len=16", "model.n_slots=8"]
    trained = rmat("train", "--preset", "tiny", "--data", "recall:pairs=4", "--out", run, *settings, *sizes)
    assert trained.status == 0, trained.err
    result = rmat("report", run, "--out", page, "--max-tokens", 200, "--json").json
    assert result["unit"] == "answer token" and result["tokens"] == 200 and 0 < result["units"] < 100
    data = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    asked = [place for place, bits in enumerate(data["text"]["bits"]) if bits is not None]
    assert asked == [int(place) for place in data["text"]["answers"]]
    assert all(data["text"]["tokens"][k + 1].strip() == data["text"]["answers"][str(k)] for k in asked[:-1])


def test_what_is_refused(rmat: Rmat, run_folder: Path, page: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "report.json").write_text('{"mine": 1}')
    for arguments, words in (
        ([tmp_path / "nowhere"], "no model at"),
        ([run_folder, "--text", tmp_path / "nothing.txt"], "no file at"),
        ([run_folder, "--text", tmp_path / "empty.txt"], "empty"),
        ([run_folder, "--max-tokens", 1], "--max-tokens is 1"),
        ([run_folder, "--out", tmp_path / "report.pdf"], "ends in .html"),
        ([run_folder, "--out", tmp_path / "no" / "report.html"], "no folder"),
        ([run_folder, "--data", tmp_path / "nothing"], "nothing at"),
        ([run_folder, "--out", page], "would be replaced"),
        ([run_folder, "--data", "mqar"], "numbered tokens"),
    ):
        out = [] if "--out" in arguments else ["--out", tmp_path / "other.html"]
        assert words in rmat("report", *arguments, *out).refused()
    assert (tmp_path / "report.json").read_text() == '{"mine": 1}' and not page.exists()


def test_text_or_data(rmat: Rmat, run_folder: Path) -> None:
    assert "not allowed" in rmat("report", run_folder, "--text", "a", "--data", "b").refused()


def test_a_page_is_no_pipe(rmat: Rmat, run_folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.json")
    assert "p.json is no regular file" in rmat("report", run_folder, "--out", tmp_path / "p.html").refused()
