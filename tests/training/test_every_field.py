"""No setting is without effect."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmat.settings import field_types
from rmat.training.checkpoint import list_checkpoints
from rmat.training.config import TrainConfig
from rmat.training.loop import train
from rmat.training.progress import Silent
from rmat.training.records import JsonLines
from tests.makers.runs import evaluate, make_config, metrics, sample

NEEDS: dict[str, Any] = {"decay_share": {"schedule": "wsd"}, "keep_last": {"checkpoint_every": 2}}
"""Settings without which a field has no effect."""

CHANGED: dict[str, Any] = {
    "steps": 9,
    "batch_size": 3,
    "window": 17,
    "accumulate": 2,
    "lr": 1e-3,
    "min_lr_ratio": 0.5,
    "warmup_steps": 1,
    "schedule": "wsd",
    "decay_share": 0.7,
    "optimizer": "muon",
    "weight_decay": 0.5,
    "beta1": 0.5,
    "beta2": 0.5,
    "clip": 0.01,
    "z_loss": 0.1,
    "dtype": "bfloat16",
    "seed": 4,
    "eval_every": 2,
    "eval_bytes": 1000,
    "sample_every": 2,
    "log_every": 1,
    "checkpoint_every": 1,
    "keep_last": 3,
    "carry_state": False,
}
ELSEWHERE = {
    *("max_minutes", "max_nonfinite", "compile", "device", "checkpoint_blocks", "parallel", "track"),
    "context_parallel",
}
"""Fields with a test of their own."""


def outcome(folder: Path) -> Any:
    """All that a run leaves behind, but for times."""
    kept = [path.name for path in list_checkpoints(folder / "checkpoints")]
    return metrics(folder), JsonLines(folder / "samples.jsonl").rows(), kept


def test_no_field_is_forgotten() -> None:
    assert set(CHANGED) | ELSEWHERE == set(field_types(TrainConfig))


@pytest.fixture(scope="module")
def outcome_of(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """What a run with the given settings leaves behind; equal settings are run once."""

    @functools.cache
    def run(**fields: Any) -> Any:
        out = tmp_path_factory.mktemp("fields") / "run"
        wanted = make_config(texts, out, **{"checkpoint_every": 5, **fields})
        return outcome(train(wanted, evaluate=evaluate, sample=sample, reporter=Silent()))

    return run


@pytest.mark.parametrize("name", CHANGED)
def test_every_field_changes_something(outcome_of: Callable[..., Any], name: str) -> None:
    needed = NEEDS.get(name, {})
    assert outcome_of(**needed) != outcome_of(**{**needed, name: CHANGED[name]})
