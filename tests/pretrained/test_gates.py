"""Fitted gates: what they are fitted on, the targets, the share that they admit, the command."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from rmat.api import load
from rmat.cli.main import main
from rmat.data.tokenizer import Tokenizer
from rmat.model import LanguageModel
from rmat.pretrained.gates import STATED, Passage, asking, fit, mixed, prose, with_all_in_sight
from rmat.pretrained.model import from_pretrained
from tests.makers.pretrained import source_folder

TEXT = "python-stdlib"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_folder(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def given(source: Path) -> tuple[LanguageModel, Tokenizer]:
    return from_pretrained(source, window=32, n_slots=48, n_sinks=2)


def test_a_passage_asks_for_what_it_states(given: tuple[LanguageModel, Tokenizer]) -> None:
    passage = next(asking(TEXT, given[1], length=600, seed=3))
    text = given[1].decode(passage.ids[~passage.asks].tolist())
    questions = given[1].decode(passage.ids[passage.asks].tolist())
    stated = given[1].decode(passage.ids[passage.weight == STATED].tolist())
    assert questions.count("?") + questions.count("Please tell me") >= 3
    sentences = [sentence for sentence in stated.split(".") if sentence]
    assert len(sentences) == 3 and all(sentence in text for sentence in sentences)
    values = [line.removesuffix(".").split()[-1] for line in questions.splitlines() if line.startswith("You")]
    assert len(values) == 3 and all(value in stated for value in values)
    assert not passage.weight[passage.asks].any()
    assert np.array_equal(passage.ids, next(asking(TEXT, given[1], length=600, seed=3)).ids)


def test_prose_asks_for_what_is_out_of_reach(given: tuple[LanguageModel, Tokenizer]) -> None:
    passage = next(prose(TEXT, given[1], length=200, reach=50, seed=0))
    assert 150 < len(passage.ids) <= 200
    assert not passage.asks[:50].any() and passage.asks[50:].all()
    assert passage.weight[:-50].all() and not passage.weight[-50:].any()


def test_everything_in_sight_is_the_source(given: tuple[LanguageModel, Tokenizer], source: Path) -> None:
    whole, _ = from_pretrained(source, window=2048)
    tokens = torch.randint(0, 320, (2, 77))
    with torch.no_grad():
        assert torch.allclose(with_all_in_sight(given[0], 77)(tokens)[0], whole(tokens)[0], atol=1e-5)


def test_scores_follow_the_attention_of_later_tokens(given: tuple[LanguageModel, Tokenizer]) -> None:
    """With as many tokens as features the regression is exact: the order of scores is that of the largest
    weights, which are recomputed here token by token."""
    model = given[0].double()
    ids = torch.randint(0, 320, (40,), generator=torch.Generator().manual_seed(1))
    passage = Passage(
        ids=ids.numpy(),
        asks=np.arange(40) >= 10,
        weight=(np.arange(40) < 30).astype(np.float32),
        reach=10,
    )
    fitted = fit(model, [passage], share=0.5)
    full = with_all_in_sight(model, 40)
    inputs: list[torch.Tensor] = []
    block = full.blocks[0]
    assert isinstance(block.norm, torch.nn.Module)
    hook = block.norm.register_forward_hook(lambda _, __, x_BTE: inputs.append(x_BTE[0]))
    with torch.no_grad():
        full(ids[None])
    hook.remove()
    x, local = inputs[0], block.local["full"]  # type: ignore[index]
    query = local.query(x).unflatten(1, (4, -1))
    key = local.key(x).unflatten(1, (2, -1))
    width = query.shape[2]
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)

    def turned(vector: torch.Tensor, place: int) -> torch.Tensor:
        first, second = vector.chunk(2)
        cos, sin = (place * frequency).cos(), (place * frequency).sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin])

    target = torch.zeros(30, 2)
    for asker in range(10, 40):
        for head in range(4):
            logits = torch.stack(
                [turned(query[asker, head], asker) @ turned(key[j, head // 2], j) for j in range(asker + 1)]
            )
            weight = (logits / width**0.5).softmax(0)
            for j in range(min(30, asker - 9)):
                target[j, head // 2] = max(target[j, head // 2], weight[j])
    state = fitted.state_dict()
    name = "blocks.0.memory.writer.score"
    score = x[:30] @ state[f"{name}.weight"].T + state[f"{name}.bias"]
    for k in range(2):
        together = torch.stack([score[:, k], target[:, k].log()])
        assert torch.corrcoef(together)[0, 1] > 0.99


def test_the_share_is_admitted(given: tuple[LanguageModel, Tokenizer]) -> None:
    """In the first layer, whose inputs are the same however much is in sight."""
    model, tokenizer = given[0].float(), given[1]
    passages = list(islice(prose(TEXT, tokenizer, length=400, reach=0, seed=0), 6))
    n_tokens = min(len(passage.ids) for passage in passages)
    tokens = torch.from_numpy(np.stack([passage.ids[:n_tokens] for passage in passages]))
    for share in (0.2, 0.6):
        fitted = fit(model, passages, share=share)
        with torch.no_grad():
            _, state = fitted(tokens)
        memory = state.layers[0].memory
        assert memory is not None
        offered = n_tokens - n_tokens % 16 - 16 - 2
        assert abs(memory.pushed.float().mean().item() / offered - share) < 0.06
    others = {k: v for k, v in model.state_dict().items() if ".score." not in k}
    assert all(torch.equal(fitted.state_dict()[k], v) for k, v in others.items())


def test_strength_lasts_in_heads_that_attend_stated_facts(given: tuple[LanguageModel, Tokenizer]) -> None:
    """Where it fades: scores of one head of four are sixteen times as far apart as those of the others; where the
    oldest leave, all are as far as is needed to be open or shut."""
    model, tokenizer = given[0].float(), given[1]
    fading = model.with_slots(eviction="weakest", fade=2)
    passages = list(islice(asking(TEXT, tokenizer, length=600, seed=3), 2))
    keys = [f"blocks.{layer}.memory.writer.score.weight" for layer in range(model.config.n_layers)]

    def ratios(passages: list[Passage]) -> list[float]:
        plain, other = (fit(each, passages).state_dict() for each in (model, fading))
        return torch.cat([(other[key] / plain[key]).median(1).values for key in keys]).tolist()

    assert sorted(ratios(passages)) == pytest.approx([1 / 32, 1 / 32, 1 / 32, 0.5], rel=1e-4)
    assert ratios(list(islice(prose(TEXT, tokenizer, length=200, reach=0, seed=0), 1))) == pytest.approx(
        [0.5] * 4
    )
    with pytest.raises(TypeError, match="give a list"):
        next(mixed(TEXT, tokenizer, n_prose=1, n_asking=0, reach=0))


def test_what_cannot_be_fitted_is_refused(source: Path, given: tuple[LanguageModel, Tokenizer]) -> None:
    whole, _ = from_pretrained(source, window=2048)
    with pytest.raises(ValueError, match="no gate for each key head"):
        fit(whole, [])
    with pytest.raises(ValueError, match="share"):
        fit(given[0], [], share=1.0)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "model", tmp_path / "fitted"
    assert main(["import", str(source), str(folder), "--window", "32", "--slots", "48"]) == 0
    few = ["--prose", "1", "--asking", "1"]
    assert main(["gates", str(folder), "--out", str(out), *few, "--data", TEXT, "noise", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["data"], told["share"], told["eviction"], told["fade"], told["newest_share"]) == (
        [TEXT, "noise"],
        0.999,
        "weakest",
        0.5,
        0.6,
    )
    before, after = load(folder)[0], load(out)[0]
    assert after.config.eviction == "weakest" and before.config.eviction == "oldest"
    assert (before.config.fade, after.config.fade, after.config.n_newest) == (0, 0.5, 28)
    name = "blocks.1.memory.writer.score.weight"
    assert not before.state_dict()[name].any() and after.state_dict()[name].any()
    assert main(["gates", str(folder), *few, "--eviction", "oldest", "--fade", "1"]) == 2
    assert "fade=1.0 is not possible" in capsys.readouterr().err
    assert main(["gates", str(folder), *few, "--newest", "1.5"]) == 2
    assert "newest_share=1.5 is not possible" in capsys.readouterr().err
    assert main(["gates", str(folder), *few, "--length", "60"]) == 2  # local reach and the newest: 32 + 28
    assert "nothing is further back than the 60 that" in capsys.readouterr().err
    assert main(["gates", str(folder), *few, "--length", "0"]) == 2
    assert "--length=0 is not possible" in capsys.readouterr().err
    assert main(["gates", str(folder), "--prose", "0", "--asking", "0"]) == 2
    assert "leave nothing to fit on" in capsys.readouterr().err
    assert main(["gates", "starter", *few]) == 2
    assert "starter is a name and no folder to write to" in capsys.readouterr().err
    assert main(["gates", "starter", "--out", str(tmp_path / "starter"), *few]) == 2
    assert "was not imported" in capsys.readouterr().err


def test_passages_of_a_given_length(given: tuple[LanguageModel, Tokenizer]) -> None:
    """Questions and answers included."""
    made = list(mixed([TEXT], given[1], n_prose=2, n_asking=2, reach=0, length=700))
    lengths = [len(passage.ids) for passage in made]
    assert all(650 < each <= 700 for each in lengths[:2])
    assert all(650 < each <= 700 for each in lengths[2:]) and all(passage.asks.any() for passage in made)
