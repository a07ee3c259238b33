"""Stores give back what was written, refuse what is damaged, and are built by one process only."""

import json
import multiprocessing
import os
import time

import numpy as np
import pytest

from rmat.data import store as module
from rmat.data.documents import code_document
from rmat.data.store import StoreWriter, TokenStore, build_once
from rmat.data.tokenizer import load_tokenizer, train_bpe
from tests.makers.texts import make_store

TOK = load_tokenizer("bytes")


def test_a_store_gives_back_its_documents(tmp_path):
    texts = ["first", "", "dritter é", "x" * 1000]
    store = make_store(tmp_path / "s", [*texts, code_document("a.py", "y")])
    assert len(store) == 5
    for number, text in enumerate(texts):
        tokens = store[number]
        assert tokens.dtype == np.int64
        assert tokens.tolist() == [TOK.special_id("document"), *text.encode()]
        assert store.document_bytes(number) == len(text.encode())
        assert store.name(number) == str(number)
    assert store.name(4) == "a.py" and store.document_header(4) == 7 and store.document_header(0) == 1
    assert store.n_bytes == sum(len(text.encode()) for text in texts) + len("a.py\ny")
    assert store.n_tokens == sum(map(len, store)) == store.lengths.sum()
    assert store[-1].tolist() == store[4].tolist()
    with pytest.raises(IndexError, match="document 5 of 5"):
        store[5]


def test_shards_are_closed_when_full(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_TOKENS", 10)
    texts = [chr(97 + n) * n for n in range(12)]
    store = make_store(tmp_path / "s", texts)
    assert len(list((tmp_path / "s").glob("tokens-*.bin"))) > 3
    assert [bytes(store[n][1:].astype(np.uint8)).decode() for n in range(12)] == texts


def test_views_are_mapped_and_as_narrow_as_the_vocabulary(tmp_path):
    store = make_store(tmp_path / "s", ["abc"])
    assert store.view(0).dtype == np.uint16 and isinstance(store.view(0), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.view(0)[0] = 1


def test_a_large_vocabulary_gets_wider_tokens(tmp_path):
    class Wide:
        vocab_size = 70_000
        fingerprint = "wide"

    writer = StoreWriter(tmp_path / "s", Wide())
    writer.add("a", module.EncodedDocument(np.array([69_999, 3]), 1), 1)
    store = writer.close()
    assert store.view(0).dtype == np.uint32 and store[0].tolist() == [69_999, 3]


def test_an_empty_store_is_a_store(tmp_path):
    store = make_store(tmp_path / "s", [])
    assert len(store) == store.n_tokens == store.n_bytes == 0


def test_fingerprints_follow_content_and_parts(tmp_path):
    made = ((["ab", "c"], [0, 0]), (["ab", "c"], [0, 0]), (["ab", "c"], [0, 1]), (["a", "bc"], [0, 0]))
    prints = [
        make_store(tmp_path / str(n), texts, parts=parts).fingerprint for n, (texts, parts) in enumerate(made)
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    store = make_store(tmp_path / "s", ["abc"])
    store.require_tokenizer(TOK)
    with pytest.raises(
        ValueError, match=r"vocabulary mismatch: the tokenizer has .* entries and the store .* 265"
    ):
        store.require_tokenizer(train_bpe(["one two " * 20], 270))
    one, two = (train_bpe([text * 20], 266) for text in ("ab ", "cd "))
    assert one.vocab_size == two.vocab_size
    with pytest.raises(ValueError, match=r"vocabulary mismatch: the tokens in .* were made by"):
        make_store(tmp_path / "t", ["abc"], one).require_tokenizer(two)


def test_a_damaged_store_is_refused(tmp_path):
    make_store(tmp_path / "c" / "s", ["abc" * 100])
    shard = tmp_path / "c" / "s" / "tokens-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ValueError, match=f"tokens-00000.bin is damaged.*delete {tmp_path / 'c'}"):
        TokenStore(tmp_path / "c" / "s")
    index = tmp_path / "c" / "s" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="store format 99, not 1"):
        TokenStore(tmp_path / "c" / "s")
    with pytest.raises(ValueError, match="holds no readable token store"):
        TokenStore(tmp_path)


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        build_once(tmp_path / "k", build)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    build_once(tmp_path / "k", lambda folder: (folder / "whole").write_text("x"))
    assert [path.name for path in (tmp_path / "k").iterdir()] == ["whole"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "k.partial-dead").mkdir()
    build_once(tmp_path / "k", lambda folder: None)
    assert not (tmp_path / "k.partial-dead").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"cache folder .*file cannot be written.*RMAT_CACHE"):
        build_once(tmp_path / "file" / "k", lambda folder: None)


def _build_slowly(root, ready, results):
    def build(folder):
        (folder / "one").write_text(str(os.getpid()))
        time.sleep(0.3)
        (folder / "two").write_text(str(os.getpid()))
        results.put("built")

    ready.wait()
    folder = build_once(root / "k", build)
    results.put((folder / "one").read_text() == (folder / "two").read_text())


def test_two_processes_build_once_and_see_it_whole(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_build_slowly, args=(tmp_path, ready, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted((results.get(timeout=5) for _ in range(3)), key=str) == [True, True, "built"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["k"]


def test_who_waits_is_told(tmp_path):
    from filelock import FileLock

    lock = FileLock(tmp_path / "k.lock")
    lock.acquire()
    build_once(tmp_path / "k", lambda folder: None, on_wait=lock.release)
    assert (tmp_path / "k").is_dir()
