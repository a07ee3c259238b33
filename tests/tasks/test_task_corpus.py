"""Tasks in the place of a corpus: vocabulary, held-out rows, shares of a mixture, and what cannot be
mixed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmat.data.config import DataConfig
from rmat.data.lanes import IGNORED
from rmat.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from rmat.tasks.corpus import VALIDATION_SEED, TaskCorpus, load_data, load_tasks, refuse_ambiguous
from rmat.tasks.mqar import MqarTask
from rmat.tasks.numbered import numbered_tokenizer
from rmat.tasks.recall import RecallTask
from rmat.tasks.task import Member
from rmat.training.config import TrainConfig
from tests.makers.sources import write_babi, write_books

MQAR = "mqar:pairs=2,length=16,vocabulary=32"


def corpus_of(*specs: str, **fields: Any) -> TaskCorpus:
    return load_tasks(DataConfig(specs=specs, **fields))


def members_of(corpus: TaskCorpus, seed: int = 0) -> list[Member]:
    return corpus.lanes(2, 64, seed)._members


def test_numbered_tokens_are_their_numbers() -> None:
    tokenizer = numbered_tokenizer(40)
    assert tokenizer.encode("0 7  39\n12") == [0, 7, 39, 12]
    assert tokenizer.decode([0, 7, 39, 12]) == "0 7 39 12"
    assert tokenizer.encode(tokenizer.decode(list(range(40)))) == list(range(40))
    assert tokenizer.encode("40 -1 seven 07 <|document|>") == [40] * 5, "what is no token is unknown"
    specials = [tokenizer.special_id(name[2:-2]) for name in SPECIAL_TOKENS]
    assert specials == list(range(41, 50)) and tokenizer.vocab_size == 50


def test_a_numbered_tokenizer_is_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = numbered_tokenizer(40)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    assert (again.fingerprint, again.vocab_size) == (tokenizer.fingerprint, 50)
    assert again.encode("3 39") == [3, 39] and again.special_id("document") == 41
    assert numbered_tokenizer(41).fingerprint != tokenizer.fingerprint


def test_the_vocabulary_holds_every_task() -> None:
    assert corpus_of(MQAR).tokenizer.fingerprint == numbered_tokenizer(32).fingerprint
    mixed = corpus_of(MQAR, "recall:keys=20,values=20,fillers=20")
    assert mixed.tokenizer.fingerprint == numbered_tokenizer(60).fingerprint


def test_text_tasks_take_any_tokenizer_or_train_one_on_their_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmat.tasks.corpus.TOKENIZER_TEXTS", 50_000)
    assert corpus_of("passkey", tokenizer="bytes").tokenizer.vocab_size == 256 + len(SPECIAL_TOKENS)
    trained = corpus_of("passkey", tokenizer="bpe:300").tokenizer
    assert trained.vocab_size == 300
    assert len(trained.encode("The pass key is 12")) < len("The pass key is 12")
    trained.save(tmp_path / "tokenizer.json")
    loaded = corpus_of("passkey", tokenizer=str(tmp_path / "tokenizer.json")).tokenizer
    assert loaded.fingerprint == trained.fingerprint


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"specs": (MQAR, "python-stdlib")},
            r"mixes synthetic tasks with text \('python-stdlib'\): train on one kind at a time",
        ),
        (
            {"specs": ("some/folder", "passkey")},
            r"mixes synthetic tasks with text \('some/folder'\)",
        ),
        (
            {"specs": (MQAR, "passkey")},
            r"mixes numbered tasks \(recall, mqar\) with text tasks: train on one kind at a time",
        ),
        ({"specs": ("passkey", "recall")}, r"mixes numbered tasks"),
        (
            {"specs": (MQAR,), "fim_rate": 0.5},
            r"data.fim_rate is 0.5 but synthetic tasks have no middle to fill: leave it out",
        ),
        ({"specs": ("passkey",), "fim_rate": 0.1, "tokenizer": "bytes"}, r"data.fim_rate is 0.1"),
        ({"specs": ("passkey",), "context_rate": 0.1, "tokenizer": "bytes"}, r"data.context_rate is 0.1 but"),
        (
            {"specs": ("passkey",), "assistant_only_loss": True, "tokenizer": "bytes"},
            r"data.assistant_only_loss is true but synthetic tasks say themselves what is scored",
        ),
        (
            {"specs": (MQAR,), "tokenizer": "bytes"},
            r"data.tokenizer is 'bytes' but 'mqar:.*' brings its own vocabulary: leave it out",
        ),
        ({"specs": (MQAR, "recall:pears=2")}, r"'recall:pears=2': recall has no setting 'pears'"),
        ({"specs": ("passkey",), "tokenizer": "no/such/file"}, r"no tokenizer at 'no/such/file'"),
    ],
)
def test_what_cannot_be_trained_on_together_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_tasks(DataConfig(**fields))


def test_specs_share_by_weights_whatever_their_parts_share() -> None:
    """The published mixture of mqar has five kinds of rows whose shares are in the thousands."""
    plain = members_of(corpus_of("mqar", "recall"))
    assert [round(member.share, 4) for member in plain] == [0.5556, *[0.1111] * 4, 1.0]
    weighted = members_of(corpus_of("mqar", "recall:from=20", weights=(3.0, 1.0)))
    assert sum(m.share for m in weighted if isinstance(m.task, MqarTask)) == pytest.approx(3.0)
    (recall,) = (m for m in weighted if isinstance(m.task, RecallTask))
    assert (recall.share, recall.shortest) == (1.0, 20)


def test_a_mixture_is_drawn_by_its_weights() -> None:
    lanes = corpus_of(MQAR, "mqar:pairs=2,length=20,vocabulary=32", weights=(1.0, 4.0)).lanes(1, 64, 0)
    widths = [lanes.batch(number).tokens.shape[1] for number in range(1000)]
    assert set(widths) == {16, 20}
    assert abs(widths.count(16) - 200) < 4 * (1000 * 0.2 * 0.8) ** 0.5


def test_the_training_seed_makes_the_rows_but_not_those_held_out() -> None:
    corpus = corpus_of(MQAR)
    one, other = (corpus.lanes(2, 64, seed).batch(0).tokens for seed in (0, 1))
    assert not torch.equal(one, other)
    held = list(corpus.held_out(2, 64).batches(3))
    again = list(corpus.held_out(2, 64).batches(3))
    assert len(held) == 3
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(held, again, strict=True))


def test_no_training_seed_makes_the_rows_held_out() -> None:
    """The numbers that a row is drawn from are (seed, batch), and the largest seed of a run is 2^32 - 1. Once
    the seed of the rows held out was among them."""
    assert VALIDATION_SEED > 2**32 - 1
    with pytest.raises(ValueError, match=r"train.seed"):
        TrainConfig(seed=2**32)
    held = np.random.default_rng([VALIDATION_SEED, 0]).random()
    for seed in (0, 1, 2**31, 2**32 - 1):
        assert all(np.random.default_rng([seed, number]).random() != held for number in range(50))


def test_rows_held_out_are_as_long_as_training_rows_become() -> None:
    corpus = corpus_of("recall:pairs=2,keys=8,from=10,grow=1000")
    assert {batch.tokens.shape[1] for batch in corpus.held_out(2, 40).batches(20)} == {40}
    assert corpus.lanes(2, 40, 0).batch(0).tokens.shape[1] == 10
    assert next(corpus_of(MQAR).held_out(2, 64).batches(1)).tokens.shape == (2, 16)


def test_rows_held_out_have_facts_and_filler_of_the_validation_split(tmp_path: Path) -> None:
    books = write_books(tmp_path / "books")
    facts = write_babi(tmp_path / "babi", "train", 30, mark="Story")
    write_babi(tmp_path / "babi", "test", 5, mark="Secret")
    spec = f"babilong:facts={facts},filler={books},tasks=1"
    corpus = corpus_of(spec, tokenizer="bytes")

    def told(batches: Any) -> tuple[set[str], set[str]]:
        text = "".join(corpus.tokenizer.decode(row) for b in batches for row in b.tokens.tolist())
        words = text.replace("\n", " ").split()
        stories = {word for word in words if word.startswith(("Story", "Secret"))}
        return stories, {word.rstrip("0123456789") for word in words if word[:5] in ("Train", "Valid")}

    lanes = corpus.lanes(8, 600, 0)
    train, filler = told(lanes.batch(number) for number in range(12))
    valid, valid_filler = told(corpus.held_out(8, 600).batches(12))
    assert train and valid and not train & valid
    assert not any(story.startswith("Secret") for story in train | valid)
    assert (filler, valid_filler) == ({"Train"}, {"Valid"})


def test_what_a_run_is_told_and_writes_down() -> None:
    corpus = corpus_of(MQAR, "recall:pairs=2")
    assert corpus.has_valid and corpus.bits_per_byte(1.0) is None
    what, share = corpus.summary(1000)
    assert MQAR in what and "recall:pairs=2" in what and share == "rows never seen before"
    assert json.loads(json.dumps(corpus.record)) == corpus.record
    assert corpus.record == {
        "tokenizer": corpus.tokenizer.fingerprint,
        "tasks": [MQAR, "recall:pairs=2"],
        "vocab_size": corpus.tokenizer.vocab_size,
    }
    assert corpus_of(MQAR).record != corpus.record


@pytest.mark.parametrize("length", [6, 17, 64])
def test_a_row_of_recall_is_one_of_its_batches(length: int) -> None:
    task = RecallTask(n_pairs=2, n_keys=8, n_values=8, n_filler=8, query_share=0.5)
    row = task.row(np.random.default_rng(1), length)
    assert row.tokens.shape == row.targets.shape == (length,)
    assert row.tokens.tolist() == task.row(np.random.default_rng(1), length).tokens.tolist()
    assert row.tokens.tolist() != task.row(np.random.default_rng(2), length).tokens.tolist()
    pairs = dict(zip(row.tokens[:4:2].tolist(), row.tokens[1:4:2].tolist(), strict=True))
    asked = np.flatnonzero(row.targets != IGNORED)
    assert [pairs[key] for key in row.tokens[asked].tolist()] == row.targets[asked].tolist()
    with pytest.raises(ValueError, match="leaves no question after 2 pairs; give at least 6"):
        task.row(np.random.default_rng(1), 5)


def test_a_task_and_a_folder_of_one_name_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "a.txt").write_text("text " * 200)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=rf"'facts' is a synthetic task, and {tmp_path}/facts is there too: .*'\./facts'"
    ):
        refuse_ambiguous(["facts"])
    refuse_ambiguous(["facts"], out="facts")
    refuse_ambiguous(["./facts", "facts:", "recall", "facts:from=100"])
    (tmp_path / "recall").mkdir()
    (tmp_path / "recall" / "config.json").write_text("{}")
    refuse_ambiguous(["recall"])
    data = DataConfig(specs=("./facts",), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    text = load_data(data)
    assert text.bits_per_byte(1.0) is not None and text.reading("train", 50).names == ("a.txt",)
    task = load_data(DataConfig(specs=("facts:",), tokenizer="bytes"))
    assert task.bits_per_byte(1.0) is None and task.reading("valid", 400).targets is not None
