"""Streams of `hf:`: read through the package datasets from local files, resumed where they were."""

import itertools
import json
import random

import pytest
import torch

import rmat
from rmat.cli.main import main
from rmat.data.config import DataConfig
from rmat.data.records import HubStream
from rmat.data.streaming import load_stream
from rmat.storage import load_model
from rmat.tasks.corpus import load_data
from rmat.training.loop import train
from rmat.training.progress import Silent
from tests.makers.runs import MODEL, Spoken, evaluate, sample
from tests.makers.texts import write_jsonl

datasets = pytest.importorskip("datasets")


def records(count, seed, longest=60):
    """Texts of unlike lengths, one of them far longer than the others, and a few that cannot be used."""
    chance = random.Random(seed)
    made = [{"text": "".join(chance.choices("abcdef ", k=chance.randint(1, longest)))} for _ in range(count)]
    made[3] = {"text": f"{seed}" * 20 * longest}
    made[5], made[11] = {"text": None}, {"text": ""}
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set of two files, in the cache folder of which nothing is kept."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for part in range(2):
        write_jsonl(tmp_path / "set" / f"part{part}.jsonl", records(40, part))
    return tmp_path / "set"


def config(folder, tmp_path, **fields):
    given = {"specs": (f"hf:{folder}:train:text",), "tokenizer": "bytes", "valid_share": 0.1, **fields}
    return DataConfig(streaming=True, cache_dir=str(tmp_path / "cache"), **given)


def lanes(data, batch_size=4, window=25, **options):
    return load_stream(data, progress=False).lanes(batch_size, window, seed=1, **options)


def take(made, count, values=None):
    return list(itertools.islice(made.resumed(values), count))


def equal(left, right):
    return all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in ("tokens", "targets", "resets")
    )


def again(position):
    """A position after a way through JSON."""
    return json.loads(json.dumps(position.to_dict()))


def counts(position):
    """A position but for what the package writes down of its own place, which may be said in several ways."""
    feeds = [{**feed, "place": feed["place"] and feed["place"]["row"]} for feed in position.feeds]
    return position.rows, feeds


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "two", "fim"])
def test_resumed_equals_uninterrupted(folder, tmp_path, kind):
    fields = {"fim_rate": 0.5} if kind == "fim" else {}
    if kind == "parquet":
        table = datasets.Dataset.from_list(records(80, 7))
        (tmp_path / "tables").mkdir()
        table.to_parquet(tmp_path / "tables" / "a.parquet", batch_size=16)
        folder = tmp_path / "tables"
    if kind == "two":
        write_jsonl(tmp_path / "more" / "a.jsonl", records(15, 3))
        fields = {
            "specs": tuple(f"hf:{x}:train:text" for x in (folder, tmp_path / "more")),
            "weights": (2, 1),
        }
    corpus = load_stream(config(folder, tmp_path, **fields), progress=False)
    whole = take(corpus.lanes(4, 25, seed=1), 90)
    assert len({batch.tokens.sum().item() for batch, _ in whole}) > 40
    for done in (1, 9, 41, 60):
        rest = take(corpus.lanes(4, 25, seed=1), 30, again(whole[done - 1][1]))
        for (left, before), (right, after) in zip(whole[done:], rest, strict=False):
            assert equal(left, right)
            assert counts(before) == counts(after)


def test_what_lies_before_the_rows_is_not_read_again(tmp_path, monkeypatch):
    chance = random.Random(0)
    texts = ["".join(chance.choices("abc ", k=chance.randint(30, 60))) for _ in range(100)]
    write_jsonl(tmp_path / "even" / "a.jsonl", [{"text": text} for text in texts])
    data = config(tmp_path / "even", tmp_path)
    made, first = lanes(data), lanes(data)
    position = again(take(made, 30)[-1][1])
    (feed,), rows, read = position["feeds"], [], HubStream.read
    assert feed["ordinal"] > 20, "rows have moved on"

    def counted(self, place=None):
        for document, behind in read(self, place):
            rows.append(behind["row"])
            yield document, behind

    monkeypatch.setattr(HubStream, "read", counted)
    take(first, 1, position)
    oldest = feed["place"]["row"]
    assert oldest < rows[0] < oldest + 4
    assert len(rows) < 20


def test_every_document_is_read_once_an_epoch_and_none_that_is_held_out(folder, tmp_path):
    data = config(folder, tmp_path)
    corpus = load_stream(data, progress=False)
    assert len(corpus.valid) and len(corpus.test)
    assert corpus.record["valid"]["documents"] == len(corpus.valid)
    tokenizer = corpus.tokenizer
    held = {tuple(ids.tolist()) for store in (corpus.valid, corpus.test) for ids in store}
    texts = [row["text"] for part in range(2) for row in records(40, part) if row["text"]]
    known = [(tokenizer.special_id("document"), *tokenizer.encode(text)) for text in texts]
    expected = [ids for ids in known if ids not in held]
    assert len(held) + len(expected) == len(known)
    row = torch.cat([batch.tokens for batch, _ in take(corpus.lanes(1, 50, seed=1), 200)], 1)[0].tolist()
    starts = [index for index, token in enumerate(row) if token == tokenizer.special_id("document")]
    read = [tuple(row[a:b]) for a, b in itertools.pairwise(starts)]
    assert read[: len(expected)] == expected
    assert read[len(expected) : 2 * len(expected)] == expected[: len(read) - len(expected)]


