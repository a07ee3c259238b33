"""DataConfig refuses what cannot work and says what to do."""

from pathlib import Path

import pytest

from rmat.data.config import DataConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"specs": ()}, r"data.specs=\(\) is not possible: name at least one source"),
        ({"specs": "python-stdlib"}, r"data.specs='python-stdlib' .*tuple of SPECs.*\('python-stdlib',\)"),
        ({"specs": ("a", "b"), "weights": (1.0,)}, "data.weights=.*1 values for 2"),
        ({"weights": (0.0,)}, "data.weights=0.0 .*positive"),
        ({"weights": (float("nan"),)}, "data.weights=nan .*positive"),
        ({"fim_rate": 1.5}, "data.fim_rate=1.5 is not possible: give a share from 0 to 1"),
        ({"valid_share": 0.5}, "data.valid_share=0.5 .*0 to 0.4"),
        ({"valid_share": -0.1}, "data.valid_share=-0.1"),
        ({"tokenizer": "bpe:many"}, "data.tokenizer='bpe:many' .*whole number after 'bpe:'"),
        ({"tokenizer": ""}, "data.tokenizer='' .*not empty"),
        ({"column": ""}, "data.column='' .*not empty"),
        ({"specs": 5}, "data.specs=5 .*tuple of SPECs"),
        ({"specs": ("",)}, "data.specs='' .*not empty"),
        ({"weights": 3}, "data.weights=3 .*positive numbers"),
        ({"weights": ("1",)}, "data.weights='1' .*positive numbers"),
        ({"assistant_only_loss": 1}, "data.assistant_only_loss=1 is not possible: choose true or false"),
        ({"fim_rate": "0.5"}, "data.fim_rate='0.5' .*give a share"),
        ({"context_rate": 2}, "data.context_rate=2 .*give a share"),
        ({"valid_share": None}, "data.valid_share=None .*give a share"),
        ({"tokenizer": None}, "data.tokenizer=None .*give text"),
        ({"cache_dir": 3}, "data.cache_dir=3 .*give text"),
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
