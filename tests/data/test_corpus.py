"""From a configuration to splits: cached by content, split without leaks, described, refused in one
sentence."""

import json
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from rmat.data import corpus as module
from rmat.data import sources
from rmat.data.config import DataConfig
from rmat.data.corpus import load_corpus
from rmat.data.tokenizer import Tokenizer, load_tokenizer
from tests.makers.texts import write_files, write_jsonl


@pytest.fixture
def load(tmp_path):
    """load(*specs, **fields) -> Corpus, with a cache of its own."""

    def call(*specs, **fields):
        fields = {"tokenizer": "bytes", "cache_dir": str(tmp_path / "cache"), **fields}
        return load_corpus(DataConfig(specs=tuple(map(str, specs)), **fields), progress=False)

    return call


def sized(root, n, size=40):
    return write_files(root, {f"f{k:03d}.txt": f"file {k}\n" + "word " * size for k in range(n)})


def all_names(corpus):
    return {s: {getattr(corpus, s).name(i) for i in range(len(getattr(corpus, s)))} for s in module.SPLITS}


def test_splits_are_disjoint_whole_and_near_their_shares(tmp_path, load):
    corpus = load(sized(tmp_path / "d", 400))
    names = all_names(corpus)
    assert sum(map(len, names.values())) == len(set().union(*names.values())) == 400
    assert 330 < len(names["train"]) < 385 and len(names["valid"]) > 5 and len(names["test"]) > 5


def test_a_document_keeps_its_split_when_others_come(tmp_path, load):
    before = all_names(load(sized(tmp_path / "d", 200)))
    after = all_names(load(sized(tmp_path / "d", 300)))
    for split in module.SPLITS:
        assert before[split] <= after[split]


def test_python_stdlib_is_recorded(tmp_path, monkeypatch, load):
    write_files(tmp_path / "lib", {f"m{k}.py": f"x = {k}\n" * 5 for k in range(120)})
    monkeypatch.setattr(sources, "stdlib_root", lambda: tmp_path / "lib")
    corpus = load("python-stdlib", tokenizer="bpe:280")
    (source,) = corpus.description["sources"]
    assert source["documents"] == len(source["files"]) == 120 and source["split_by"] == "hash"
    assert len(source["list_sha256"]) == len(source["content_sha256"]) == 64
    splits = Counter(entry["split"] for entry in source["files"])
    assert dict(splits) == {split: len(getattr(corpus, split)) for split in module.SPLITS}
    train = corpus.description["splits"]["train"]
    assert train["tokens"] == corpus.train.n_tokens and train["bytes"] == corpus.train.n_bytes
    assert train["bytes_per_token"] == pytest.approx(corpus.train.n_bytes / corpus.train.n_tokens)
    json.dumps(corpus.description)


def test_the_cache_is_used_until_content_or_tokenizer_changes(tmp_path, monkeypatch, load):
    builds = []
    write = module._write_splits
    monkeypatch.setattr(module, "_write_splits", lambda *args: (builds.append(1), write(*args)))
    root = sized(tmp_path / "d", 60)
    first = load(root)
    again = load(root)
    assert len(builds) == 1 and again.train.fingerprint == first.train.fingerprint
    assert again.description == first.description
    load(root, tokenizer="bpe:270")
    assert len(builds) == 2
    load(root, valid_share=0.2)
    assert len(builds) == 3
    (root / "f001.txt").write_text("changed")
    load(root)
    assert len(builds) == 4


def test_the_trained_tokenizer_comes_back_from_the_cache(tmp_path, load):
    root = sized(tmp_path / "d", 60)
    one, two = load(root, tokenizer="bpe:275"), load(root, tokenizer="bpe:275")
    assert one.tokenizer.fingerprint == two.tokenizer.fingerprint and one.tokenizer.vocab_size == 275
    text = one.tokenizer.decode(one.train[0].tolist())
    assert text.startswith("file ") and text.endswith("word ")


