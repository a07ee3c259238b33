"""Fixtures of the training tests; the runs they make are in `runs.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmat.training.config import RunConfig
from tests.makers.runs import make_config, write_texts


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "texts"
    write_texts(folder)
    return folder


@pytest.fixture
def config(texts: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Makes the configuration of a tiny run: config("name of its folder", **fields of TrainConfig)."""

    def make(name: str = "run", **fields: Any) -> RunConfig:
        return make_config(texts, tmp_path / name, **fields)

    return make
