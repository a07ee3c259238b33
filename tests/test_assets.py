"""Models that come with the package load by name, are small, say what they are, and write."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rmat
from rmat.pretrained import SHORT_NAMES
from rmat.storage import ASSETS, WEIGHTS_FILE, model_folder, read_tensors

FOLDERS = sorted(folder for folder in ASSETS.iterdir() if folder.is_dir())
SHIPPED = [folder for folder in FOLDERS if (folder / WEIGHTS_FILE).is_file()]
LARGEST = 12_000_000
"""Bytes of one model with its tokenizer."""


def test_one_is_shipped() -> None:
    assert [folder.name for folder in SHIPPED] == ["starter"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_is_small_and_says_what_it_is(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LARGEST
    card = (folder / "README.md").read_text(encoding="utf-8").lower()
    assert all(word in card for word in ("trained on", "licence", "limits", "parameters"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_it_is_found_by_name_and_writes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folder(folder.name) == folder
    model, tokenizer = rmat.load(folder.name)
    assert tokenizer is not None
    text = "".join(rmat.generate(model, tokenizer, "def read(", max_new_tokens=12, seed=0))
    assert text


def test_loading_does_not_import_the_compiler() -> None:
    """It takes longer than all else that a command does before it works."""
    code = "import sys, rmat; rmat.load('starter'); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=240).returncode == 0


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_gates_of_a_pretrained_model_are_those_of_a_bank(name: str) -> None:
    """One score for each key head of each layer, and the state that they were fitted for."""
    path = ASSETS / SHORT_NAMES[name].gates
    assert path.parent in FOLDERS and path.stat().st_size < 200_000
    metadata, gates = read_tensors(path)
    state = json.loads(metadata["rmat"])
    assert sorted(state) == ["eviction", "fade", "n_sinks", "n_slots", "newest_share", "window"]
    layers = len(gates) // 2
    for layer in range(layers):
        score = f"blocks.{layer}.memory.writer.score"
        weight, bias = gates[f"{score}.weight"], gates[f"{score}.bias"]
        assert weight.shape[:1] == bias.shape and weight.isfinite().all() and weight.any()


def test_a_folder_of_that_name_counts_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "starter").mkdir()
    with pytest.raises(FileNotFoundError, match="no model in starter"):
        model_folder("starter")


def test_a_name_that_is_neither_names_those_that_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="models that come with rmat: starter"):
        model_folder("startre")
