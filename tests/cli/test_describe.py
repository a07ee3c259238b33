from pathlib import Path

import pytest

from rmat.api import load
from rmat.model import LanguageModel, ModelConfig
from tests.cli.conftest import Rmat

KEYS = {"parameters", "flops_per_token_train", "flops_per_token_decode", "state_bytes", "horizon_tokens"}


@pytest.mark.parametrize("variant", ["recommended", "paper", "local", "xl", "full"])
def test_a_preset(rmat: Rmat, variant: str) -> None:
    result = rmat("describe", "tiny", "--variant", variant, "--json", "vocab_size=300").json
    model = LanguageModel(ModelConfig.preset("tiny", variant=variant, vocab_size=300))
    assert set(result) >= KEYS
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert result["state_bytes"] == model.initial_state(batch_size=1).nbytes
    assert (result["horizon_tokens"] is None) == (variant == "recommended")
    assert ModelConfig.from_dict(result["config"]) == model.config


def test_settings_of_every_type(rmat: Rmat) -> None:
    settings = ["streams=full,memory", "rope_theta=500", "tie_embeddings=false", "writer=pool", "d_model=64"]
    config = rmat("describe", "tiny", *settings, "--json").json["config"]
    assert (config["streams"], config["rope_theta"], config["tie_embeddings"]) == (
        ["full", "memory"],
        500.0,
        False,
    )


def test_a_run_and_its_model(rmat: Rmat, run_folder: Path) -> None:
    of_run = rmat("describe", run_folder, "--json").json
    assert of_run == rmat("describe", run_folder / "model", "--json").json
    assert of_run["config"]["d_model"] == 16


def test_a_model_that_comes_along(rmat: Rmat) -> None:
    model, _ = load("starter")
    assert rmat("describe", "starter", "--json").json["config"] == model.config.to_dict()


def test_a_table_for_people(rmat: Rmat) -> None:
    outcome = rmat("describe", "tiny")
    assert outcome.status == 0 and "parameters" in outcome.out and "d_model" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "MODEL_OR_PRESET"),
        (["tinny"], "nearest is 'tiny'"),
        (["startr"], "nearest is 'starter'"),
        (["starter", "d_model=3"], "configuration is fixed"),
        (["tiny", "d_modle=3"], "did you mean 'd_model'"),
        (["tiny", "d_model=x"], "d_model='x' is not possible"),
        (["tiny", "d_model=3"], "head"),
        (["tiny", "--variant", "papr"], "paper"),
        (["MODEL", "d_model=3"], "configuration is fixed"),
        (["EMPTY"], "no model in"),
    ],
)
def test_mistakes_are_one_sentence(
    rmat: Rmat, run_folder: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    places = {"MODEL": str(run_folder), "EMPTY": str(tmp_path)}
    assert sentence in rmat("describe", *(places.get(word, word) for word in arguments)).refused()
