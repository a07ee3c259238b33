"""Cells of a table: a model that knows the answers scores one, one that knows some scores their share."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rmat.data.tokenizer import Tokenizer, byte_tokenizer
from rmat.evaluation.asking import Cell, QuestionResult, ask
from rmat.tasks.babilong import BabilongQuestions
from rmat.tasks.needle import NEEDLE_TASKS, NeedleQuestions
from rmat.tasks.passkey import PasskeyQuestions
from rmat.tasks.task import TextQuestions
from tests.makers.sources import write_babi, write_books
from tests.makers.stores import Rows, StandIn, tiny_model

BYTES = byte_tokenizer()
ASKING = ("samples", "seed", "batch_size", "piece", "memory", "max_new_tokens", "advance")


def asked(
    kind: type[TextQuestions], model: Any, tokenizer: Tokenizer, options: dict[str, Any]
) -> QuestionResult:
    """The questions with their fields, asked with the rest of the options."""
    how = {name: options.pop(name) for name in ASKING if name in options}
    return ask(model, tokenizer, kind(**options), **how)


def passkey(model: Any, tokenizer: Tokenizer, **options: Any) -> QuestionResult:
    return asked(PasskeyQuestions, model, tokenizer, options)


def needle(model: Any, tokenizer: Tokenizer, **options: Any) -> QuestionResult:
    return asked(NeedleQuestions, model, tokenizer, options)


def babilong(model: Any, tokenizer: Tokenizer, **options: Any) -> QuestionResult:
    return asked(BabilongQuestions, model, tokenizer, options)


def find(text: str) -> str:
    """The answer to the question at a text's end, found by looking for it."""
    if key := re.search(r"The pass key is (\d+)\.", text):
        return f" {key[1]}"
    if value := re.search(r"\nWhich variables hold the value", text):
        return " " + ", ".join(re.findall(r"\nVAR ([A-Z]{5}) =", text[: value.start()]))
    if asked := re.search(r"\nWhat (?:is|are) the special magic \w+ for (.*?)\?", text):
        told = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", text)
        keys = re.split(r", and |, ", asked[1])
        return " " + ", ".join(value for key in keys for name, value in told if name == key)
    person = re.findall(r"Question: Where is (\w+)\?", text)[-1]
    return " " + re.findall(rf"{person} (?:moved|went|went back) to the (\w+)\.", text)[-1]


class Finder(StandIn):
    """Knows what it read, and answers right unless the memory is off or `spoil` changes the answer."""

    def __init__(self, spoil=lambda answer: answer) -> None:
        super().__init__()
        self.config = tiny_model(vocab_size=BYTES.vocab_size).config
        self.spoil = spoil

    def initial_state(self, batch_size: int) -> Rows:
        return Rows([] for _ in range(batch_size))

    def forward(self, tokens, state, valid=None, memory="on"):
        logits = torch.zeros(*tokens.shape, BYTES.vocab_size)
        state = Rows(list(row) for row in state)
        for b, row in enumerate(tokens.tolist()):
            real = row if valid is None else [x for x, ok in zip(row, valid[b].tolist(), strict=True) if ok]
            state[b] += real
            if real and memory == "on":
                logits[b, len(real) - 1, self.next_token(state[b])] = 1.0
        return logits, state

    def next_token(self, ids: list[int]) -> int:
        text = BYTES.decode(ids)
        start = re.search(r".*(?:\? The .*?(?: is| are| hold it are)|Answer:)", text, re.DOTALL)
        if not start:
            return 0
        prompt, said = text[: start.end()], text[start.end() :]
        answer = self.spoil(find(prompt)).encode()
        return answer[len(said)] if len(said) < len(answer) else BYTES.special_id("turn_end")


def test_passkey_of_a_perfect_memory_is_one_in_every_cell(tmp_path: Path) -> None:
    told: list[int] = []
    found = passkey(
        Finder(), BYTES, length=(200, 400), samples=6, filler=("noise", str(write_books(tmp_path))),
        batch_size=4, piece=64, seed=3, advance=told.append,
    )  # fmt: skip
    made = found.to_dict()
    assert json.loads(json.dumps(made)) == made
    assert [(cell["task"], cell["length"], cell["depth"]) for cell in made["cells"]] == [
        ("passkey", length, depth) for length in (200, 400) for depth in (0.0, 0.5, 1.0)
    ]
    assert all(cell["samples"] == 6 and cell["accuracy"] == cell["high"] == 1.0 for cell in made["cells"])
    assert all(0.5 < cell["low"] < 1.0 for cell in made["cells"])
    assert (made["state_bytes"], made["memory"], made["seed"]) == (17, "on", 3)
    assert 0.9 * 3 * 6 * 600 < sum(told) < 3 * 6 * 600
    shown = [(example["length"], example["depth"]) for example in made["examples"]]
    assert shown == [(200, 0.0), (200, 0.5), (200, 1.0), (400, 0.0), (400, 0.5)], "the first of each cell"
    first = made["examples"][0]
    assert first["prompt_end"].endswith("The pass key is") and len(first["prompt_end"]) <= 300
    assert first["output"] == first["reference"] and first["score"] == 1.0


