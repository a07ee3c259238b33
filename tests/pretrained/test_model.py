"""`from_pretrained`: what is read, what state it makes, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rmat
from rmat.pretrained.model import from_pretrained
from tests.makers.pretrained import source_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_folder(tmp_path_factory.mktemp("source"))


def changed(folder: Path, target: Path, **fields: Any) -> Path:
    """A copy of a source whose config.json has other fields."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for name, value in fields.items():
        config[name] = value
        if value is ...:
            del config[name]
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_several_files_are_one_model(folder: Path, tmp_path: Path) -> None:
    parts = source_folder(tmp_path / "parts", max_shard_size="100KB")
    assert len(list(parts.glob("*.safetensors"))) > 1
    tokens = torch.randint(0, 320, (1, 30))
    with torch.no_grad():
        assert torch.equal(from_pretrained(parts)[0](tokens)[0], from_pretrained(folder)[0](tokens)[0])


def test_the_state_is_as_large_as_asked(folder: Path) -> None:
    model, _ = rmat.from_pretrained(folder, window=64, n_slots=48, n_sinks=2)
    config = model.config
    assert (config.chunk_len, config.chunk_lookback, config.n_slots, config.n_sinks) == (32, 1, 48, 2)
    assert config.slot_groups == config.n_kv_heads
    state = model.initial_state(1)
    keys = {name: x.shape[1] for name, x in state.tensors().items() if name.endswith("_key")}
    assert set(keys.values()) == {64, 48, 2}
    with torch.no_grad():
        _, after = model(torch.randint(0, 320, (1, 500)), state)
    assert after.nbytes == state.nbytes


def test_without_words_the_state_fits_the_trained_context(folder: Path, tmp_path: Path) -> None:
    config = from_pretrained(folder)[0].config
    assert (
        2 * config.chunk_len + config.n_slots + config.n_sinks == 2048
    )  # all that it was trained to tell apart
    small = changed(folder, tmp_path / "small", max_position_embeddings=128)
    config = from_pretrained(small)[0].config
    assert 2 * config.chunk_len + config.n_slots + config.n_sinks <= 128


def test_the_window_may_be_the_trained_context(folder: Path) -> None:
    config = from_pretrained(folder, window=2048)[0].config
    assert config.streams == ("full",)
    assert config.segment_len == 2048


def test_weights_have_the_type_that_is_asked_for(folder: Path) -> None:
    model, _ = from_pretrained(folder, dtype="bfloat16", window=64, n_slots=64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        logits, state = model(torch.randint(0, 320, (1, 100)))
    assert logits.dtype == state.dtype == torch.bfloat16
    assert bool(logits.isfinite().all())


def test_every_gate_is_open_at_first(folder: Path) -> None:
    model, _ = from_pretrained(folder, window=64, n_slots=32)
    with torch.no_grad():
        _, state = model(torch.randint(0, 320, (1, 200)))
    memory = state.layers[0].memory
    assert memory is not None
    # Of the 192 tokens of segments that closed, 32 are in sight and 4 are sinks.
    assert memory.pushed.tolist() == [[156, 156]]
    assert float(memory.slots.log_gate.abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_type": "gemma"}, "model_type 'gemma'.*llama, mistral, qwen2, qwen3"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"logit_scale": 0.5}, "logit_scale=0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "yarn"),
        ({"rope_parameters": {"rope_theta": 1e4, "mscale": 4.0}}, "mscale"),
        ({"hidden_size": ...}, "lacks 'hidden_size'"),
        ({"num_hidden_layers": 3}, "lacks the tensor 'model.layers.2"),
        ({"num_hidden_layers": 1}, "tensor 'model.layers.1.*does not explain"),
        ({"intermediate_size": 64}, r"mlp\.up_proj\.weight has shape \(96, 64\).*\(64, 64\)"),
        ({"model_type": "qwen3", "head_dim": 16}, "lacks the tensor.*q_norm"),
        ({"vocab_size": 100}, "tokenizer has .* tokens, the weights are for 100"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    folder: Path, tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        from_pretrained(changed(folder, tmp_path / "other", **fields))


def test_fields_that_ask_for_nothing_are_passed_over(folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path / "other", use_qk_norm=False, rope_interleaved=None, pad_token_id=7)
    from_pretrained(other)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": 63}, "window=63.*even"),
        ({"window": 0}, "window=0"),
        ({"window": 64, "n_slots": 0}, "n_slots=0"),
        ({"window": 64, "n_sinks": -1}, "n_sinks=-1"),
        ({"window": 1024, "n_slots": 1024}, "2052 places.*2048"),
        ({"window": 2048, "n_slots": 8}, "n_slots=8.*no bank"),
        ({"dtype": "int4"}, "dtype='int4'"),
    ],
)
def test_a_state_that_cannot_be_is_refused(folder: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        from_pretrained(folder, **options)


def test_a_sliding_window_is_the_trained_context(tmp_path: Path) -> None:
    mistral = source_folder(tmp_path / "mistral", "mistral")
    assert from_pretrained(mistral, window=4096)[0].config.segment_len == 1024
    with pytest.raises(ValueError, match=r"1028 places.*1024"):
        from_pretrained(mistral, window=512, n_slots=512)


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("nothing-here", FileNotFoundError, "no model 'nothing-here'.*'smollm2'"),
        ("nobody/nothing", OSError, "nobody/nothing cannot be brought from the hub"),
        ("missing.gguf", FileNotFoundError, "no file missing"),
    ],
)
def test_a_source_that_is_not_there(name: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        from_pretrained(name)


def test_a_folder_without_what_is_needed(folder: Path, tmp_path: Path) -> None:
    for missing in ("config.json", "model.safetensors", "tokenizer.json"):
        target = changed(folder, tmp_path / missing)
        (target / missing).unlink()
        with pytest.raises(FileNotFoundError, match=f"no {missing}"):
            from_pretrained(target)
    model, tokenizer = from_pretrained(folder, window=64, n_slots=64)
    model.save(tmp_path / "ours", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="already"):
        from_pretrained(tmp_path / "ours")


def test_saved_and_loaded_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = from_pretrained(folder, window=64, n_slots=64)
    model.save(tmp_path, tokenizer=tokenizer)
    loaded, again = rmat.load(tmp_path)
    assert again is not None
    assert again.fingerprint == tokenizer.fingerprint
    tokens = torch.randint(0, 320, (1, 200))
    with torch.no_grad():
        assert torch.equal(loaded(tokens)[0], model(tokens)[0])
