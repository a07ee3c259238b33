"""`StreamState` as a value: select, concat, save, load, refusal."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmat.model import LanguageModel, ModelConfig, StreamState

VARIANTS = ("recommended", "paper", "local", "xl", "full")


def build(variant: str = "recommended", **overrides: Any) -> LanguageModel:
    torch.manual_seed(0)
    small = {"vocab_size": 29, "d_model": 24, "n_layers": 2, "n_heads": 4, "segment_len": 6, "chunk_len": 3}
    return LanguageModel(
        ModelConfig.preset("tiny", variant=variant, **{**small, "n_slots": 7, **overrides})
    ).eval()


def some_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 29, (rows, length), generator=torch.Generator().manual_seed(seed))


def same(left: StreamState, right: StreamState) -> bool:
    a, b = left.tensors(), right.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_and_load_go_on_with_the_same_numbers(variant: str, tmp_path: Path) -> None:
    model = build(variant, gate="both" if variant == "recommended" else build(variant).config.gate)
    _, state = model(some_tokens(2, 20))
    path = tmp_path / "chat.safetensors"
    state.save(path)
    loaded = StreamState.load(path, model.config)
    assert same(loaded, state)
    expected, _ = model(some_tokens(2, 9, 1), state)
    found, _ = model(some_tokens(2, 9, 1), loaded)
    assert torch.equal(found, expected)
    assert path.stat().st_size < state.nbytes + 10_000


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    model = build()
    model.initial_state(1).save(str(tmp_path / "a.safetensors"))
    assert StreamState.load(str(tmp_path / "a.safetensors"), model.config).batch_size == 1


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    build().initial_state(1).save(path)
    for other in (build(n_slots=8), build(segment_len=12), build("paper"), build(rope_theta=99.0)):
        with pytest.raises(ValueError, match="another configuration"):
            StreamState.load(path, other.config)
    StreamState.load(path, dataclasses.replace(build().config, dropout=0.5))


def test_damaged_and_foreign_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    model = build()
    path = tmp_path / "s.safetensors"
    with pytest.raises((ValueError, FileNotFoundError), match=r"s\.safetensors"):
        StreamState.load(path, model.config)
    model.initial_state(1).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"s\.safetensors"):
        StreamState.load(path, model.config)
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"s\.safetensors"):
        StreamState.load(path, model.config)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no stream state"):
        StreamState.load(path, model.config)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    model = build()
    path = tmp_path / "s.safetensors"
    model.initial_state(1).save(path)
    whole = path.read_bytes()
    assert b'version\\": \\"1\\"' in whole
    path.write_bytes(whole.replace(b'version\\": \\"1\\"', b'version\\": \\"9\\"'))
    with pytest.raises(ValueError, match=r"format 9"):
        StreamState.load(path, model.config)


def test_the_file_holds_plain_tensors(tmp_path: Path) -> None:
    state = build().initial_state(2)
    state.save(tmp_path / "s.safetensors")
    assert load_file(tmp_path / "s.safetensors").keys() == state.tensors().keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_select_and_concat(variant: str) -> None:
    model = build(variant)
    _, state = model(some_tokens(3, 17))
    _, other = model(some_tokens(1, 5, 2))
    assert state.batch_size == 3
    assert same(state.select([0, 1, 2]), state)
    assert same(StreamState.concat([state.select([i]) for i in range(3)]), state)
    mixed = StreamState.concat([other, state.select([2, 0])])
    assert mixed.position.tolist() == [5, 17, 17]
    logits, _ = model(some_tokens(3, 8, 3), mixed)
    alone, _ = model(some_tokens(3, 8, 3)[1:2], state.select([2]))
    assert torch.allclose(logits[1:2], alone, atol=1e-5)


def test_a_fork_goes_two_ways() -> None:
    model = build()
    _, state = model(some_tokens(2, 17))
    forked = state.select([1, 1])
    tokens = some_tokens(2, 13, 4)
    logits, _ = model(tokens, forked)
    for row in range(2):
        alone, _ = model(tokens[row : row + 1], state.select([1]))
        assert torch.allclose(logits[row : row + 1], alone, atol=1e-5)


@pytest.mark.parametrize("rows", [[3], [-1], [[0]], torch.tensor([True, False, True])])
def test_bad_rows_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="rows"):
        build().initial_state(2).select(rows)


def test_concat_refuses_nothing_and_mixed_models() -> None:
    with pytest.raises(ValueError, match="at least one"):
        StreamState.concat([])
    with pytest.raises(ValueError, match="configuration"):
        StreamState.concat([build().initial_state(1), build(n_slots=8).initial_state(1)])


def test_tensors_round_trip_and_refuse_what_does_not_fit() -> None:
    model = build()
    _, state = model(some_tokens(2, 17))
    tensors = state.tensors()
    assert same(StreamState.from_tensors(model.config, tensors), state)
    short = {name: tensor for name, tensor in tensors.items() if name != "layers.1.slot_key"}
    with pytest.raises(ValueError, match=r"layers\.1\.slot_key"):
        StreamState.from_tensors(model.config, short)
    with pytest.raises(ValueError, match=r"layers\.0\.pushed"):
        StreamState.from_tensors(
            model.config, {**tensors, "layers.0.pushed": torch.zeros(3, dtype=torch.int64)}
        )
    with pytest.raises(ValueError, match="extra"):
        StreamState.from_tensors(model.config, {**tensors, "extra": torch.zeros(2)})


def test_position_counts_tokens_since_the_last_reset() -> None:
    model = build()
    resets = torch.zeros(2, 15, dtype=torch.bool)
    resets[1, 11] = True
    valid = torch.ones(2, 15, dtype=torch.bool)
    valid[0, 4:7] = False
    _, state = model(some_tokens(2, 15), resets=resets, valid=valid)
    assert state.position.dtype == torch.int64
    assert state.position.tolist() == [12, 4]
    assert model.initial_state(3).position.tolist() == [0, 0, 0]


def test_a_state_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build().initial_state(1).position = torch.zeros(1)  # type: ignore[misc]


def test_device_and_type_of_a_fresh_state() -> None:
    model = build()
    assert model.initial_state(1, dtype=torch.float64).tensors()["layers.0.slot_key"].dtype == torch.float64
    assert model.initial_state(1, device="meta").position.device.type == "meta"
    assert model.initial_state(1).to("meta").position.device.type == "meta"


@pytest.mark.parametrize(("variant", "layers"), [("recommended", 2), ("paper", 2), ("local", 0), ("full", 0)])
def test_openness_counts_layers_with_a_memory(variant: str, layers: int) -> None:
    _, state = build(variant)(some_tokens(3, 12))
    share = state.openness()
    assert share.shape == (layers, 3)
    assert bool(((share >= 0) & (share <= 1)).all())
    if variant == "paper":
        assert bool((share == 1 / 6).all())