def test_passkey_without_a_memory_is_zero() -> None:
    assert [cell.to_dict()["accuracy"] for cell in passkey(
        Finder(), BYTES, length=(200,), samples=3, memory="zeroed").cells] == [0.0] * 3  # fmt: skip


def test_an_answer_that_goes_on_is_wrong() -> None:
    found = passkey(Finder(lambda answer: answer + "0"), BYTES, length=(200,), depth=(0.5,), samples=3)
    assert found.cells[0].scores == (0.0,) * 3


def test_needles_of_a_perfect_memory_are_one_in_every_task(tmp_path: Path) -> None:
    found = needle(Finder(), BYTES, length=(900,), samples=3, haystack=str(write_books(tmp_path))).to_dict()
    assert [cell["task"] for cell in found["cells"]] == list(NEEDLE_TASKS)
    assert all(cell["accuracy"] == 1.0 for cell in found["cells"])


def test_needles_score_the_share_that_is_found(tmp_path: Path) -> None:
    cut = Finder(lambda answer: ",".join(answer.split(",")[:3]))
    found = needle(
        cut,
        BYTES,
        length=(900,),
        task=("multivalue", "tracking"),
        samples=3,
        haystack=str(write_books(tmp_path)),
    )
    assert [cell.scores for cell in found.cells] == [(0.75,) * 3, (0.6,) * 3]


def test_babilong_of_a_perfect_memory_is_one(tmp_path: Path) -> None:
    facts = str(write_babi(tmp_path / "babi", "test", 4))
    books = str(write_books(tmp_path / "books"))
    found = babilong(
        Finder(), BYTES, facts=facts, filler=books, task=(1,), length=(0, 600), samples=50
    ).to_dict()
    cells = [(cell["task"], cell["length"], cell["samples"], cell["accuracy"]) for cell in found["cells"]]
    assert cells == [("qa1", 0, 12, 1.0), ("qa1", 600, 12, 1.0)], "every question of the file once"


def test_babilong_scores_free_answers_by_their_labels(tmp_path: Path) -> None:
    facts = str(write_babi(tmp_path, "test", 2))
    wordy = Finder(lambda answer: f" the{answer}.")
    for scorer, score in (("exact", 0.0), ("labels", 1.0)):
        found = babilong(wordy, BYTES, facts=facts, task=(1,), length=(0,), scorer=scorer)
        assert found.cells[0].scores == (score,) * 6


def test_same_seed_same_scores_whatever_the_batch() -> None:
    model = tiny_model(vocab_size=BYTES.vocab_size)
    one, again, other = (
        passkey(model, BYTES, length=(200,), depth=(0.5,), samples=4, seed=seed, batch_size=size)
        for seed, size in ((0, 1), (0, 4), (1, 4))
    )
    assert one == again and one.examples != other.examples


def test_shares_have_bootstrapped_bounds_and_whole_scores_wilsons() -> None:
    def bounds(*scores: float) -> tuple[float, float, float]:
        made = Cell(task="x", length=1, depth=None, scores=scores).to_dict()
        return made["low"], made["accuracy"], made["high"]

    assert bounds(1.0, 0.0, 1.0, 1.0) == pytest.approx((0.3006, 0.75, 0.9544), abs=1e-4)
    low, accuracy, high = bounds(0.5, 0.75, 0.25, 0.5)
    assert low < accuracy == 0.5 < high and low >= 0.25 and high <= 0.75


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    facts = str(write_babi(tmp_path, "test", 2))
    model = Finder()
    with pytest.raises(ValueError, match="samples=0: ask at least one"):
        passkey(model, BYTES, length=(200,), samples=0)
    with pytest.raises(ValueError, match="samples=0: ask at least one"):
        babilong(model, BYTES, facts=facts, length=(0,), samples=0)
    with pytest.raises(ValueError, match="scorer='any' is not possible"):
        babilong(model, BYTES, facts=facts, length=(0,), scorer="any")
    with pytest.raises(ValueError, match="no labels for task 7"):
        babilong(model, BYTES, facts=facts, length=(0,), task=(1, 7), scorer="labels")
    with pytest.raises(ValueError, match="the least length is"):
        passkey(model, BYTES, length=(20,))
    assert isinstance(passkey(model, BYTES, length=(150,), samples=1, depth=(0.0,)), QuestionResult)
