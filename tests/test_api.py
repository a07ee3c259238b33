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


def test_an_unknown_keyword_names_the_nearest() -> None:
    for call, given, near in (
        (rmat.RunConfig, "vairant", "variant"),
        (rmat.RunConfig, "steps", "train.steps"),
        (rmat.TrainConfig, "stesp", "steps"),
        (rmat.DataConfig, "tokeniser", "tokenizer"),
        (rmat.train, "resum", "resume"),
    ):
        with pytest.raises(TypeError, match=f"takes no '{given}': did you mean '{near}'"):
            call(**{given: 1})  # type: ignore[operator]


def test_what_dir_lists_is_the_api() -> None:
    assert dir(rmat) == sorted(rmat.__all__)
