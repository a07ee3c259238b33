"""The examples run, on the small model that the tests of the command line have trained."""

import json
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest

from rmat.data.documents import Special
from rmat.data.sources import Source
from rmat.data.tokenizer import load_tokenizer
from tests.cli.conftest import TOY, Rmat
from tests.makers.engines import small_model
from tests.makers.tools import tool_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_states(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["states.py", str(run_folder)])
    runpy.run_path(str(EXAMPLES / "states.py"), run_name="__main__")
    said = capsys.readouterr().out
    branches = [part.partition("\n")[2].strip() for part in said.split("--- branch")[1:]]
    assert len(branches) == 3 and branches[1] == branches[2] != branches[0]


def test_own_text(rmat: Rmat, workplace: Path) -> None:
    arguments = [
        "--config",
        EXAMPLES / "own_text.yaml",
        "--data",
        workplace / "texts",
        "--out",
        workplace / "own",
    ]
    outcome = rmat("train", *arguments, *TOY[1:], "data.tokenizer=bpe:300", "--json")
    assert outcome.status == 0 and outcome.json["steps"] == 6


def test_make_facts_dialogues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it writes is read as dialogues."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_facts_dialogues.py"])
    runpy.run_path(str(EXAMPLES / "make_facts_dialogues.py"), run_name="__main__")
    documents = [document for _, document in Source("facts.jsonl")]
    turns = sum(document.parts.count(Special("turn_end")) for document in documents)
    assert (
        capsys.readouterr().out == f"facts.jsonl: 200 dialogues, {turns:,} turns\n" and len(documents) == 200
    )
    assert all(document.parts[-3] == Special("assistant") for document in documents)


@pytest.mark.parametrize("variant", ["recommended", "admitted"])
def test_the_notebook(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cells run, in order, with another model and another text: one that was trained on text, and one that chats
    and has a bank for each key head, as imported ones do. What it shows of its own run is small."""
    import matplotlib
    from matplotlib import pyplot

    source = EXAMPLES / "memory.ipynb"
    assert source.stat().st_size < 300_000
    (tmp_path / "book.txt").write_text("The dog is called Biscuit. " * 12, "utf-8")
    tokenizer = tool_tokenizer(None) if variant == "admitted" else load_tokenizer("bytes")
    banks = {"n_kv_heads": 2, "slots_per": "key_head", "n_sinks": 2} if variant == "admitted" else {}
    model = small_model(variant, tokenizer, n_heads=4, n_slots=8, **banks)
    model.save(tmp_path / "model", tokenizer=tokenizer)
    monkeypatch.setenv("MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("BOOK", str(tmp_path / "book.txt"))
    matplotlib.use("agg")
    namespace: dict[str, object] = {}
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
        for cell in json.loads(source.read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
    titles = [[axes.get_title(loc="left") for axes in pyplot.figure(k).axes] for k in pyplot.get_fignums()]
    pyplot.close("all")
    assert [shown[0] for shown in titles] == ["Gate of what is read", "Entries held"]
    said = capsys.readouterr().out
    assert "324 characters" in said and "with the memory the text costs" in said
    assert ("> Who is the captain" in said) == (variant == "admitted")
    assert re.search(r"token +\d+  \.\.\..*\[.+\]", said), "words stand around the token that was looked at"
