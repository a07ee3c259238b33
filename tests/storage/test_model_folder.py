import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rmat
from rmat.data.tokenizer import load_tokenizer
from rmat.model import LanguageModel, ModelConfig
from rmat.storage import CONFIG_FILE, WEIGHTS_FILE, load_model, model_folder, save_model


def make(variant: str = "recommended", **fields: Any) -> LanguageModel:
    sizes: dict[str, Any] = {"vocab_size": 300, "n_layers": 2, "d_model": 16, "n_heads": 2, "segment_len": 8}
    slots = {} if variant in ("xl", "full", "local") else {"n_slots": 4}
    return LanguageModel(ModelConfig.preset("tiny", variant=variant, **{**sizes, **slots, **fields})).eval()


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite the weights after `change`."""
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("variant", ["recommended", "paper", "local", "xl", "full"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_saved_model_is_the_same_model(
    variant: str, tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = make(variant, tie_embeddings=tied).to(dtype)
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    stored = model.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.state_dict().items())
    assert {tensor.dtype for tensor in loaded.parameters()} == {dtype}


def test_decoding_goes_on_identically(tmp_path: Path) -> None:
    model, tokenizer = make(), load_tokenizer("bytes")
    model.save(tmp_path, tokenizer=tokenizer)
    loaded, loaded_tokenizer = rmat.load(tmp_path)
    assert loaded_tokenizer is not None and loaded_tokenizer.fingerprint == tokenizer.fingerprint
    tokens = torch.randint(300, (1, 21))
    with torch.no_grad():
        _, state = model(tokens)
        expected, after = model(tokens[:, :9], state)
        found, found_after = loaded(tokens[:, :9], state)
    assert torch.equal(found, expected)
    assert all(torch.equal(tensor, after.tensors()[name]) for name, tensor in found_after.tensors().items())


def test_loading_leaves_the_random_numbers_alone(folder: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load_model(folder)
    assert torch.rand(1) == expected


def test_a_tied_matrix_is_stored_once(folder: Path, tmp_path: Path) -> None:
    make(tie_embeddings=False).save(tmp_path / "untied")
    assert len(load_file(tmp_path / "untied" / WEIGHTS_FILE)) == len(load_file(folder / WEIGHTS_FILE)) + 1


def test_the_files_are_safetensors_and_json(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    layout = json.loads((folder / CONFIG_FILE).read_text())
    assert layout["format"] == "rmat-model" and layout["format_version"] == 1
    assert (folder / WEIGHTS_FILE).stat().st_mode == (folder / CONFIG_FILE).stat().st_mode


def test_saving_again_replaces_the_model_and_nothing_else(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "tokenizer.json").write_text("of another model")
    other = make(d_model=32)
    other.save(folder)
    assert load_model(folder).config == other.config
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE, "notes.txt"]


def test_a_failed_save_leaves_the_old_model(folder: Path) -> None:
    class Failing:
        def save(self, path: Path) -> None:
            path.write_text("half")
            raise OSError("no space left")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OSError, match="no space"):
        save_model(make(d_model=32), folder, Failing())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_folder_gives_its_model(tmp_path: Path) -> None:
    make().save(tmp_path / "model")
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(tmp_path) == tmp_path / "model"
    assert isinstance(rmat.load(tmp_path)[0], LanguageModel)


class TestDamage:
    def test_missing_tensor(self, folder: Path) -> None:
        edit(folder, lambda tensors: tensors.pop("norm.weight"))
        with pytest.raises(ValueError, match=r"lacks 1 tensors .*'norm\.weight'"):
            load_model(folder)

    def test_unknown_tensor(self, folder: Path) -> None:
        edit(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
        with pytest.raises(ValueError, match=r"has 1 tensors unknown .*'extra'"):
            load_model(folder)

    def test_other_shape(self, folder: Path) -> None:
        edit(folder, lambda tensors: tensors.update({"norm.weight": torch.zeros(1)}))
        with pytest.raises(
            ValueError, match=r"norm\.weight has shape \(1,\), its configuration needs \(16,\)"
        ):
            load_model(folder)

    def test_other_kind(self, folder: Path) -> None:
        edit(folder, lambda tensors: tensors.update({"norm.weight": torch.zeros(16, dtype=torch.int64)}))
        with pytest.raises(ValueError, match=r"norm\.weight is torch\.int64"):
            load_model(folder)

    def test_mixed_types(self, folder: Path) -> None:
        edit(folder, lambda tensors: tensors.update({"norm.weight": torch.zeros(16, dtype=torch.float64)}))
        with pytest.raises(ValueError, match=r"mixes .*float32.*float64"):
            load_model(folder)

    def test_weights_of_another_model(self, folder: Path, tmp_path: Path) -> None:
        """Same names and shapes, other meaning: found by the fingerprint."""
        make(rope_theta=500.0).save(tmp_path / "other")
        (tmp_path / "other" / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
        with pytest.raises(ValueError, match="another configuration"):
            load_model(folder)

    @pytest.mark.parametrize("keep", [0, 5, 200, 5000])
    def test_truncated_weights(self, folder: Path, keep: int) -> None:
        raw = (folder / WEIGHTS_FILE).read_bytes()
        assert keep < len(raw)
        (folder / WEIGHTS_FILE).write_bytes(raw[:keep])
        with pytest.raises(ValueError, match="damaged"):
            load_model(folder)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is damaged"),
            ("[]", "does not describe"),
            ('{"format": "rmat-model", "config": {}}', "format version None"),
            ('{"format": "rmat-model", "format_version": 2, "config": {}}', "format version 2"),
            (
                '{"format": "rmat-model", "format_version": 1, "config": {"d_modle": 1}}',
                "did you mean 'd_model'",
            ),
        ],
    )
    def test_config(self, folder: Path, content: str, message: str) -> None:
        (folder / CONFIG_FILE).write_text(content)
        with pytest.raises(ValueError, match=message):
            load_model(folder)

    def test_nothing_there(self, tmp_path: Path, folder: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no such folder"):
            load_model(tmp_path / "missing")
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="no model in"):
            load_model(tmp_path / "empty")
        (folder / CONFIG_FILE).unlink()
        with pytest.raises(FileNotFoundError, match="incomplete"):
            load_model(folder)
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="is a file"):
            make().save(tmp_path / "file")


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    make(vocab_size=100).save(tmp_path, tokenizer=load_tokenizer("bytes"))
    with pytest.raises(ValueError, match="tokenizer has 265 tokens, the model only 100"):
        rmat.load(tmp_path)


def test_a_model_loaded_in_inference_mode_can_be_trained(folder: Path) -> None:
    with torch.inference_mode():
        model = load_model(folder)
    model(torch.tensor([[1, 2, 3]]))[0].sum().backward()
    assert model.embedding.weight.grad is not None


def test_a_save_that_fails_keeps_the_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_tokenizer("bytes").save(folder / "tokenizer.json")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rmat.storage.flush", full)
    with pytest.raises(OSError, match="no space left"):
        save_model(load_model(folder), folder)
    assert (folder / "tokenizer.json").is_file()
