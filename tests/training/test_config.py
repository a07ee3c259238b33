"""Settings: typed, checked, refused by their full name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rmat.data.config import DataConfig
from rmat.training.config import RunConfig, TrainConfig, check_resumable


def test_strings_become_the_types_of_their_fields() -> None:
    config = RunConfig.from_dict(
        {
            "preset": "tiny",
            "model": {"n_layers": "3", "streams": "full,memory", "rope_theta": "5000", "null_slot": "no"},
            "data": {"specs": '["a", "b"]', "weights": "1,2.5", "fim_rate": "0.5", "cache_dir": "none"},
            "train": {
                "lr": "1e-3",
                "steps": "7",
                "compile": "true",
                "max_minutes": "None",
                "carry_state": False,
            },
        }
    )
    assert config.model == {
        "n_layers": 3,
        "streams": ("full", "memory"),
        "rope_theta": 5000.0,
        "null_slot": False,
    }
    assert config.data.specs == ("a", "b")
    assert config.data.weights == (1.0, 2.5)
    assert config.data.fim_rate == 0.5
    assert config.data.cache_dir is None
    train = config.train
    assert (train.lr, train.steps, train.compile, train.max_minutes) == (1e-3, 7, True, None)
    assert train.carry_state is False
    assert TrainConfig(max_minutes="2.5").max_minutes == 2.5  # type: ignore[arg-type]


def test_round_trip_through_json() -> None:
    config = RunConfig.from_dict(
        {"model": {"rope_theta": [1e4, 1e4, 5e5, 5e5], "streams": ["full", "memory"]}}
    )
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("given", "wrong", "near"),
    [
        ({"train": {"learning_rates": 1}}, "train.learning_rates", "train."),
        ({"train": {"batchsize": 1}}, "train.batchsize", "train.batch_size"),
        ({"batch_size": 1}, "batch_size", "train.batch_size"),
        ({"train": {"n_layers": 1}}, "train.n_layers", "model.n_layers"),
        ({"model": {"n_layer": 1}}, "model.n_layer", "model.n_layers"),
        ({"data": {"spec": "x"}}, "data.spec", "data.specs"),
        ({"presets": "tiny"}, "presets", "preset"),
        ({"trian": {"lr": 1}}, "trian", "train"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(given: dict[str, Any], wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown setting '{wrong}': did you mean '{near}"):
        RunConfig.from_dict(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train": {"steps": "many"}}, "train.steps='many' is not possible: give a whole number"),
        ({"train": {"steps": 1.5}}, "train.steps=1.5 is not possible: give a whole number"),
        ({"train": {"steps": True}}, "train.steps=True is not possible"),
        ({"train": {"lr": "nan"}}, "train.lr='nan' is not possible: give a number"),
        ({"train": {"compile": "perhaps"}}, "train.compile='perhaps' is not possible: give true or false"),
        (
            {"train": {"schedule": "linear"}},
            "train.schedule='linear' is not possible: give one of cosine, wsd",
        ),
        ({"train": {"max_minutes": "x"}}, "train.max_minutes='x' is not possible: give a number or none"),
        ({"train": 3}, "train=3 is not possible: give a mapping"),
        ({"model": {"streams": "[1"}}, r"model.streams='\[1'"),
        ({"model": {"d_model": "wide"}}, "model.d_model='wide'"),
        ({"preset": "gigantic"}, "gigantic"),
        ({"variant": "fancy"}, "fancy"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunConfig.from_dict(given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("keep_last", 1),
        ("decay_share", 0.0),
        ("min_lr_ratio", 1.5),
        ("beta2", 1.0),
        ("max_minutes", 0.0),
        ("seed", -1),
        ("clip", -1.0),
    ],
)
def test_values_out_of_range_name_field_value_and_remedy(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"train\.{name}={value} is not possible: give "):
        TrainConfig(**{name: value})


def test_vocabulary_follows_the_tokenizer_and_must_hold_it() -> None:
    assert RunConfig().model_config(300).vocab_size == 300
    assert RunConfig(model={"vocab_size": 512}).model_config(300).vocab_size == 512
    with pytest.raises(ValueError, match=r"model.vocab_size is 256 but the tokenizer has 300"):
        RunConfig(model={"vocab_size": 256}).model_config(300)


def test_a_resumed_run_may_change_its_length_but_not_what_it_trains() -> None:
    stored = RunConfig()
    longer = dataclasses.replace(stored.train, steps=9, eval_every=1, keep_last=5, max_minutes=1.0)
    check_resumable(stored, dataclasses.replace(stored, train=longer))
    for changed, words in (
        (dataclasses.replace(stored, model={"n_layers": 1}), "model is"),
        (dataclasses.replace(stored, train=dataclasses.replace(stored.train, lr=1.0)), "train.lr is 1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            check_resumable(stored, changed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "not the folder of a training run"),
        ('{"format": "rmat-model"}', "not the folder of a training run"),
        ('{"train":', r"config.json is damaged"),
        ('{"train": {"stepz": 1}}', r"config.json: unknown setting 'train.stepz'"),
    ],
)
def test_a_folder_without_a_run_is_refused(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        RunConfig.load(tmp_path)


def test_sections_may_be_mappings_and_out_a_path() -> None:
    given = RunConfig(data={"specs": ["a"]}, train={"steps": 3}, out=Path("here"))  # type: ignore[arg-type]
    assert given == RunConfig(data=DataConfig(specs=("a",)), train=TrainConfig(steps=3), out="here")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": "python-stdlib"}, "data='python-stdlib' is not possible: give a mapping"),
        ({"data": {"specs": ["a"], "spec": 1}}, "unknown setting 'data.spec'"),
        ({"model": None}, "model=None is not possible: give a mapping"),
        ({"train": {"steps": "many"}}, "train.steps='many'"),
        ({"out": 3}, "out=3 is not possible: give"),
    ],
)
def test_sections_of_a_wrong_kind_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunConfig(**fields)
