"""A run depends on nothing around it in the process, and leaves it as it was."""

import dataclasses
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rmat.api
from rmat.data.config import DataConfig
from rmat.storage import load_model
from rmat.training.config import RunConfig
from rmat.training.loop import train
from rmat.training.progress import Silent, Terminal
from tests.makers.runs import MODEL, assert_same_run, make_config

MakeConfig = Callable[..., RunConfig]


def draws() -> tuple[float, float, float]:
    return float(torch.rand(1)), random.random(), float(np.random.rand())


def test_the_callers_random_numbers_go_on_as_without_the_run(config: MakeConfig) -> None:
    def seed() -> None:
        torch.manual_seed(7), random.seed(7), np.random.seed(7)

    seed()
    expected = draws()
    seed()
    rmat.api.train(config(), reporter=Silent())
    assert draws() == expected
    seed()
    with pytest.raises(ValueError):
        rmat.api.train(dataclasses.replace(config("no"), data=DataConfig(specs=("nowhere",))))
    assert draws() == expected


@pytest.fixture(scope="module")
def plain(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing is set around."""
    folder = tmp_path_factory.mktemp("run") / "plain"
    return rmat.api.train(make_config(texts, folder, sample_every=8), reporter=Silent())


@pytest.mark.parametrize("around", ["float64", "device", "no_grad", "inference_mode", "autocast", "bfloat16"])
def test_what_is_set_around_a_run_does_not_shape_it(config: MakeConfig, plain: Path, around: str) -> None:
    """ "meta" stands in for any other device."""
    contexts: dict[str, Any] = {
        "device": lambda: torch.device("meta"),
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }
    if around in contexts:
        with contexts[around]():
            folder = rmat.api.train(config(sample_every=8), reporter=Silent())
    else:
        torch.set_default_dtype(getattr(torch, around))
        try:
            folder = rmat.api.train(config(sample_every=8), reporter=Silent())
            assert torch.get_default_dtype() == getattr(torch, around)
        finally:
            torch.set_default_dtype(torch.float32)
    assert_same_run(folder, plain)


def test_rows_of_a_task_under_another_default_device(tmp_path: Path) -> None:
    wanted = RunConfig.from_dict(
        {"model": MODEL, "data": {"specs": ["recall:pairs=2,keys=8"]}, "out": str(tmp_path / "r"),
         "train": {"steps": 2, "batch_size": 2, "window": 32, "device": "cpu"}}
    )  # fmt: skip
    with torch.device("meta"):
        folder = rmat.api.train(wanted, reporter=Silent())
        assert {str(value.device) for value in load_model(folder).state_dict().values()} == {"cpu"}


def test_numpy_numbers_are_settings(config: MakeConfig) -> None:
    train_config = dataclasses.replace(
        config().train, steps=np.int64(2), seed=np.uint32(3), lr=np.float32(0.5)
    )
    assert (type(train_config.steps), type(train_config.seed), type(train_config.lr)) == (int, int, float)
    folder = train(dataclasses.replace(config(), train=train_config), reporter=Silent())
    assert RunConfig.load(folder).train == train_config


def test_a_checkpoint_of_another_model_is_refused_without_asserts() -> None:
    """Under `python -O` too, where assert statements are left out. What optimisers, generators and rows hold
    beside the weights is known."""
    code = (
        "import torch\nfrom types import SimpleNamespace as Has\nfrom rmat.training.run import Run\n"
        "names = {'weight': (2, 3), 'odd': (1,), 'weight:step': (), 'torch.1': (9,), 'layers.0.tail': (1,)}\n"
        "tensors = {name: Has(size=torch.Size(size)) for name, size in names.items()}\n"
        "try: Run.restore(Has(model=torch.nn.Linear(2, 2)), Has(tensors=tensors))\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=120)
    wrong = "the checkpoint is of another model: ['bias', 'odd', 'weight'] do not fit"
    assert wrong in done.stdout, done.stderr


class Shut:
    """A standard error whose reader has gone."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise ValueError("I/O operation on closed file")

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("stderr", [None, Shut()])
def test_training_goes_on_where_nobody_reads_its_progress(
    config: MakeConfig, stderr: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config()
    monkeypatch.setattr(sys, "stderr", stderr)
    folder = train(wanted, reporter=Terminal())
    assert (folder / "result.json").exists()


def test_too_little_memory_is_a_sentence(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*arguments: Any) -> Any:
        return torch.empty(2**55)

    monkeypatch.setattr("rmat.training.loop.training_step", step)
    with pytest.raises(
        MemoryError, match=r"^not enough memory for 2 rows of 16 tokens: lower train.batch_size"
    ):
        train(config(), reporter=Silent())


def test_another_error_of_torch_stays_what_it_is(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*arguments: Any) -> Any:
        return torch.zeros(2) @ torch.zeros(3)

    monkeypatch.setattr("rmat.training.loop.training_step", step)
    with pytest.raises(RuntimeError, match="size"):
        train(config(), reporter=Silent())
