"""`rmat train --from`: training that goes on from a model there is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rmat.api import load
from rmat.model import LanguageModel, ModelConfig
from rmat.training.checkpoint import newest_sound_checkpoint
from rmat.training.loop import train
from tests.cli.conftest import TOY, Rmat

TRAIN = [word for word in TOY if word.startswith("train.")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder)[0].state_dict()


@pytest.fixture
def command(run_folder: Path, workplace: Path, tmp_path: Path) -> list[str]:
    data = str(workplace / "texts")
    return ["train", "--from", str(run_folder), "--data", data, "--out", str(tmp_path / "new"), *TRAIN]


def test_it_begins_with_the_weights_and_the_tokenizer(
    rmat: Rmat, command: list[str], run_folder: Path, tmp_path: Path
) -> None:
    """One update with a learning rate too small to see."""
    assert rmat(*command, "train.lr=1e-30", "train.weight_decay=0").status == 0
    before, after = weights(run_folder), weights(tmp_path / "new")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = (load(folder)[1] for folder in (run_folder, tmp_path / "new"))
    assert old is not None and new is not None and old.fingerprint == new.fingerprint
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["start"] == str(run_folder) and config["model"]["d_model"] == 16


def test_it_learns_and_what_acts_in_training_may_differ(
    rmat: Rmat, command: list[str], run_folder: Path, tmp_path: Path
) -> None:
    assert rmat(*command, "model.gate_noise=0.5", "model.write_cost=0.1").status == 0
    model, _ = load(tmp_path / "new")
    assert (model.config.gate_noise, model.config.write_cost) == (0.5, 0.1)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(weights(run_folder).values(), model.state_dict().values(), strict=True)
    )


def test_a_setting_that_needs_another_may_find_it_in_the_model(
    rmat: Rmat, command: list[str], tmp_path: Path
) -> None:
    assert rmat(*command, "model.write_cost=0.1").status == 0
    command[2], command[6] = str(tmp_path / "new"), str(tmp_path / "newer")
    assert rmat(*command, "model.write_budget=0.5").status == 0
    config = load(tmp_path / "newer")[0].config
    assert (config.write_cost, config.write_budget) == (0.1, 0.5)


def test_its_banks_may_be_others(
    rmat: Rmat, command: list[str], run_folder: Path, workplace: Path, tmp_path: Path
) -> None:
    before, tokenizer = load(run_folder)
    slots = before.config.n_slots + 5
    assert rmat(*command, f"model.n_slots={slots}", "model.eviction=weakest", "train.lr=1e-30").status == 0
    after, _ = load(tmp_path / "new")
    assert (after.config.n_slots, after.config.eviction) == (slots, "weakest")
    assert before.state_dict().keys() == after.state_dict().keys()
    placed = ModelConfig.from_dict({**before.config.to_dict(), "memory_position": "rank"})
    LanguageModel(placed).save(tmp_path / "placed", tokenizer)
    command[2], command[6] = str(tmp_path / "placed"), str(tmp_path / "newer")
    assert f"model.n_slots is {slots} but the model in " in rmat(*command, f"model.n_slots={slots}").refused()
    assert rmat(*command, "model.eviction=weakest").status == 0


def test_a_model_that_comes_with_the_package_by_its_name(rmat: Rmat, workplace: Path, tmp_path: Path) -> None:
    data, out = str(workplace / "texts"), str(tmp_path / "new")
    done = rmat("train", "--from", "starter", "--data", data, "--out", out, *TRAIN, "train.lr=1e-30")
    assert done.status == 0, done.err
    before, after = weights(Path("starter")), weights(tmp_path / "new")
    assert all(torch.allclose(before[name].float(), after[name].float(), atol=1e-6) for name in before)


def test_an_interrupted_run_resumes_without_the_model_it_began_with(
    rmat: Rmat, command: list[str], run_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    command[2] = str(copy)
    assert rmat(*command).status == 0
    shutil.rmtree(copy)
    assert rmat("train", "--resume", tmp_path / "new", "train.steps=8", "--json").json["steps"] == 8


def test_without_a_checkpoint_a_resumed_run_begins_with_the_model_again(
    rmat: Rmat, command: list[str], run_folder: Path, tmp_path: Path
) -> None:
    assert rmat(*command, "train.lr=1e-30", "train.weight_decay=0").status == 0
    for checkpoint in (tmp_path / "new" / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    assert newest_sound_checkpoint(tmp_path / "new" / "checkpoints", print) is None
    train(resume=tmp_path / "new")
    before, after = weights(run_folder), weights(tmp_path / "new")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.d_model=32"], "model.d_model is 32 but the model in "),
        (["model.n_layers=9"], "model.n_layers is 9 but"),
        (["model.gate_noise=0.5", "model.n_layers=9"], "model.n_layers is 9 but"),
        (["model.n_slots=1"], "ModelConfig.writes_per_segment="),
        (["model.gate_noise=-1"], "ModelConfig.gate_noise=-1.0 is not possible"),
        (["model.streams=full,memory"], "model.streams is ('full', 'memory') but"),
        (["model.gate_bias=-1"], "model.gate_bias is where gates of random weights start"),
        (["data.tokenizer=bpe:300"], "data.tokenizer is 'bpe:300' but training starts from"),
        (["--preset", "small"], "leave preset and variant out"),
        (["--variant", "xl"], "leave preset and variant out"),
        (["--resume", "run"], "leave out --preset, --variant, --from"),
    ],
)
def test_mistakes_are_one_sentence(
    rmat: Rmat, command: list[str], words: list[Any], sentence: str, tmp_path: Path
) -> None:
    assert sentence in rmat(*command, *words).refused()
    assert not (tmp_path / "new").exists(), "nothing was made"


def test_no_model_is_one_sentence(rmat: Rmat, command: list[str], tmp_path: Path) -> None:
    command[2] = str(tmp_path / "nothing")
    assert "no model at" in rmat(*command).refused()
