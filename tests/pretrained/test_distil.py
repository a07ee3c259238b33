"""Distilled gates: the gradient against plain loops, what learns, the price, runs cut short, the command."""

import dataclasses
import json
import math
import os
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmat.api import load
from rmat.cli.main import main
from rmat.data.tokenizer import Tokenizer
from rmat.model import LanguageModel
from rmat.pretrained import distil as distilling
from rmat.pretrained import gates
from rmat.pretrained.distil import (
    ASKED,
    PRICE,
    SCALING_PASSAGES,
    DistilConfig,
    Learned,
    Sight,
    attend_at_once,
    attend_gated,
    behind,
    distil,
    passages,
    price,
    sampled,
    update,
)
from rmat.pretrained.gates import Passage, fit, mixed, with_all_in_sight, with_scores
from rmat.pretrained.model import from_pretrained
from rmat.storage import assigned
from rmat.training.progress import Silent
from tests.makers.pretrained import source_folder

TEXT = "python-stdlib"
FEW = DistilConfig(data=(TEXT,), n_prose=2, n_asking=1, steps=4, lr=0.01)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passages of a few hundred tokens."""
    monkeypatch.setattr(gates, "PROSE_TOKENS", 150)
    monkeypatch.setattr(gates, "ASKING_TOKENS", 300)
    monkeypatch.setattr(distilling, "SCALING_PASSAGES", 3)
    monkeypatch.setattr(distilling, "HELD_OUT_PASSAGES", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_folder(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def given(source: Path) -> tuple[LanguageModel, Tokenizer]:
    """A small model with fitted gates."""
    model, tokenizer = from_pretrained(source, window=64, n_slots=48, n_sinks=2)
    return fit(model, mixed([TEXT], tokenizer, n_prose=1, n_asking=0, reach=64)), tokenizer


def scored(model: LanguageModel) -> LanguageModel:
    """The model with gates that are neither all open nor all closed."""
    random = torch.Generator().manual_seed(5)
    config = model.config
    scores = [
        (
            0.2 * torch.randn(config.n_kv_heads, config.d_model, generator=random),
            torch.full((config.n_kv_heads,), -1.0),
        )
        for _ in range(config.n_layers)
    ]
    return with_scores(model, scores)


def random_passage(n_tokens: int, asks_from: int) -> Passage:
    ids = torch.randint(3, 320, (n_tokens,), generator=torch.Generator().manual_seed(1)).numpy()
    at = np.arange(n_tokens)
    return Passage(ids=ids, asks=at >= asks_from, weight=np.ones(n_tokens, np.float32), reach=0)


def looped(learned: Any, model: LanguageModel, tokens: torch.Tensor, sight: Sight | None = None) -> Any:
    """Logits (T, V) and mean g (L, K) of the student, token by token; with no `learned` the teacher's.
    Where the oldest leave, thresholds are raised from the fifth best of twelve scores to the second best."""
    config, state = model.config, model.state_dict()
    n_tokens, width, groups = len(tokens), config.head_dim, config.n_heads // config.n_kv_heads
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)

    def turned(vector: torch.Tensor, place: int) -> torch.Tensor:
        first, second = vector.chunk(2)
        cos, sin = (place * frequency).cos(), (place * frequency).sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin])

    h = state["embedding.weight"][tokens]
    opened = []
    for index, block in enumerate(model.blocks):
        x = block.norm(h)  # type: ignore[operator, union-attr]
        name = f"blocks.{index}.local.chunked"
        query, key, value = (x @ state[f"{name}.{part}.weight"].T for part in ("query", "key", "value"))
        gate = torch.zeros(n_tokens, config.n_kv_heads, dtype=torch.float64)
        chunk = n_tokens
        if sight is not None:
            chunk, sharpness = sight.chunk, sight.sharpness
            own = learned.blocks[index]
            query = query + x @ own["query"].down.weight.T @ own["query"].up.weight.T
            key = key + x @ own["key"].down.weight.T @ own["key"].up.weight.T
            score = (x / own["gate"].scale) @ own["gate"].weight.T + own["gate"].bias
            opened.append((1 / (1 + torch.exp(-sharpness * score)))[config.n_sinks :].mean(0))
            strength = score
            if config.fade:
                fade = torch.exp(10 * own["gate"].log_fade)
                strength = torch.stack([score[j] + fade * sight.pace * j / 1024 for j in range(n_tokens)])
            best = score[config.n_sinks :].sort(dim=0, descending=True).values.detach()
            gate = -torch.log1p(torch.exp(-sharpness * (score - best[1] + best[4])))
        query, key, value = (part.view(n_tokens, -1, width) for part in (query, key, value))
        rows = []
        for t in range(n_tokens):
            heads = []
            for head in range(config.n_heads):
                k, logits = head // groups, []
                if sight is not None and config.eviction == "weakest":
                    gate = torch.zeros(n_tokens, config.n_kv_heads, dtype=torch.float64)
                    old = range(config.n_sinks, max((t // chunk - 1) * chunk - config.n_newest, 0))
                    room = max(round((config.n_slots - config.n_newest) / sight.pace), 1)
                    if len(old) >= room:
                        level = sorted((strength[j, k] for j in old), reverse=True)[room - 1]
                        for j in old:
                            gate[j, k] = -torch.log1p(torch.exp(-sharpness * (strength[j, k] - level)))
                for j in range(t + 1):
                    logit = turned(query[t, head], t) @ turned(key[j, k], j) / math.sqrt(width)
                    far = j >= config.n_sinks and j < (t // chunk - 1) * chunk
                    logits.append(logit + gate[j, k] if far else logit)
                heads.append(torch.stack(logits).softmax(0) @ value[: t + 1, k])
            rows.append(torch.cat(heads))
        h = h + torch.stack(rows) @ state[f"blocks.{index}.output.weight"].T
        h = h + block.feedforward(block.feedforward_norm(h))  # type: ignore[operator, union-attr]
    return model.logits(h), torch.stack(opened) if opened else None


@pytest.mark.parametrize("leaves", ["oldest", "weakest"])
def test_the_gradient_is_that_of_plain_loops(source: Path, leaves: str) -> None:
    model, _ = from_pretrained(source, window=4, n_slots=6, n_sinks=2)
    model, passage = scored(model).double(), random_passage(14, asks_from=11)
    if leaves == "weakest":  # two of the six slots are the newest's
        model = model.with_slots(eviction="weakest", fade=64.0, newest_share=0.34)
    share = 4 / 11
    tokens = torch.from_numpy(passage.ids)
    sight = Sight(chunk=3, sharpness=1.5, share=share, kept=1 / 11, pace=2.0)
    torch.manual_seed(2)
    learned = Learned(model, 2)
    learned.start(model, sampled(model, [passage]), 0.4)
    with torch.no_grad():
        for own in learned.blocks:
            own["query"].up.weight.normal_(0, 0.1)
            own["key"].up.weight.normal_(0, 0.1)
            own["gate"].opened.copy_(torch.tensor([0.9, 0.0]))  # one key head beyond its share
    done = update(learned, [], model, passage, sight, clip=math.inf)
    found = {name: x.grad.clone() for name, x in learned.named_parameters() if x.grad is not None}
    learned.zero_grad()
    with torch.no_grad():
        teacher, _ = looped(None, model, tokens)
    student, opened = looped(learned, model, tokens, sight)
    weight = torch.ones(8, dtype=torch.float64)
    weight[5:] = ASKED
    log_p, log_q = teacher[6:].log_softmax(1), student[6:].log_softmax(1)
    kl = (weight * (log_p.exp() * (log_p - log_q)).sum(1)).sum() / weight.sum()
    beyond = (0.9 * torch.tensor([0.9, 0.0]) + 0.1 * opened.detach() - share) / share
    cost = (PRICE * beyond.clamp(0, 1) * opened).mean()
    (kl + cost).backward()
    assert done.kl == pytest.approx(kl.item(), rel=1e-9) and done.kl > 1e-4
    assert done.opened == pytest.approx(opened.mean().item(), rel=1e-9)
    assert len(found) == len(list(learned.parameters()))
    for name, x in learned.named_parameters():
        assert x.grad is not None and x.grad.abs().max() > 1e-9, name
        assert torch.allclose(found[name], x.grad, rtol=1e-6, atol=1e-12), name


def test_with_all_gates_open_the_student_is_the_teacher(given: tuple[LanguageModel, Tokenizer]) -> None:
    model, tokens = given[0].float(), torch.randint(3, 320, (90,))
    learned = Learned(model, 2)
    for own in learned.blocks:
        own["gate"].bias.data.fill_(40.0)
    full = with_all_in_sight(model, 90)
    with torch.no_grad():
        teacher = full.hidden(tokens[None])[0][0]
        sight = Sight(chunk=8, sharpness=1.0, share=0.5, kept=0.5)
        student, opened = learned.read(full, tokens, sight)
    assert torch.allclose(student, teacher, atol=1e-4) and opened.min() > 0.999


def test_the_divergence_falls_where_a_passage_is_read_again(given: tuple[LanguageModel, Tokenizer]) -> None:
    model, passage = scored(given[0]).float(), random_passage(120, asks_from=0)
    learned = Learned(model, 0)
    learned.start(model, sampled(model, [passage]), 0.3)
    optimizers = [torch.optim.AdamW(learned.parameters(), lr=0.02, weight_decay=0.0)]
    sight = Sight(chunk=16, sharpness=2.0, share=0.3, kept=0.3)
    steps = [update(learned, optimizers, model, passage, sight) for _ in range(12)]
    assert steps[-1].kl < 0.7 * steps[0].kl
    assert all(step.gradient_norm > 0 for step in steps)


def test_a_bank_that_holds_all_is_not_behind(given: tuple[LanguageModel, Tokenizer]) -> None:
    model, many = given[0].float(), [random_passage(150, 100), random_passage(60, 0)]
    opened = [
        (torch.zeros(2, model.config.d_model), torch.full((2,), 40.0)) for _ in range(model.config.n_layers)
    ]
    assert abs(behind(with_scores(model.with_slots(150), opened), model, many)) < 1e-5
    some = scored(model)
    tokens = torch.from_numpy(many[0].ids)[None]
    with torch.no_grad():
        log_p, log_q = (
            each(tokens)[0][0, 64:].log_softmax(1) for each in (with_all_in_sight(model, 150), some)
        )
    kl = (log_p.exp() * (log_p - log_q)).sum(1)
    expected = (kl[:36].sum() + ASKED * kl[36:].sum()) / (36 + 50 * ASKED)
    assert behind(some, model, many) == pytest.approx(expected.item(), rel=1e-3) and expected > 1e-4


def test_a_price_is_paid_beyond_the_share_alone() -> None:
    lately = torch.tensor([[0.0, 0.3, 0.45], [0.6, 0.9, 0.2999]])
    assert torch.allclose(price(lately, 0.3), PRICE * torch.tensor([[0.0, 0.0, 0.5], [1.0, 1.0, 0.0]]))


def test_passages_are_the_same_wherever_one_begins(given: tuple[LanguageModel, Tokenizer]) -> None:
    many = list(islice(passages(FEW, given[1]), 7))
    again = list(islice(passages(FEW, given[1], 4), 3))
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(many[4:], again, strict=True))
    assert not np.array_equal(many[0].ids, many[3].ids)
    assert sum(bool(passage.asks.all()) for passage in many[:3]) == 2  # prose


class Stopping(Silent):
    """Says SIGINT after an update."""

    def __init__(self, after: int) -> None:
        self.after, self.said = after, ""

    def say(self, message: str) -> None:
        self.said += message + "\n"

    def stepped(self, step: int) -> None:
        if step == self.after:
            os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_is_not_interrupted(given: tuple[LanguageModel, Tokenizer], tmp_path: Path) -> None:
    model, tokenizer = given[0].float().with_slots(eviction="weakest", fade=0.5), given[1]
    config = dataclasses.replace(FEW, lora=2)
    whole = distil(model, tokenizer, config, tmp_path / "whole", reporter=Silent())
    assert whole is not None
    first = Stopping(after=2)
    assert distil(model, tokenizer, config, tmp_path / "parts", reporter=first) is None
    assert "the same command goes on" in first.said and not (tmp_path / "parts" / "config.json").exists()
    with pytest.raises(ValueError, match="was started with another share: put that back"):
        distil(model, tokenizer, dataclasses.replace(config, share=0.4), tmp_path / "parts")
    with pytest.raises(ValueError, match="was started with another model"):
        distil(scored(model), tokenizer, config, tmp_path / "parts")
    second = Stopping(after=0)
    parts = distil(model, tokenizer, config, tmp_path / "parts", reporter=second)
    assert parts is not None and "continuing after update 2" in second.said
    written, _ = load(tmp_path / "parts")
    for name, x in whole.state_dict().items():
        assert torch.equal(x, parts.state_dict()[name]) and torch.equal(x, written.state_dict()[name]), name
        learned = ".score." in name or name.endswith(("query.weight", "key.weight"))
        assert torch.equal(x, model.state_dict()[name]) != learned, name
    rows = [
        [json.loads(line) for line in (tmp_path / each / "distil" / "metrics.jsonl").open()]
        for each in ("whole", "parts")
    ]
    for name in ("step", "tokens", "loss", "price", "openness", "gradient_norm", "lr", "chunk", "pace"):
        assert [row.get(name) for row in rows[0]] == [row.get(name) for row in rows[1]], name
    assert [(row["kind"], row["step"]) for row in rows[0]] == [
        ("eval", 0),
        *(("train", step) for step in (1, 2, 3, 4)),
        ("eval", 4),
    ]
    # Of a round, one of three passages asks.
    assert [row["pace"] > 1 for row in rows[0][1:4]].count(True) == 1
    assert all(1 <= row["pace"] < 8 and row["chunk"] <= 32 for row in rows[0][1:-1])
    result = json.loads((tmp_path / "whole" / "distil" / "result.json").read_text())
    assert result["steps"] == 4
    assert (result["kl_before"], result["kl_after"]) == (rows[1][0]["kl"], rows[1][-1]["kl"])
    environment = json.loads((tmp_path / "whole" / "distil" / "environment.json").read_text())
    assert environment["seed"] == 0 and environment["versions"]["torch"]
    assert json.loads((tmp_path / "whole" / "distil" / "config.json").read_text())["lora"] == 2


def test_the_share_of_a_fitted_gate_is_admitted(
    given: tuple[LanguageModel, Tokenizer], tmp_path: Path
) -> None:
    """And nothing but the gates is other than before."""
    model, tokenizer = given[0].float(), given[1]
    config = dataclasses.replace(FEW, share=0.25, steps=2)
    done = distil(model, tokenizer, config, tmp_path, reporter=Silent())
    assert done is not None
    inputs = sampled(done, list(islice(passages(config, tokenizer), 3)))
    # In the first layer all tokens of one id have one score, and many stand at the threshold.
    score: Any = done.blocks[1].memory.writer.score  # type: ignore[union-attr]
    admitted = ((inputs[1] @ score.weight.T + score.bias) > 0).double().mean(0)
    assert torch.allclose(admitted, torch.full_like(admitted, 0.25), atol=0.01)
    for name, x in done.state_dict().items():
        assert torch.equal(x, model.state_dict()[name]) != (".score." in name), name


def test_scores_stay_as_far_apart_as_they_were(
    given: tuple[LanguageModel, Tokenizer], tmp_path: Path
) -> None:
    """By key head: that says how fast each forgets where strength fades."""
    tensors = {name: x.clone() for name, x in given[0].float().state_dict().items()}
    for part in ("weight", "bias"):
        tensors[f"blocks.1.memory.writer.score.{part}"][1] *= 0.125
    model = assigned(given[0].config, tensors)
    config = dataclasses.replace(FEW, steps=2)
    done = distil(model, given[1], config, tmp_path, reporter=Silent())
    assert done is not None
    inputs = sampled(model, list(islice(passages(config, given[1]), SCALING_PASSAGES)))[1]
    before, after = (
        (inputs @ each.state_dict()["blocks.1.memory.writer.score.weight"].T).std(0) for each in (model, done)
    )
    assert torch.allclose(before, after, rtol=0.01) and before[0] > 4 * before[1]


def test_a_head_forgets_as_fast_as_it_learned(given: tuple[LanguageModel, Tokenizer], tmp_path: Path) -> None:
    """All strengths fade by the same number: the scores of a head that should forget fast are near."""
    model = given[0].float().with_slots(eviction="weakest", fade=0.5)
    learned, samples = Learned(model, 0), sampled(model, [random_passage(120, 0)])
    learned.start(model, samples, 0.9)
    slow, fast = 0.0625, 1.0
    with torch.no_grad():
        learned.blocks[1]["gate"].log_fade.copy_(torch.tensor([slow, fast]).log() / 10)
    spread = learned.spreads(samples)[1]
    score = learned.blocks[1]["gate"](samples[1]).std(0)
    assert torch.allclose(spread / score, torch.tensor([0.5 / slow, 0.5 / fast]).double(), rtol=1e-4)
    with torch.no_grad():
        learned.blocks[1]["gate"].log_fade.copy_(torch.tensor([-5.0, 5.0]))
    learned.bound()
    fades = learned.blocks[1]["gate"].fades()
    assert torch.allclose(fades, torch.tensor([0.5 / 8, 0.5 * 4]))


def test_attention_at_once_is_attention_chunk_by_chunk() -> None:
    """With gradients to queries, keys, values and gates, at a length that no chunk divides."""
    random = torch.Generator().manual_seed(3)
    shapes = ((1, 47, 6, 8), (1, 47, 2, 8), (1, 47, 2, 8), (6, 47, 2))
    q, k, v, gate = (torch.randn(x, generator=random, dtype=torch.float64) for x in shapes)
    made = []
    for form in (attend_gated, attend_at_once):
        given = [x.clone().requires_grad_() for x in (q, k, v, gate)]
        out = form(*given, 9)
        made.append((out, *torch.autograd.grad(out.sin().sum(), given)))
    for one, other in zip(*made, strict=True):
        assert torch.allclose(one, other, atol=1e-10) and one.abs().max() > 1e-6


def test_attention_to_few_tokens_is_causal(given: tuple[LanguageModel, Tokenizer]) -> None:
    """Nothing is out of reach of tokens fewer than two chunks, whatever the gates are."""
    model = given[0].float()
    full = with_all_in_sight(model, 9)
    learned = Learned(model, 0)
    tokens = torch.randint(3, 320, (9,))
    for own in learned.blocks:
        own["gate"].bias.data.fill_(-40.0)
    with torch.no_grad():
        student, _ = learned.read(full, tokens, Sight(chunk=5, sharpness=1.0, share=0.5, kept=0.5))
        assert torch.allclose(student, full.hidden(tokens[None])[0][0], atol=1e-5)


def test_what_cannot_be_distilled_is_refused(
    source: Path, given: tuple[LanguageModel, Tokenizer], tmp_path: Path
) -> None:
    opened, tokenizer = from_pretrained(source, window=64, n_slots=48)
    with pytest.raises(ValueError, match="are all open: fit them first"):
        distil(opened, tokenizer, FEW, tmp_path)
    with pytest.raises(ValueError, match="no gate for each key head"):
        distil(from_pretrained(source, window=2048)[0], tokenizer, FEW, tmp_path)
    for wrong in ({"share": 1.0}, {"steps": 0}, {"minutes": 0.0}, {"lr": -1.0}, {"lora": -1}):
        with pytest.raises(ValueError, match=f"distil.{next(iter(wrong))}="):
            DistilConfig(**wrong)  # type: ignore[arg-type]
    assert DistilConfig(data="one").data == ("one",)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave nothing to read"):
        DistilConfig(n_prose=0, n_asking=0)
    with pytest.raises(ValueError, match=r"distil\.length=4097 is not possible: .* from 1 to"):
        distil(*given, dataclasses.replace(FEW, length=4097), tmp_path)
    with pytest.raises((ValueError, OSError), match="nowhere"):
        distil(*given, dataclasses.replace(FEW, data=(str(tmp_path / "nowhere"),)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command(
    given: tuple[LanguageModel, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    given[0].float().save(folder, tokenizer=given[1])
    few = ["gates", str(folder), "--prose", "1", "--asking", "0", "--steps", "2"]
    assert main(few) == 2
    assert "--steps is for --method distil" in capsys.readouterr().err
    assert main([*few, "--method", "distil", "--eviction", "weakest", "--device", "cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["folder"] == str(folder) and printed["steps"] == 2
    after, _ = load(folder)
    assert after.config.eviction == "weakest"
    name = "blocks.1.memory.writer.score.weight"
    assert not torch.equal(after.state_dict()[name], given[0].state_dict()[name])
    assert len((folder / "distil" / "metrics.jsonl").read_text().splitlines()) == 4
