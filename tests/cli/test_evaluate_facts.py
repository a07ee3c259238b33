"""`rmat eval facts` by filler and turns, and what it refuses."""

from pathlib import Path

import pytest
import torch

from rmat.data.tokenizer import byte_tokenizer
from rmat.model import LanguageModel, ModelConfig
from rmat.tasks.facts import FactsQuestions
from tests.cli.conftest import Rmat
from tests.cli.test_evaluate_tasks import asked_of
from tests.makers.sources import write_dialogues


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    small = {"d_model": 16, "n_layers": 1, "n_heads": 2, "segment_len": 16, "n_slots": 16}
    folder = tmp_path_factory.mktemp("facts") / "model"
    config = ModelConfig.preset("tiny", vocab_size=tokenizer.vocab_size, **small)
    LanguageModel(config).save(folder, tokenizer=tokenizer)
    return folder


def test_a_cell_for_each_filler_and_number_of_turns(rmat: Rmat, model: Path, tmp_path: Path) -> None:
    talks = write_dialogues(tmp_path / "talks")
    outcome = rmat(
        *("eval", "facts", model, "--samples", "2", "--turns", "3", "--turns", "12"),
        *("--filler", "talk", "--filler", talks, "--facts", "1", "--changes", "1", "--json"),
    )
    cells = outcome.json["cells"]
    assert [(c["task"], c["turns"], c["depth"], c["samples"]) for c in cells] == [
        (f"facts in {name}", turns, None, 2) for name in ("talk", "talks") for turns in (3, 12)
    ]
    lengths = [cell["length"] for cell in cells]
    assert 0 < lengths[0] < lengths[1] and 0 < lengths[2] < lengths[3], "tokens that were read"


def test_a_table_for_people(rmat: Rmat, model: Path) -> None:
    outcome = rmat("eval", "facts", model, "--samples", "2", "--turns", "1200")
    assert outcome.status == 0 and "{" not in outcome.out
    for word in ("facts in talk", "turns", "1,200", "tokens", "95 % interval", "the state of one stream is"):
        assert word in outcome.out


def test_what_is_asked_by_default(rmat: Rmat, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = asked_of(rmat, monkeypatch, "facts", model)
    assert given.pop("questions") == FactsQuestions(
        turns=(10, 100, 1000), filler=("talk",), facts=4, changes=0.0
    )
    assert given == {"samples": 100, "batch_size": 8, "seed": 0, "memory": "on"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--turns", "-1"], "turns=-1 is not possible: give 0 or more"),
        (["--facts", "0"], "facts must lie in 1..16, got 0"),
        (["--changes", "2"], "changes must lie in 0..1, got 2.0"),
        (["--filler", "nowhere"], "nowhere"),
        (["--samples", "0"], "samples=0: ask at least one"),
        (["--turn", "3"], "did you mean '--turns'"),
    ],
)
def test_wrong_input_is_one_sentence(rmat: Rmat, model: Path, more: list[str], sentence: str) -> None:
    assert sentence in rmat("eval", "facts", model, *more).refused()
