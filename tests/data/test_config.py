"""DataConfig refuses what cannot work and says what to do."""

from pathlib import Path

import pytest

from rmat.data.config import DataConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"specs": ()}, "at least one source"),
        ({"specs": "python-stdlib"}, r"tuple of SPECs.*\('python-stdlib',\)"),
        ({"specs": ("a", "b"), "weights": (1.0,)}, "1 values for 2"),
        ({"weights": (0.0,)}, "positive"),
        ({"weights": (float("nan"),)}, "positive"),
        ({"fim_rate": 1.5}, r"data.fim_rate.*0..1, got 1.5"),
        ({"valid_share": 0.5}, r"data.valid_share.*got 0.5"),
        ({"valid_share": -0.1}, "data.valid_share"),
        ({"tokenizer": "bpe:many"}, "'bpe:many'"),
        ({"tokenizer": ""}, "data.tokenizer is empty"),
        ({"column": ""}, "data.column is empty"),
        ({"specs": 5}, "data.specs must be a tuple of SPECs, got 5"),
        ({"weights": 3}, "data.weights must be positive numbers, got 3"),
        ({"weights": ("1",)}, "data.weights must be positive numbers"),
        ({"fim_rate": "0.5"}, "data.fim_rate must be a number, got '0.5'"),
        ({"valid_share": None}, "data.valid_share must be a number, got None"),
        ({"tokenizer": None}, "data.tokenizer must be text, got None"),
        ({"cache_dir": 3}, "data.cache_dir must be text, got 3"),
    ],
)
def test_a_wrong_value_names_its_field(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_lists_as_a_file_gives_them_become_tuples():
    config = DataConfig(specs=["a", "b"], weights=[1, 2])
    assert config.specs == ("a", "b") and config.weights == (1.0, 2.0)
    assert hash(config) == hash(DataConfig(specs=("a", "b"), weights=(1.0, 2.0)))


def test_paths_become_text():
    config = DataConfig(specs=[Path("a")], tokenizer=Path("b"), cache_dir=Path("c"))
    assert (config.specs, config.tokenizer, config.cache_dir) == (("a",), "b", "c")


def test_only_a_bpe_tokenizer_has_a_size():
    assert DataConfig(tokenizer="bpe:300").bpe_size == 300
    assert DataConfig(tokenizer="bytes").bpe_size is None
