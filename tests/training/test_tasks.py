"""Training on rows of a task: what a run leaves behind, what it counts, and that it can be stopped."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import rmat.api
from rmat.data.config import DataConfig
from rmat.data.lanes import Batch
from rmat.storage import load_model
from rmat.tasks.corpus import load_tasks
from rmat.training.config import RunConfig
from rmat.training.loop import train
from rmat.training.progress import Silent
from rmat.training.step import training_step
from tests.makers.runs import MODEL, Spoken, assert_same_run, metrics

MQAR = "mqar:pairs=2,length=16,vocabulary=32"


def config(out: Path, specs: tuple[str, ...] = (MQAR,), model: Any = None, **fields: Any) -> RunConfig:
    """A run of a second."""
    settings: dict[str, Any] = {
        "steps": 6,
        "batch_size": 3,
        "window": 24,
        "warmup_steps": 2,
        "eval_every": 2,
        "sample_every": 0,
        "log_every": 1,
        "checkpoint_every": 2,
        "seed": 3,
        "device": "cpu",
    }
    return RunConfig.from_dict(
        {
            "model": {**MODEL, "gate_noise": 0.5, **(model or {})},
            "data": {"specs": list(specs)},
            "train": {**settings, **fields},
            "out": str(out),
        }
    )


def run(config: RunConfig) -> Path:
    return rmat.api.train(config, reporter=Silent())


def result(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return values


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config(tmp_path_factory.mktemp("tasks") / "run"))


def test_the_result_has_scores_of_rows_and_none_of_text(finished: Path) -> None:
    found = result(finished)
    assert {"run", "steps", "tokens", "tokens_per_second"} <= found.keys()
    assert found["steps"] == 6 and found["tokens"] == 6 * 3 * 16, "rows of 16 tokens, not of the window's 24"
    assert 0 < found["valid_nats"] < 10 and 0 <= found["valid_accuracy"] <= 1
    assert 0 <= found["valid_rows_right"] <= found["valid_accuracy"]
    assert found["valid_bits_per_byte"] is None and found["valid_bits_per_byte_memory_zeroed"] is None


def test_rows_of_metrics_say_nothing_of_bytes(finished: Path) -> None:
    rows = metrics(finished)
    trained = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in trained] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in trained] == [48 * step for step in range(1, 7)]
    assert all(row["bits_per_byte"] is None and 0 < row["loss"] < 10 for row in trained)
    evaluated = [row for row in rows if row["kind"] == "eval"]
    assert [row["step"] for row in evaluated] == [2, 4, 6]
    assert all({"nats", "accuracy", "rows_right"} <= row.keys() for row in evaluated)
    assert result(finished)["valid_nats"] == evaluated[-1]["nats"]


def test_the_data_is_written_down(finished: Path) -> None:
    corpus = load_tasks(DataConfig(specs=(MQAR,)))
    assert json.loads((finished / "data.json").read_text()) == {
        "tokenizer": corpus.tokenizer.fingerprint,
        "tasks": [MQAR],
        "vocab_size": 42,
    }
    assert json.loads((finished / "config.json").read_text())["data"]["specs"] == [MQAR]


def test_the_model_is_exported_with_its_numbers(finished: Path) -> None:
    model, tokenizer = rmat.api.load(finished)
    assert model.config.vocab_size == tokenizer.vocab_size == 42
    assert tokenizer.encode("3 31") == [3, 31]


def test_the_best_evaluation_is_the_one_of_least_nats(tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0])

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        return {"nats": next(scores), "accuracy": 0.0}

    folder = train(config(tmp_path / "run"), evaluate=evaluate, reporter=Silent())
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    counters = json.loads((newest / "trainer.json").read_text())["counters"]
    assert (counters["best_step"], counters["best_score"]) == (4, 1.0)
    assert result(folder)["valid_nats"] == 2.0


class StopAt(Silent):
    """Sends this process a signal when a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("specs", "fields"),
    [
        ((MQAR,), {}),
        (("recall:pairs=2,keys=8,from=8,grow=4", MQAR), {"accumulate": 2, "steps": 5}),
        (("passkey:digits=1,from=110",), {"window": 130, "batch_size": 2, "steps": 4}),
    ],
    ids=["one length", "growing mixture", "text rows of unequal lengths"],
)
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, specs: tuple[str, ...], fields: dict[str, Any]
) -> None:
    def configured(name: str) -> RunConfig:
        made = config(tmp_path / name, specs, **fields)
        if specs[0].startswith("passkey"):
            values = made.to_dict()
            values["data"]["tokenizer"] = "bytes"
            made = RunConfig.from_dict(values)
        return made

    whole = run(configured("whole"))
    parts = rmat.api.train(configured("parts"), reporter=StopAt(3))
    assert not (parts / "result.json").exists()
    rmat.api.train(resume=parts, reporter=Silent())
    assert_same_run(whole, parts)
    left, right = result(whole), result(parts)
    assert {k: v for k, v in left.items() if k not in ("run", "tokens_per_second")} == {
        k: v for k, v in right.items() if k not in ("run", "tokens_per_second")
    }


def test_other_rows_are_refused_at_resuming(tmp_path: Path) -> None:
    folder = rmat.api.train(config(tmp_path / "run"), reporter=StopAt(2))
    values = json.loads((folder / "config.json").read_text())
    values["data"]["specs"] = ["mqar:pairs=3,length=16,vocabulary=32"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=r"the data has changed since the run .*tasks differs from data.json"
    ):
        train(resume=folder, reporter=Silent())


