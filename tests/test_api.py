"""The front door: what it refuses before any work is done."""

from pathlib import Path

import pytest

import rmat


@pytest.mark.parametrize("config", ["runs/demo", {"preset": "tiny"}, None])
def test_training_takes_a_run_config(config: object) -> None:
    with pytest.raises(ValueError, match="give a RunConfig"):
        rmat.train(config)  # type: ignore[arg-type]


def test_loading_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model in"):
        rmat.load(tmp_path)
