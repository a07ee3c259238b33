"""A run from outside: its folder, what it says, what each setting does."""

import dataclasses
import itertools
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rmat
from rmat.model import LanguageModel
from rmat.storage import load_model
from rmat.training import loop
from rmat.training.checkpoint import list_checkpoints, read_checkpoint
from rmat.training.config import RunConfig
from rmat.training.loop import NonFiniteError, train
from rmat.training.progress import Silent
from tests.makers.runs import Spoken, assert_same_tensors, evaluate, last_checkpoint, metrics, sample

MakeConfig = Callable[..., RunConfig]


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in metrics(folder) if row["kind"] == kind]


def test_the_folder_of_a_run(config: MakeConfig) -> None:
    wanted = config()
    folder = train(wanted, evaluate=evaluate, sample=sample, reporter=Silent())
    assert folder == Path(str(wanted.out))
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json", "environment.json", "data.json", "metrics.jsonl", "samples.jsonl", "checkpoints", "model", "result.json",
    }  # fmt: skip
    assert RunConfig.load(folder) == wanted
    result = json.loads((folder / "result.json").read_text())
    assert result.keys() == {
        "run", "steps", "tokens", "valid_bits_per_byte", "valid_bits_per_byte_memory_zeroed", "tokens_per_second",
    }  # fmt: skip
    assert (result["run"], result["steps"], result["tokens"]) == (str(folder), 8, 8 * 2 * 16)
    assert result["valid_bits_per_byte"] == rows_of(folder, "eval")[-1]["bits_per_byte"]
    assert [row["step"] for row in rows_of(folder, "train")] == [3, 6, 8]
    assert [row["step"] for row in rows_of(folder, "eval")] == [4, 8]
    assert [json.loads(line)["step"] for line in (folder / "samples.jsonl").read_text().splitlines()] == [
        4,
        8,
    ]
    assert not list(folder.rglob("*.partial")) and not list(folder.rglob("*.pt"))


def test_the_exported_model_is_the_last(config: MakeConfig) -> None:
    folder = train(config(), reporter=Silent())
    exported = load_model(folder / "model")
    held = read_checkpoint(last_checkpoint(folder)).read()
    for name, value in exported.named_parameters():
        assert torch.equal(value, held[name]), name


def test_a_training_row_says_what_happened(config: MakeConfig) -> None:
    folder = train(config(log_every=1), reporter=Silent())
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["kind"] == "train" and row["step"] == 8 and row["tokens"] == 8 * 32
    data = json.loads((folder / "data.json").read_text())["train"]
    assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2) * data["tokens"] / data["bytes"])
    assert len(row["openness"]) == 2 and all(0 <= share <= 1 for share in row["openness"])
    assert row["gradient_norm"] > 0 and row["tokens_per_second"] > 0 and row["seconds_left"] == 0


def test_training_learns(config: MakeConfig) -> None:
    folder = train(config(steps=60, lr=0.02, log_every=20, checkpoint_every=60), reporter=Silent())
    losses = [row["loss"] for row in rows_of(folder, "train")]
    assert losses[-1] < losses[0] - 0.5


def test_bfloat16_learns_as_float32_does(config: MakeConfig) -> None:
    """Weights cast for the first update used to serve for all: autocast keeps them inside another autocast."""
    losses = []
    for dtype in ("float32", "bfloat16"):
        wanted = config(dtype, dtype=dtype, steps=30, lr=0.02, log_every=10, checkpoint_every=60)
        folder = train(dataclasses.replace(wanted, model={**wanted.model, "dropout": 0.0}), reporter=Silent())
        losses.append([row["loss"] for row in rows_of(folder, "train")])
    assert losses[1] == pytest.approx(losses[0], abs=0.1)
    assert losses[0][-1] < losses[0][0] - 1


def test_the_arithmetic_is_told_before_the_first_step(config: MakeConfig) -> None:
    reporter = Spoken()
    folder = train(config(accumulate=3), reporter=reporter)
    said = reporter.said[0]
    tokens = json.loads((folder / "data.json").read_text())["train"]["tokens"]
    parameters = sum(parameter.numel() for parameter in load_model(folder / "model").parameters())
    assert "2 rows x 16 tokens x 3 windows = 96 tokens" in said
    assert f"8 steps = 768 tokens = {768 / tokens:.2f} epochs" in said
    assert f"{parameters:,} parameters" in said and "cpu (asked for)" in said


def test_evaluating_and_sampling_leave_the_training_as_it_is(config: MakeConfig) -> None:
    """The stand-ins draw from every generator; dropout would show it."""
    plain = train(config("plain", eval_every=1, sample_every=1), reporter=Silent())
    watched = train(
        config("watched", eval_every=1, sample_every=1), evaluate=evaluate, sample=sample, reporter=Silent()
    )
    assert rows_of(plain, "train") == rows_of(watched, "train")
    assert_same_tensors(last_checkpoint(plain), last_checkpoint(watched))


def test_the_best_checkpoint_outlives_the_newest(config: MakeConfig) -> None:
    scores = iter([math.nan, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])

    def scripted(*_: Any, **__: Any) -> dict[str, float]:
        return {"bits_per_byte": next(scores)}

    folder = train(
        config(eval_every=1, checkpoint_every=1, keep_last=3), evaluate=scripted, reporter=Silent()
    )
    kept = [read_checkpoint(path).step for path in list_checkpoints(folder / "checkpoints")]
    assert kept == [2, 6, 7, 8]
    counters = read_checkpoint(last_checkpoint(folder)).values["counters"]
    assert (counters["best_step"], counters["best_score"]) == (2, 1.0)