def test_the_tokenizer_is_trained_on_the_train_split_only(tmp_path, load):
    write_jsonl(tmp_path / "d" / "train.jsonl", [{"text": "aaaa bbbb " * 30}])
    write_jsonl(tmp_path / "d" / "valid.jsonl", [{"text": "zzzz " * 30}])
    corpus = load(tmp_path / "d", tokenizer="bpe:300")
    assert len(corpus.tokenizer.encode("aaaa")) < 4 and len(corpus.tokenizer.encode("zzzz")) == 4


def test_a_saved_tokenizer_can_be_used(tmp_path, load):
    trained = load(sized(tmp_path / "d", 60), tokenizer="bpe:275").tokenizer
    trained.save(tmp_path / "tokenizer.json")
    other = load(sized(tmp_path / "e", 70), tokenizer=str(tmp_path / "tokenizer.json"))
    assert other.tokenizer.fingerprint == trained.fingerprint
    other.train.require_tokenizer(trained)


def test_own_splits_are_kept(tmp_path, load):
    for name, n in (("train", 5), ("valid", 2), ("test", 3)):
        write_jsonl(tmp_path / "d" / f"{name}.jsonl", [{"text": f"{name} {k}"} for k in range(n)])
    corpus = load(tmp_path / "d")
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (5, 2, 3)
    assert corpus.description["sources"][0]["split_by"] == "own"


def test_one_long_file_is_split_by_position(tmp_path, load):
    text = "".join(f"line {n}\n" for n in range(500))
    corpus = load(write_files(tmp_path, {"book.txt": text}) / "book.txt")
    parts = [
        corpus.tokenizer.decode(store[0].tolist()) for store in (corpus.train, corpus.valid, corpus.test)
    ]
    assert "".join(parts) == text
    assert len(parts[0]) > 0.85 * len(text)
    assert corpus.description["sources"][0]["split_by"] == "position"


def test_everything_trains_when_nothing_is_held_out(tmp_path, load):
    corpus = load(sized(tmp_path / "d", 3), valid_share=0.0)
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (3, 0, 0)


def test_several_sources_are_told_apart_by_part(tmp_path, load):
    corpus = load(
        sized(tmp_path / "a", 50), write_jsonl(tmp_path / "b.jsonl", [{"text": f"b{k}"} for k in range(80)])
    )
    for index in range(len(corpus.train)):
        assert corpus.train.parts[index] == corpus.train.name(index).startswith("b.jsonl")
    assert [source["documents"] for source in corpus.description["sources"]] == [50, 80]


def test_small_batches_of_documents_change_nothing(tmp_path, monkeypatch, load):
    root = sized(tmp_path / "d", 60)
    first = load(root)
    monkeypatch.setattr(module, "BATCH_BYTES", 300)
    second = load(root, cache_dir=str(tmp_path / "other"))
    assert first.train.fingerprint == second.train.fingerprint


def test_counts_are_printed_to_standard_error(tmp_path, capsys):
    root = sized(tmp_path / "d", 60)
    write_files(root, {"x.png": "x", "empty.txt": ""})
    load_corpus(DataConfig(specs=(str(root),), tokenizer="bytes", cache_dir=str(tmp_path / "cache")))
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.replace("\n", "")
    assert (
        "60 documents" in line and "1 empty (first: empty.txt)" in line and "1 neither text nor code" in line
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no document left in '.*' .left out: nothing.; give a source"),
        ({"a.png": "x"}, "no document left.*1 neither text nor code by suffix .first: a.png."),
        ({"a.txt": b"\xff\xfe"}, "no document left.*not valid UTF-8 at byte offset 0"),
        ({"a.txt": "ab"}, "no document left for validation"),
    ],
)
def test_a_corpus_without_documents_says_why(tmp_path, load, files, message):
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match=message):
        load(write_files(tmp_path / "d", files))


def test_content_that_changes_between_the_readings_is_refused(tmp_path, monkeypatch, load):
    root = sized(tmp_path / "d", 60)
    scan = module.scan_source

    def scan_then_change(*args):
        found = scan(*args)
        (root / "f001.txt").write_text("changed")
        return found

    monkeypatch.setattr(module, "scan_source", scan_then_change)
    with pytest.raises(ValueError, match="changed while it was being read"):
        load(root)


