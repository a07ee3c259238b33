"""A fingerprint stands for the very weights."""

import hashlib
from pathlib import Path

import pytest
import torch

from rmat.storage import digest, load_model, weights_fingerprint
from tests.storage.test_model_folder import make


def test_it_is_that_of_the_weights(tmp_path: Path) -> None:
    model = make()
    fingerprint = weights_fingerprint(model)
    assert len(fingerprint) == 16 and int(fingerprint, 16) >= 0
    model.save(tmp_path)
    assert weights_fingerprint(load_model(tmp_path)) == fingerprint
    other = make()
    assert weights_fingerprint(other) != fingerprint
    other.load_state_dict(model.state_dict())
    assert weights_fingerprint(other) == fingerprint


def test_any_change_of_a_weight_shows() -> None:
    model = make()
    seen = {weights_fingerprint(model)}
    with torch.no_grad():
        for tensor in model.parameters():
            last = tensor.view(-1)[-1:]
            last.copy_(torch.nextafter(last, torch.full_like(last, torch.inf)))
            seen.add(weights_fingerprint(model))
    assert len(seen) == 1 + len(list(model.parameters()))
    assert weights_fingerprint(model.double()) not in seen


def test_another_architecture_is_another_model() -> None:
    one, other = make(rope_theta=10_000.0), make(rope_theta=20_000.0)
    other.load_state_dict(one.state_dict())
    assert weights_fingerprint(one) != weights_fingerprint(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_digest_knows_names_types_shapes_and_bytes(dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(2, 3, dtype=dtype), "b": torch.zeros((), dtype=dtype)}
    same = {"b": torch.zeros((), dtype=dtype), "a": torch.ones(3, 2, dtype=dtype).T}
    assert digest(tensors) == digest(same)
    different = [
        {**tensors, "a": torch.zeros(2, 3, dtype=dtype)},
        {**tensors, "a": torch.ones(3, 2, dtype=dtype)},
        {**tensors, "c": torch.zeros(0, dtype=dtype)},
        {"a": tensors["a"], "c": tensors["b"]},
        {**tensors, "b": torch.zeros((), dtype=torch.float16)},
        {"a": tensors["a"]},
    ]
    assert len({digest(changed) for changed in (tensors, *different)}) == 1 + len(different)
    assert digest({}) == hashlib.sha256(b"").hexdigest()
