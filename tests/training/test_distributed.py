"""One process equals many: the same rows, the same losses, the same resume (contract 14)."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from rmat import api
from rmat.data.config import DataConfig
from rmat.storage import load_model
from rmat.training.checkpoint import read_checkpoint
from rmat.training.config import RunConfig, TrainConfig
from rmat.training.distributed import Processes, joined, refuse_sharing, restarted
from rmat.training.loop import train
from rmat.training.progress import Silent
from tests.makers.runs import assert_same_tensors, last_checkpoint, metrics
from tests.makers.together import together

MakeConfig = Callable[..., RunConfig]

PLAIN = {"dropout": 0.0}
FIELDS: dict[str, Any] = {
    "steps": 50,
    "batch_size": 4,
    "log_every": 1,
    "eval_every": 25,
    "sample_every": 0,
    "checkpoint_every": 50,
    "eval_bytes": 3000,
}


def trained(config: dict[str, Any], resume: str | None = None) -> None:
    """Train in this process, with the evaluation that the command has."""
    wanted = RunConfig.from_dict(config)
    train(wanted, resume=None if resume is None else Path(resume), evaluate=api.evaluate, reporter=Silent())


def plain(make: MakeConfig, name: str, model: dict[str, Any] | None = None, **fields: Any) -> RunConfig:
    wanted = make(name, **{**FIELDS, **fields})
    return dataclasses.replace(wanted, model={**wanted.model, **PLAIN, **(model or {})})


def assert_close(one: Path, many: Path, within: float) -> None:
    """All numbers of the metrics are equal to rounding."""
    left, right = metrics(one), metrics(many)
    assert [(row["kind"], row["step"]) for row in left] == [(row["kind"], row["step"]) for row in right]
    for a, b in zip(left, right, strict=True):
        for name, value in a.items():
            if value is None:
                assert b[name] is None
            elif name in ("loss", "bits_per_byte", "nats", "openness"):
                assert b[name] == pytest.approx(value, rel=within, abs=within), (a["step"], name)
            elif name == "tokens":
                assert b[name] == value


def trained_each(configs: list[dict[str, Any]]) -> None:
    """One run after the other in the same processes, which find each other anew every time."""
    for config in configs:
        trained(config)


def test_two_processes_train_as_one(config: MakeConfig) -> None:
    """With documents that begin anywhere, windows that are accumulated, and evaluations that are shared: each
    with rows of its own, and each with a part of every row."""
    fields = {"steps": 25, "accumulate": 2, "dtype": "float64", "window": 40}
    one, rows, parts = (
        plain(config, name, **fields, **more)
        for name, more in (("one", {}), ("rows", {}), ("parts", {"context_parallel": 2}))
    )
    trained(one.to_dict())
    together(2, trained_each, [rows.to_dict(), parts.to_dict()])
    for many in (rows, parts):
        assert_close(Path(str(one.out)), Path(str(many.out)), 1e-12)


SHARING = {
    "muon": (4, 2, "fsdp", "recommended", {}, {"optimizer": "muon", "window": 100}),
    "weakest": (
        *(3, 3, "fsdp", "recommended", {"eviction": "weakest"}),
        {"checkpoint_blocks": True, "window": 37, "accumulate": 2},
    ),
    "both gates": (
        *(2, 2, "ddp", "recommended", {"gate": "both", "tie_embeddings": False}),
        {"carry_state": False, "window": 21},
    ),
    "admitted": (4, 4, "fsdp", "admitted", {"write_cost": 1e-3}, {"window": 70}),
    "weakest admitted": (
        *(4, 2, "ddp", "admitted", {"eviction": "weakest", "memory_layers": None}),
        {"window": 50, "z_loss": 1e-3, "checkpoint_blocks": True},
    ),
    "xl": (3, 3, "ddp", "xl", {}, {"window": 64}),
    "few segments": (4, 4, "ddp", "local", {}, {"window": 5}),
    "segments seldom close": (3, 3, "fsdp", "recommended", {}, {"window": 3, "batch_size": 2}),
    "segments seldom close, ddp": (2, 2, "ddp", "admitted", {}, {"window": 2, "batch_size": 1}),
    "budget": (4, 2, "ddp", "recommended", {"write_cost": 0.1, "write_budget": 0.2}, {"window": 37}),
    "tasks": (
        2,
        2,
        "fsdp",
        "recommended",
        {},
        {"window": 40, "specs": ("recall:from=20", "mqar:pairs=2,length=16,vocabulary=32")},
    ),
}
"""Processes, those that share a row, how weights are held; variant, model, training and data."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "context", "parallel", "variant", "model", "fields"), SHARING.values(), ids=SHARING
)
def test_processes_that_share_rows_train_as_one(
    config: MakeConfig,
    count: int,
    context: int,
    parallel: str,
    variant: str,
    model: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    fields = {"dtype": "float64", "steps": 12, **fields}
    specs = fields.pop("specs", None)
    one, many = (
        dataclasses.replace(plain(config, name, model, **fields, **more), variant=variant)
        for name, more in (("one", {}), ("many", {"context_parallel": context, "parallel": parallel}))
    )
    if specs:
        one, many = (dataclasses.replace(each, data=DataConfig(specs=specs)) for each in (one, many))
    trained(one.to_dict())
    together(count, trained, many.to_dict(), timeout=300)
    assert_same_end(Path(str(one.out)), Path(str(many.out)), 1e-12)


def in_parts(config: MakeConfig, counts: tuple[int, int], name: str = "parts", **fields: Any) -> Path:
    """A run of which the first half is trained by so many processes, the other half by so many others."""
    constant = {"min_lr_ratio": 1.0, "warmup_steps": 0, "log_every": 2, "eval_every": 0, **fields}
    wanted = plain(config, name, steps=6, checkpoint_every=3, **constant)
    for count in counts:
        resume = str(wanted.out) if (Path(str(wanted.out)) / "config.json").exists() else None
        if count == 1:
            trained(wanted.to_dict(), resume)
        else:
            together(count, trained, wanted.to_dict(), resume)
        wanted = plain(config, name, steps=12, checkpoint_every=3, **constant)
    return Path(str(wanted.out))


def assert_same_end(one: Path, many: Path, within: float) -> None:
    """Metrics, weights, optimisers and what rows carry are equal to rounding."""
    assert_close(one, many, within)
    left, right = (read_checkpoint(last_checkpoint(folder)) for folder in (one, many))
    shared = left.tensors.keys() & right.tensors.keys()
    assert {
        name for name in left.tensors.keys() ^ right.tensors.keys() if not name.startswith("torch.")
    } == set()
    held = [each.read(lambda name: name in shared and name != "torch") for each in (left, right)]
    for name, x in held[0].items():
        torch.testing.assert_close(held[1][name], x, rtol=100 * within, atol=100 * within, msg=name)
    weights = [load_model(folder).state_dict() for folder in (one, many)]
    for name, x in weights[0].items():
        torch.testing.assert_close(weights[1][name], x, rtol=100 * within, atol=100 * within, msg=name)


def test_two_processes_with_shares_of_the_weights_go_on_as_one(config: MakeConfig) -> None:
    """Muon among them, whose matrices are gathered; and a batch that cannot be halved."""
    fields = {"dtype": "float64", "optimizer": "muon", "batch_size": 3}
    one = in_parts(config, (1, 1), "one", **fields)
    assert_same_end(one, in_parts(config, (2, 1), parallel="fsdp", **fields), 1e-12)


DOUBLE: dict[str, Any] = {"dtype": "float64"}
SPREAD = {
    **{
        f"muon, {count} {parallel}": (
            count,
            parallel,
            1e-12,
            {},
            {**DOUBLE, "accumulate": 2, "optimizer": "muon"},
        )
        for count in (2, 4)
        for parallel in ("ddp", "fsdp")
    },
    "blocks again": (
        *(4, "ddp", 1e-12, {"write_cost": 1e-3}),
        {**DOUBLE, "checkpoint_blocks": True, "window": 24, "clip": 0.05},
    ),
    "blocks again, fsdp": (2, "fsdp", 1e-12, {}, {**DOUBLE, "checkpoint_blocks": True, "window": 24}),
    "uneven": (
        *(4, "fsdp", 1e-12, {"tie_embeddings": False}),
        {**DOUBLE, "carry_state": False, "batch_size": 7},
    ),
    "segments seldom close": (4, "fsdp", 1e-12, {}, {**DOUBLE, "window": 3}),
    "segments seldom close, ddp": (2, "ddp", 1e-12, {}, {**DOUBLE, "window": 3}),
    "budget": (
        *(3, "fsdp", 1e-12, {"write_cost": 0.1, "write_budget": 0.2}),
        {**DOUBLE, "checkpoint_blocks": True, "window": 20, "batch_size": 5},
    ),
    "price of what nobody reads": (
        *(2, "ddp", 1e-12, {"write_from": "output", "write_cost": 1e-2}),
        {**DOUBLE, "window": 20, "steps": 15, "batch_size": 5},
    ),
    "float32": (4, "ddp", 1e-6, {}, {"accumulate": 2}),
    "muon in float32": (2, "fsdp", 1e-6, {}, {"optimizer": "muon"}),
    "bfloat16": (2, "fsdp", 1e-3, {}, {"dtype": "bfloat16", "steps": 10}),
}
"""Processes, how weights are held, how equal losses are; model and training."""


@pytest.mark.slow
@pytest.mark.parametrize(("count", "parallel", "within", "model", "fields"), SPREAD.values(), ids=SPREAD)
def test_many_processes_train_as_one(
    config: MakeConfig,
    count: int,
    parallel: str,
    within: float,
    model: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    one, many = (plain(config, name, model, **fields) for name in ("one", "many"))
    many = dataclasses.replace(many, train=dataclasses.replace(many.train, parallel=parallel))
    trained(one.to_dict())
    together(count, trained, many.to_dict(), timeout=300)
    assert_close(Path(str(one.out)), Path(str(many.out)), within)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "admitted", "xl", "local"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_every_kind_of_memory_trains_as_one(config: MakeConfig, variant: str, parallel: str) -> None:
    fields = {"steps": 20, "dtype": "float64", "window": 20}
    one, many = (
        dataclasses.replace(plain(config, name, **fields, **more), variant=variant)
        for name, more in (("one", {}), ("many", {"parallel": parallel}))
    )
    trained(one.to_dict())
    together(2, trained, many.to_dict(), timeout=300)
    assert_close(Path(str(one.out)), Path(str(many.out)), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_tasks_are_trained_as_in_one(config: MakeConfig, parallel: str) -> None:
    """Their rows are of different lengths, and each process makes its own."""
    fields = {"steps": 20, "dtype": "float64", "window": 40}
    runs = []
    for name, more in (("one", {}), ("many", {"parallel": parallel})):
        wanted = plain(config, name, **fields, **more)
        data = DataConfig(specs=("recall:from=20", "mqar:pairs=2,length=16,vocabulary=32"))
        runs.append(dataclasses.replace(wanted, data=data))
    trained(runs[0].to_dict())
    together(2, trained, runs[1].to_dict(), timeout=300)
    assert_close(Path(str(runs[0].out)), Path(str(runs[1].out)), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_updates_that_score_nothing_are_as_in_one(config: MakeConfig, tmp_path: Path, parallel: str) -> None:
    """Of dialogues only answers are scored, and a short window may hold none, in all rows."""
    said = [
        [{"role": "user", "content": "ask " * number}, {"role": "assistant", "content": "so " * (number % 3)}]
        for number in range(1, 31)
    ]
    talk = tmp_path / "talk.jsonl"
    talk.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in said))
    runs = []
    for name, more in (("one", {}), ("many", {"parallel": parallel})):
        wanted = plain(config, name, steps=20, batch_size=2, accumulate=2, window=3, dtype="float64", **more)
        data = dataclasses.replace(wanted.data, specs=(str(talk),), assistant_only_loss=True)
        runs.append(dataclasses.replace(wanted, data=data))
    trained(runs[0].to_dict())
    together(2, trained, runs[1].to_dict(), timeout=300)
    losses = [row["loss"] for row in metrics(Path(str(runs[0].out))) if row["kind"] == "train"]
    assert None in losses and any(losses)
    assert_same_end(Path(str(runs[0].out)), Path(str(runs[1].out)), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(4, 1), (4, 2), (1, 4), (2, 4)])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_checkpoint_of_some_processes_is_resumed_by_others(
    config: MakeConfig, counts: tuple[int, int], parallel: str
) -> None:
    fields = {"dtype": "float64", "optimizer": "muon"}
    one = in_parts(config, (1, 1), "one", **fields)
    parts = in_parts(config, counts, **fields, **({"parallel": parallel} if 1 not in counts else {}))
    assert_same_end(one, parts, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_as_many_processes_go_on_bit_for_bit(config: MakeConfig, parallel: str) -> None:
    """With dropout, which each process draws for its rows from a generator of its own."""
    constant = {"min_lr_ratio": 1.0, "warmup_steps": 0, "eval_every": 0, "log_every": 2, "parallel": parallel}
    ends = []
    for name, halves in (("whole", (12,)), ("parts", (6, 12))):
        for steps in halves:
            wanted = config(name, **{**FIELDS, **constant, "steps": steps, "checkpoint_every": 6})
            resume = str(wanted.out) if (Path(str(wanted.out)) / "config.json").exists() else None
            together(2, trained, wanted.to_dict(), resume, timeout=300)
        ends.append(last_checkpoint(Path(str(wanted.out))))
    assert_same_tensors(*ends)


def test_several_processes_of_fsdp_need_a_newer_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.11 has no sum over processes of which only some use a weight; one process does without."""
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params")
    started = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    refused = pytest.raises(ValueError, match=r"'fsdp' with 2 processes, and torch .* take a newer torch")
    with refused, joined(TrainConfig(parallel="fsdp")):
        pass


def test_a_process_without_rows_is_refused(config: MakeConfig) -> None:
    processes = Processes(rank=0, count=4)
    assert [len(Processes(rank, 4).rows(7)) for rank in range(4)] == [2, 2, 2, 1]
    with pytest.raises(ValueError, match=r"batch_size is 5: 4 processes take 2 rows each.*multiple of 4"):
        processes.rows(5)


def test_processes_that_share_rows_are_those_that_can(config: MakeConfig) -> None:
    def refused(match: str, **fields: Any) -> None:
        model, variant = fields.pop("model", {}), fields.pop("variant", "recommended")
        wanted = dataclasses.replace(config("refused", model=model, **fields), variant=variant)
        with pytest.raises(ValueError, match=match):
            refuse_sharing(wanted.model_config(300), wanted.train)

    refused("write_from='output' cannot be read in parts", variant="paper", context_parallel=2)
    refused("train.compile is true and train.context_parallel 2", compile=True, context_parallel=2)
    wanted = config("alone", context_parallel=3)
    with pytest.raises(ValueError, match=r"context_parallel is 3 and the number of processes 1: .* multiple"):
        trained(wanted.to_dict())
    assert not Path(str(wanted.out)).exists()


def test_a_run_that_torchrun_may_start_anew_needs_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ValueError, match="give --out DIR"):
        restarted(None)
    assert not restarted("somewhere")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted("somewhere")