def test_processes_share_the_rows(folder, tmp_path):
    data = config(folder, tmp_path, assistant_only_loss=True)
    whole = take(lanes(data), 12)
    parts = [take(lanes(data, rows=rows), 12) for rows in (range(1), range(1, 4))]
    for (both, at), (first, here), (second, there) in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([first.tokens, second.tokens]), both.tokens)
        assert torch.equal(torch.cat([first.targets, second.targets]), both.targets)
        assert counts(at) == counts(here) == counts(there)


def run(folder, tmp_path, out):
    return rmat.RunConfig(
        model=MODEL,
        data=config(folder, tmp_path, tokenizer="bpe:280"),
        train={"steps": 8, "batch_size": 2, "window": 32, "eval_bytes": 500, "sample_every": 0},
        out=str(tmp_path / out),
    )


def test_a_run_stopped_and_resumed(folder, tmp_path, capsys):
    class StopAt(Spoken):
        def stepped(self, step):
            if step == 4:
                raise KeyboardInterrupt

    whole = train(run(folder, tmp_path, "whole"), evaluate=evaluate, sample=sample, reporter=Silent())
    shorter = run(folder, tmp_path, "parts")
    shorter = rmat.RunConfig.from_dict(
        {**shorter.to_dict(), "train": {**shorter.to_dict()["train"], "checkpoint_every": 3}}
    )
    with pytest.raises(KeyboardInterrupt):
        train(shorter, evaluate=evaluate, sample=sample, reporter=StopAt())
    parts = train(resume=tmp_path / "parts", evaluate=evaluate, sample=sample, reporter=Silent())
    left, right = (load_model(place / "model").state_dict() for place in (whole, parts))
    assert all(torch.equal(x, right[name]) for name, x in left.items())
    assert main(["eval", "perplexity", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bits_per_byte"] > 0
    assert main(["eval", "perplexity", str(whole), "--split", "train"]) == 2
    assert "is a stream, of which only valid and test are kept" in capsys.readouterr().err
    # Where one token is left nothing more is read: no token of it would be scored.
    assert load_data(run(folder, tmp_path, "x").data, False).reading("train", 50).n_tokens in (49, 50)


def test_what_cannot_be_streamed_is_refused(folder, tmp_path):
    for fields, words in (
        ({"specs": ("python-stdlib",)}, "reads hf:owner/name:split:column alone"),
        ({"context_rate": 0.5}, "streams have no folders"),
        ({"streaming": "yes"}, "choose true or false"),
    ):
        with pytest.raises(ValueError, match=words):
            DataConfig(**{"specs": ("hf:a/b",), "streaming": True, **fields})
    for fields, words in (
        ({"specs": (f"hf:{folder}:train:body",)}, r"no column 'body' \(it has 'text'\)"),
        ({"specs": (f"hf:{tmp_path / 'none'}:train",)}, "cannot be loaded"),
        ({"valid_share": 1e-9}, "no document for validation among the first 76"),
    ):
        with pytest.raises(ValueError, match=words):
            load_stream(config(folder, tmp_path, **fields), progress=False)
    write_jsonl(tmp_path / "numbers" / "a.jsonl", [{"text": n} for n in range(9)])
    with pytest.raises(ValueError, match="'text' is no text but int"):
        load_stream(config(tmp_path / "numbers", tmp_path), progress=False)


def test_other_data_and_settings_are_told_on_resuming(folder, tmp_path):
    data = config(folder, tmp_path)
    position = again(take(lanes(data), 5)[-1][1])
    with pytest.raises(ValueError, match="weights, fim_rate"):
        take(lanes(config(folder, tmp_path, fim_rate=0.1)), 1, position)
    made = lanes(data)
    for row in position["rows"]:
        row[3] += 1
    with pytest.raises(ValueError, match="a document that training is in has"):
        take(made, 1, position)


def test_a_stream_that_breaks_off_says_where(folder, tmp_path, monkeypatch):
    made = lanes(config(folder, tmp_path))

    class Broken:
        def __iter__(self):
            yield {"text": "a document"}
            raise RuntimeError("connection reset")

        def state_dict(self):
            return {}

    monkeypatch.setattr(made._corpus.streams[0], "_rows", Broken())
    with pytest.raises(OSError, match=r"cannot be read on behind row 1 \(RuntimeError: connection reset\)"):
        take(made, 5)