def test_a_best_evaluation_is_saved_at_once(config: MakeConfig) -> None:
    scores = iter([3.0, 1.0, 2.0])

    def scripted(*_: Any, **__: Any) -> dict[str, float]:
        return {"bits_per_byte": next(scores)}

    folder = train(
        config(eval_every=3, checkpoint_every=100, keep_last=3), evaluate=scripted, reporter=Silent()
    )
    assert [read_checkpoint(path).step for path in list_checkpoints(folder / "checkpoints")] == [3, 6, 8]


def test_a_folder_that_holds_a_run_is_not_overwritten(config: MakeConfig) -> None:
    train(config(), reporter=Silent())
    with pytest.raises(ValueError, match="already holds a run: resume it with --resume"):
        train(config(), reporter=Silent())


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a configuration nor a run"):
        train(reporter=Silent())


def test_without_a_name_the_run_gets_one(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = train(dataclasses.replace(config(steps=1), out=None), reporter=Silent())
    assert folder.parent == Path("runs") and folder.name.startswith("tiny-recommended-")


def test_it_runs_outside_the_main_thread(config: MakeConfig) -> None:
    """Signals can only be caught in the main thread; elsewhere a run must do without."""
    thread = threading.Thread(target=lambda: train(config(steps=1), reporter=Silent()))
    thread.start()
    thread.join()
    assert (Path(str(config().out)) / "result.json").exists()


class Broken(LanguageModel):
    """Gives hidden vectors that are not finite in some calls."""

    calls = 0
    broken: range = range(0)

    def hidden(self, *arguments: Any, **more: Any) -> Any:
        hidden, state = super().hidden(*arguments, **more)
        Broken.calls += 1
        return (hidden * math.nan if Broken.calls in Broken.broken else hidden), state


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Callable[[range], None]:
    def plan(calls: range) -> None:
        monkeypatch.setattr(Broken, "calls", 0)
        monkeypatch.setattr(Broken, "broken", calls)
        monkeypatch.setattr("rmat.training.run.LanguageModel", Broken)

    return plan


def test_a_few_broken_losses_are_skipped_and_counted(
    config: MakeConfig, breaks: Callable[[range], None]
) -> None:
    breaks(range(3, 5))
    folder = train(config(log_every=1, max_nonfinite=2), reporter=Silent())
    assert [(row["step"], row["so_far"]) for row in rows_of(folder, "skipped")] == [(3, 1), (4, 2)]
    losses = {row["step"]: row["loss"] for row in rows_of(folder, "train")}
    assert losses[3] is None and losses[4] is None and losses[5] > 0
    assert all(torch.isfinite(value).all() for value in load_model(folder / "model").parameters())


def test_a_validation_or_sample_of_broken_numbers_is_noted_and_does_not_end_the_run(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Evaluated(LanguageModel):
        def hidden(self, *arguments: Any, **more: Any) -> Any:
            hidden, state = super().hidden(*arguments, **more)
            return (hidden if self.training else hidden * math.inf), state

    monkeypatch.setattr("rmat.training.run.LanguageModel", Evaluated)
    folder = rmat.train(config(steps=4, eval_every=2, sample_every=2), reporter=Silent())
    found = rows_of(folder, "eval")
    assert [row["step"] for row in found] == [2, 4]
    for row in (*found, json.loads((folder / "result.json").read_text())):
        bits = [value for name, value in row.items() if "bits_per_byte" in name]
        assert len(bits) == 2 and all(value is None or math.isnan(value) for value in bits)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert all("the model's output is not finite" in row["text"] for row in samples) and samples


def test_too_many_broken_losses_stop_the_run_with_a_sentence(
    config: MakeConfig, breaks: Callable[[range], None]
) -> None:
    breaks(range(3, 99))
    words = (
        r"the loss is not finite at step 5, and 3 updates were skipped.*train.max_nonfinite=2.*lower train.lr"
    )
    with pytest.raises(NonFiniteError, match=words):
        train(config(max_nonfinite=2), reporter=Silent())
    folder = Path(str(config().out))
    assert not (folder / "result.json").exists()
    assert read_checkpoint(last_checkpoint(folder)).step == 4


def test_a_time_budget_ends_the_run_and_its_learning_rate(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on a hundredth of a second whenever it is read."""
    ticks = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 100))
    folder = train(
        config(steps=10**6, max_minutes=0.01, log_every=1, warmup_steps=0, min_lr_ratio=0.0),
        reporter=Silent(),
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert 0.6 <= rows[-1]["elapsed"] < 0.7
    assert rows[-1]["lr"] < 0.5 * rows[0]["lr"]
    assert json.loads((folder / "result.json").read_text())["steps"] == rows[-1]["step"] < 10**6
    steps = rows[-1]["step"]
    train(resume=folder, reporter=Silent())
    assert json.loads((folder / "result.json").read_text())["steps"] == steps, (
        "the time used before was forgotten"
    )


def test_compile_compiles_every_block(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    train(config("plain"), reporter=Silent())
    assert not compiled
    train(config("compiled", compile=True), reporter=Silent())
    assert len(compiled) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda' but torch sees no GPU"):
        train(config(device="cuda"), reporter=Silent())


def test_without_validation_text_the_model_is_trained_and_exported(config: MakeConfig) -> None:
    wanted = config()
    wanted = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, valid_share=0.0))
    reporter = Spoken()

    def fail(*arguments: Any, **options: Any) -> dict[str, float]:
        raise ValueError("there is no text to score")

    folder = train(wanted, evaluate=fail, reporter=reporter)
    assert load_model(folder / "model").config == wanted.model_config(265)
    assert json.loads((folder / "result.json").read_text())["valid_bits_per_byte"] is None
    assert not rows_of(folder, "eval") and any("nothing is evaluated" in said for said in reporter.said)
