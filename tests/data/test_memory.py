"""Data in memory becomes a SPEC like any other."""

from pathlib import Path

import numpy as np
import pytest

import rmat
from rmat.data.memory import keep
from rmat.data.sources import Source
from rmat.storage import load_model
from rmat.training.config import RunConfig
from rmat.training.progress import Silent
from tests.makers.runs import MODEL


def texts(data, tmp_path):
    source = Source(keep(data, tmp_path / "cache"))
    return [(split, "".join(p for p in d.parts if isinstance(p, str))) for split, d in source]


def test_texts_and_records_are_documents(tmp_path):
    assert texts(["a", "b"], tmp_path) == [(None, "a"), (None, "b")]
    assert texts((text for text in "ab"), tmp_path) == [(None, "a"), (None, "b")]
    assert texts(np.array(["a", "b"]), tmp_path) == [(None, "a"), (None, "b")]
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    assert texts([{"messages": chat}, {"text": "b"}], tmp_path) == [(None, "Who?I."), (None, "b")]
    assert texts({"train": ["a"], "validation": ["v"]}, tmp_path) == [("train", "a"), ("valid", "v")]


def test_tables_of_other_packages_are_documents(tmp_path):
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    table = datasets.Dataset.from_list(rows)
    both = [(None, "a"), (None, "b")]
    assert texts(table, tmp_path) == both
    assert texts(table.to_iterable_dataset(), tmp_path) == both
    assert texts(table.select([1]), tmp_path) == [(None, "b")]
    assert texts(pandas.DataFrame(rows), tmp_path) == both
    split = datasets.DatasetDict({"train": table, "validation": table})
    assert texts(split, tmp_path) == [*(("train", x) for _, x in both), *(("valid", x) for _, x in both)]


def test_equal_data_is_kept_once_and_a_spec_stays_what_it_is(tmp_path):
    first = keep(["a", "b"], tmp_path)
    assert keep(({"text": x} for x in "ab"), tmp_path) == first
    assert keep(["b", "a"], tmp_path) != first
    assert len(list((tmp_path / "given").iterdir())) == 2
    assert keep("python-stdlib") == "python-stdlib"
    assert keep(Path("a") / "b") == "a/b"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "data is int: give a SPEC, a Dataset"),
        ([3], "item 1 of data is int"),
        (["a", b"b"], "item 2 of data is bytes"),
        ([{"a": {1, 2}}], "item 1 of data is no record of JSON"),
        ([], "data holds nothing"),
        ({"text": "a"}, "a part 'text': give its splits by their names"),
    ],
)
def test_what_is_no_data_is_refused_and_leaves_nothing(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        keep(data, tmp_path)
    assert not list((tmp_path / "given").iterdir())


def test_training_takes_data_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("RMAT_CACHE", str(tmp_path / "cache"))
    data = [f"text number {n}, and some more of it" for n in range(40)]
    config = RunConfig(
        model=MODEL,
        data={"tokenizer": "bytes"},
        train={"steps": 2, "batch_size": 2, "window": 16, "eval_bytes": 100, "sample_every": 0},
        out=str(tmp_path / "run"),
    )
    folder = rmat.train(config, data=data, reporter=Silent())
    assert load_model(folder).config.d_model == 16
    (spec,) = RunConfig.load(folder).data.specs
    assert len(list(Source(spec))) == 40
    longer = {**config.to_dict(), "train": {**config.to_dict()["train"], "steps": 3}}
    again = rmat.train(RunConfig.from_dict(longer), data=data, resume=folder, reporter=Silent())
    assert again == folder
    with pytest.raises(ValueError, match=r"data is .* but the run was started with"):
        rmat.train(RunConfig.from_dict(longer), data=data[:-1], resume=folder, reporter=Silent())