def test_the_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    root = sized(tmp_path / "d", 60)
    monkeypatch.setenv("RMAT_CACHE", str(tmp_path / "named"))
    load_corpus(DataConfig(specs=(str(root),), tokenizer="bytes"), progress=False)
    assert any((tmp_path / "named").iterdir())
    monkeypatch.delenv("RMAT_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_corpus(DataConfig(specs=(str(root),), tokenizer="bytes"), progress=False)
    assert any((tmp_path / "xdg" / "rmat").iterdir())


def words(*known: str) -> Tokenizer:
    """A WordPiece tokenizer, which gives back words with one blank between them."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    entries = ["[UNK]", *known, *letters, *(f"##{letter}" for letter in letters)]
    backend = tokenizers.Tokenizer(
        models.WordPiece({entry: i for i, entry in enumerate(dict.fromkeys(entries))}, unk_token="[UNK]")
    )
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.WhitespaceSplit(),
        decoders.WordPiece(cleanup=False),
    )
    return Tokenizer(backend)


def test_bytes_are_those_that_the_tokens_stand_for(tmp_path, load):
    texts = {f"{n}.txt": " ".join(f"word{n} is{k}" for k in range(20)) for n in range(60)}
    words("word").save(tmp_path / "tokenizer.json")
    corpus = load(write_files(tmp_path / "d", texts), tokenizer=str(tmp_path))
    assert corpus.train.n_bytes + corpus.valid.n_bytes + corpus.test.n_bytes == sum(map(len, texts.values()))
    for index in range(len(corpus.train)):
        counts = corpus.tokenizer.byte_counts(corpus.train[index])
        assert counts.sum() == corpus.train.document_bytes(index) == len(texts[corpus.train.name(index)])


def test_a_tokenizer_that_loses_text_is_refused(tmp_path, load):
    texts = {f"{n}.txt": "\n\n    ".join(f"word{n} is{k}" for k in range(20)) for n in range(60)}
    words("word").save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"gives back other text.*first in 0.txt.*byte-level"):
        load(write_files(tmp_path / "d", texts), tokenizer=str(tmp_path))
    assert not [*tmp_path.rglob("*.partial-*")]


def test_a_given_tokenizer_takes_the_tokens_that_its_training_left(tmp_path, load):
    root = sized(tmp_path / "d", 60)
    first = load(root, tokenizer="bpe:300")
    data = DataConfig(specs=(str(root),), tokenizer="bpe:300", cache_dir=str(first.train.folder.parents[1]))
    again = load_corpus(data, progress=False, tokenizer=first.tokenizer)
    assert again.train.folder == first.train.folder
    other = load_corpus(data, progress=False, tokenizer=load_tokenizer("bytes"))
    assert other.train.folder != first.train.folder and other.train.vocab_size == 265


def test_the_callers_random_numbers_stay_as_they_are(tmp_path, load):
    def numbers():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = numbers()
    corpus = load(sized(tmp_path / "d", 60), tokenizer="bpe:300", fim_rate=0.5, context_rate=0.5)
    next(iter(corpus.lanes(2, 16, 0).batches()))
    assert numbers() == before


def test_a_full_disk_gives_a_sentence_and_leaves_nothing(tmp_path):
    """A limit on the size of files, as a disk without room has it for all of them together."""
    write_files(tmp_path / "d", {f"{n}.txt": f"{n} " * 400 for n in range(60)})
    program = (
        "import resource, sys; from rmat.data.config import DataConfig; from rmat.data.corpus import "
        "load_corpus\n"
        "data = DataConfig(specs=(sys.argv[1],), tokenizer=sys.argv[2], cache_dir=sys.argv[3])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)\n"
        "try: load_corpus(data, progress=False)\n"
        "except ValueError as error: print(error)"
    )
    for limit in (1000, 20_000):  # too small for the tokenizer, for the tokens
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "d", "bytes", tmp_path / "cache", str(limit)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"the cache folder {tmp_path}/cache cannot be written" in done.stdout
        assert done.stdout.endswith("make room, or name another one with data.cache_dir or RMAT_CACHE\n")
        assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
