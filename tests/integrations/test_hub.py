"""The model card of a folder for transformers, and what `push_to_hub` would send: a hub that records takes the
place of the real one."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import hub

import rmat
from rmat.cli.main import main
from rmat.integrations.hf import RmatForCausalLM
from rmat.integrations.hf.card import card, origin
from tests.makers.models import make_model

LAYOUT = {
    *("config.json", "generation_config.json", "model.safetensors", "modeling_rmat.py", "README.md"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training run, as far as a card reads it."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    tokenizer = rmat.load_tokenizer("bytes")
    make_model("recommended", vocab_size=tokenizer.vocab_size, dtype=torch.float32).save(
        folder / "model", tokenizer
    )
    (folder / "config.json").write_text(json.dumps({"data": {"specs": ["books", "python-stdlib"]}}))
    scores = {"valid_bits_per_byte": 1.25, "valid_bits_per_byte_memory_zeroed": 1.5}
    (folder / "result.json").write_text(
        json.dumps({"run": "x", "steps": 2000, "tokens": 8_192_000, **scores})
    )
    return folder


@pytest.fixture(scope="module")
def theirs(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for transformers of that run."""
    out = tmp_path_factory.mktemp("theirs") / "my-model"
    assert main(["convert", str(run), str(out), "--license", "mit"]) == 0
    return out


def test_a_card_says_what_is_known(theirs: Path) -> None:
    text = (theirs / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-generation")
    assert {(one.metric_type, one.metric_value) for one in data.eval_results} == {
        ("bits_per_byte", 1.25),
        ("bits_per_byte_memory_zeroed", 1.5),
    }
    for words in (
        "# my-model",
        "pip install 'rmat[hf]'",
        "bytes, after any number of tokens",
        "`books`, `python-stdlib`: 2,000 updates, 8,192,000 tokens",
        "| bits per byte memory zeroed | 1.5000 |",
        "Not written yet",
    ):
        assert words in text, words


def test_a_card_of_a_model_alone_says_no_more(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    rmat.load(run / "model")[0].save(model)
    text = card(rmat.load(model)[0].config, known=origin(model))
    assert "license" not in text
    assert "Training" not in text
    (model / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Mine\n\nFor poems.\n")
    text = card(rmat.load(model)[0].config, known=origin(model))
    assert ModelCard(text).data.license == "cc-by-4.0"
    assert text.endswith("For poems.\n")
    assert "Not written yet" not in text
    known = origin("smollm2")
    assert (known.license, known.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")


def test_the_code_of_a_card_runs(theirs: Path) -> None:
    code = (theirs / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code.replace("FOLDER_OR_HUB_ID", str(theirs))],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "Once upon a time" in done.stdout


def test_a_licence_is_for_a_card(theirs: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["convert", str(theirs), str(tmp_path / "back"), "--license", "mit"]) == 2
    assert "leave it out" in capsys.readouterr().err


class Hub:
    """A hub that keeps what it is sent."""

    def __init__(self, readme: str | None = None) -> None:
        self.readme, self.sent = readme, {}

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self, repo_id: str, operations: list[Any], **_: Any) -> Any:
        for operation in operations:
            self.sent[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
        return SimpleNamespace(commit_url=f"hub/{repo_id}")


def connected(monkeypatch: pytest.MonkeyPatch, readme: str | None = None) -> Hub:
    """The hub that transformers then talks to; it has that card."""
    remote, load = Hub(readme), ModelCard.load

    def loaded(place: Any, *args: Any, **options: Any) -> ModelCard:
        if Path(place).exists():
            return load(place, *args, **options)
        if "README.md" in remote.sent:
            return ModelCard(remote.sent["README.md"].decode())
        if readme is None:
            raise EntryNotFoundError("no README.md")
        return ModelCard(readme)

    monkeypatch.setattr(hub, "hf_api", lambda: remote)
    monkeypatch.setattr(ModelCard, "load", loaded)
    return remote


def test_pushed_to_the_hub(theirs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remote = connected(monkeypatch)
    model = AutoModelForCausalLM.from_pretrained(theirs)
    model.push_to_hub("me/poems", tags=["poems"])
    AutoTokenizer.from_pretrained(theirs).push_to_hub("me/poems")
    assert set(remote.sent) == LAYOUT
    sent = ModelCard(remote.sent["README.md"].decode())
    assert "after any number of tokens" in sent.text
    assert {"rmat", "poems"} <= set(sent.data.tags)
    for name, content in remote.sent.items():
        (tmp_path / name).write_bytes(content)
    again, tokens = AutoModelForCausalLM.from_pretrained(tmp_path), torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert AutoTokenizer.from_pretrained(tmp_path)("a")["input_ids"] == [256, 97]


def test_a_card_on_the_hub_stays(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = connected(monkeypatch, "---\nlicense: mit\n---\n\n# Written by hand\n")
    RmatForCausalLM.from_pretrained(theirs).push_to_hub("me/poems")
    assert "# Written by hand" in remote.sent["README.md"].decode()
    assert "after any number" not in remote.sent["README.md"].decode()
