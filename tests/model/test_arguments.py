"""What `LanguageModel.forward` refuses, and with which words: argument, value, remedy."""

from typing import Any

import pytest
import torch

from rmat.model import LanguageModel, ModelConfig


def build(**overrides: Any) -> LanguageModel:
    small = {"vocab_size": 29, "d_model": 24, "n_layers": 1, "n_heads": 4, "segment_len": 6, "chunk_len": 3}
    return LanguageModel(ModelConfig.preset("tiny", **{**small, "n_slots": 7, **overrides}))


TOKENS = torch.arange(8).view(2, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tokens": TOKENS.int()}, ("tokens", "int32", "int64")),
        ({"tokens": TOKENS.float()}, ("tokens", "float32", "int64")),
        ({"tokens": TOKENS[0]}, ("tokens", "(4,)", "rows")),
        ({"tokens": TOKENS[:, :0]}, ("tokens", "(2, 0)", "at least one")),
        ({"tokens": TOKENS[:0]}, ("tokens", "(0, 4)", "at least one")),
        ({"tokens": [[1, 2]]}, ("tokens", "list", "tensor")),
        ({"tokens": TOKENS + 22}, ("29", "range", "vocab_size")),
        ({"tokens": TOKENS - 1}, ("-1", "range", "vocab_size")),
        ({"resets": torch.zeros(2, 3, dtype=torch.bool)}, ("resets", "(2, 3)", "(2, 4)")),
        ({"resets": torch.zeros(2, 4)}, ("resets", "float32", "bool")),
        ({"valid": torch.ones(2, 5, dtype=torch.bool)}, ("valid", "(2, 5)", "(2, 4)")),
        ({"valid": torch.ones(2, 4, dtype=torch.int64)}, ("valid", "int64", "bool")),
        ({"schedule": "wavefront"}, ("schedule", "wavefront", "parallel")),
        ({"memory": "off"}, ("memory", "off", "zeroed")),
        ({"state": {"position": 0}}, ("state", "dict", "StreamState")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_a_bad_argument_is_named_with_value_and_remedy(
    arguments: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError) as caught:
        build()(**{"tokens": TOKENS, **arguments})
    for word in words:
        assert word in str(caught.value)


def test_a_state_of_another_batch_size_is_refused() -> None:
    model = build()
    with pytest.raises(ValueError, match=r"state has 3 rows.*tokens have 2"):
        model(TOKENS, model.initial_state(3))


def test_a_state_of_another_config_is_refused() -> None:
    with pytest.raises(ValueError, match="another configuration"):
        build()(TOKENS, build(n_slots=8).initial_state(2))


def test_tokens_on_another_device_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens are on meta.*cpu"):
        build()(TOKENS.to("meta"))


def test_a_state_on_another_device_is_refused() -> None:
    model = build()
    with pytest.raises(ValueError, match=r"state is on meta.*cpu"):
        model(TOKENS, model.initial_state(2).to("meta"))


def test_a_state_of_another_float_type_is_refused_or_read() -> None:
    """A state of a float32 model read by its float64 copy: never a crash inside a layer."""
    model = build()
    _, state = model(TOKENS)
    try:
        logits, _ = build().double()(TOKENS, state)
    except ValueError as error:
        assert "state" in str(error) and "float" in str(error)
    else:
        assert logits.dtype == torch.float64


@pytest.mark.parametrize("count", [-1, 2.0, "two", True])
def test_a_bad_number_of_rows_is_refused(count: Any) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        build().initial_state(count)


def test_a_model_takes_a_config() -> None:
    with pytest.raises(ValueError, match="ModelConfig"):
        LanguageModel({"d_model": 8})  # type: ignore[arg-type]


def test_a_long_token_range_is_checked_at_padding_too() -> None:
    valid = torch.tensor([[True, True, True, False]])
    with pytest.raises(ValueError, match="999"):
        build()(torch.tensor([[1, 2, 3, 999]]), valid=valid)