def test_tokens_are_counted_as_they_are_read(tmp_path: Path) -> None:
    """Lengths are drawn anew for every batch, and never reach the window while they still grow."""
    wanted = config(tmp_path / "run", ("recall:pairs=2,keys=8,from=8,grow=1000",), eval_every=0, window=400)
    folder = run(wanted)
    lanes = load_tasks(wanted.data).lanes(3, 400, 3)
    expected = sum(lanes.batch(number).tokens.numel() for number in range(6))
    assert result(folder)["tokens"] == expected < 6 * 3 * 12


def test_what_is_trained_on_is_told(tmp_path: Path) -> None:
    reporter = Spoken()
    rmat.api.train(config(tmp_path / "run", steps=1), reporter=reporter)
    told = "\n".join(reporter.said)
    assert f"data    {MQAR}: rows made as they are needed" in told and "rows never seen before" in told


def test_the_tokens_of_an_update_are_those_of_the_rows_not_of_the_window(tmp_path: Path) -> None:
    """A quarter of the batches has rows of 8 tokens, the others of 16; the window is 24."""
    specs = (MQAR, "mqar:pairs=1,length=8,vocabulary=32")
    wanted = config(tmp_path / "run", specs, steps=10)
    wanted = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, weights=(3.0, 1.0)))
    reporter = Spoken()
    rmat.api.train(wanted, reporter=reporter)
    said = "\n".join(reporter.said)
    assert "3 rows x about 14 tokens x 1 windows = about 42 tokens" in said
    assert "10 steps = about 420 tokens = rows never seen before" in said


def test_rows_that_grow_are_counted_as_long_as_they_become() -> None:
    corpus = load_tasks(DataConfig(specs=("recall:pairs=2,keys=8,from=8,grow=40",)))
    lanes = corpus.lanes(2, 100, 3)
    widths = [lanes.batch(number).tokens.shape[1] for number in range(2000)]
    for updates in (1, 20, 40, 2000):
        mean = sum(widths[:updates]) / updates
        assert corpus.row_tokens(100, updates) == pytest.approx(mean, rel=0.15), updates
    assert corpus.row_tokens(100, 1) == 8


def test_a_mistake_in_a_spec_leaves_no_folder(tmp_path: Path) -> None:
    for specs, sentence in (
        (("mqar:pears=2",), "mqar has no setting 'pears': did you mean 'pairs'"),
        ((MQAR, "python-stdlib"), "mixes synthetic tasks with text"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run(config(tmp_path / "run", specs))
    assert not (tmp_path / "run").exists()


def test_the_loss_is_that_of_the_questions_alone() -> None:
    """Other places have no target, so other tokens to be said there change neither loss nor gradient."""
    corpus = load_tasks(DataConfig(specs=(MQAR,)))
    settings = config(Path("unused"), model={"dropout": 0.0, "gate_noise": 0.0})
    torch.manual_seed(0)
    model = rmat.LanguageModel(settings.model_config(corpus.tokenizer.vocab_size))
    batch: Batch = corpus.lanes(3, 24, 0).batch(0)
    found = training_step(model, [], [batch], None, settings.train)
    assert found.scored == 3 * 2
    with torch.no_grad():
        logits, _ = model(batch.tokens)
    asked = batch.targets >= 0
    nats = torch.nn.functional.cross_entropy(logits[asked], batch.targets[asked], reduction="sum")
    assert found.nats == pytest.approx(float(nats), rel=1e-5)
    assert math.isfinite(found.gradient_norm) and found.gradient_norm > 0


def test_the_memory_is_empty_at_the_start_of_every_row() -> None:
    """What the batch before left in the state is forgotten at column 0, although a state is carried."""
    corpus = load_tasks(DataConfig(specs=(MQAR,)))
    settings = config(Path("unused"), model={"dropout": 0.0, "gate_noise": 0.0})
    torch.manual_seed(0)
    model = rmat.LanguageModel(settings.model_config(corpus.tokenizer.vocab_size))
    lanes = corpus.lanes(3, 24, 0)
    before = training_step(model, [], [lanes.batch(0)], None, settings.train)
    found = []
    for state in (None, before.state):
        model.zero_grad()
        found.append(training_step(model, [], [lanes.batch(1)], state, settings.train))
    fresh, carried = found
    assert before.state is not None and before.state.position.tolist() == [16] * 3
    assert fresh.nats == carried.nats and fresh.gradient_norm == carried.gradient_norm


def test_a_mixture_learns_its_pairs(tmp_path: Path) -> None:
    """Two pairs within reach of local attention: a few hundred updates of a tiny model lower the loss for good."""
    folder = run(
        config(
            tmp_path / "run",
            ("mqar:pairs=1,length=4,vocabulary=8",),
            {"segment_len": 4, "n_layers": 1, "dropout": 0.0, "gate_noise": 0.0},
            steps=60,
            batch_size=16,
            lr=3e-2,
            eval_every=0,
            checkpoint_every=100,
            log_every=10,
        )
    )
    losses = [row["loss"] for row in metrics(folder) if row["kind"] == "train"]
    assert losses[-1] < 0.75 * losses[0]
    assert load_model(folder / "model").config.n_layers == 1
