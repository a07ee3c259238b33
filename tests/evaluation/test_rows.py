"""Scores on rows of a task: counted by hand, of batches of unequal rows, and of a model that is left as it
was."""

import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmat.api import evaluate
from rmat.data.config import DataConfig
from rmat.data.lanes import Batch
from rmat.data.tokenizer import load_tokenizer
from rmat.evaluation.asking import ask
from rmat.evaluation.rows import VALIDATION_BATCHES, ask_rows, score_rows
from rmat.model.evaluating import is_training
from rmat.tasks.corpus import HeldOutRows, load_tasks
from rmat.tasks.lanes import pad_rows
from rmat.tasks.passkey import PasskeyQuestions
from rmat.tasks.recall import RecallQuestions
from rmat.tasks.task import Row
from tests.makers.stores import StandIn, tiny_model

VOCABULARY = 8


class Copy(StandIn):
    """Says the token that it reads, with a logit of `confidence` against zeros."""

    def __init__(self, confidence: float = 2.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=VOCABULARY)
        self.confidence = confidence
        self.asked = 0

    def hidden(self, tokens: Tensor, *_: None, **__: object) -> tuple[Tensor, int]:
        assert not is_training(self) and not torch.is_grad_enabled()
        return torch.nn.functional.one_hot(tokens, VOCABULARY).double(), 0

    def logits(self, hidden: Tensor) -> Tensor:
        self.asked += len(hidden)
        return self.confidence * hidden


class Held:
    """Batches made by hand: of each row its tokens and targets."""

    def __init__(self, *batches: list[tuple[list[int], list[int]]]) -> None:
        self.made = [pad_rows([Row(np.array(x), np.array(y)) for x, y in rows], 0) for rows in batches]

    def batches(self, count: int) -> Iterator[Batch]:
        return iter(self.made[:count])


NO = -100
RIGHT_AND_WRONG = [([1, 2, 3], [NO, 2, 4]), ([5, 6], [5, 6])]
"""One row with a right and a wrong answer, and a shorter one with two right."""


def score(*batches: list[tuple[list[int], list[int]]], **options: Any) -> dict[str, float]:
    return score_rows(Copy(), Held(*batches), **options)  # type: ignore[arg-type]


def nats(right: int, wrong: int) -> float:
    """Mean cross entropy of the copier's answers."""
    total = math.log(math.exp(2.0) + VOCABULARY - 1)
    return (right * (total - 2.0) + wrong * total) / (right + wrong)


def test_scores_are_those_counted_by_hand() -> None:
    found = score(RIGHT_AND_WRONG)
    assert found == {"nats": pytest.approx(nats(3, 1)), "accuracy": 0.75, "rows_right": 0.5}
    assert next(iter(found)) == "nats", "the first is the one to be small"


def test_all_right_and_all_wrong() -> None:
    right, wrong = score([([1], [1]), ([2], [2])]), score([([1], [2]), ([2], [3])])
    assert (right["accuracy"], right["rows_right"]) == (1.0, 1.0)
    assert (wrong["accuracy"], wrong["rows_right"]) == (0.0, 0.0)
    assert right["nats"] == pytest.approx(nats(1, 0)) and wrong["nats"] == pytest.approx(nats(0, 1))


def test_batches_count_by_their_scored_tokens() -> None:
    found = score(RIGHT_AND_WRONG, [([7], [6])])
    assert found == {"nats": pytest.approx(nats(3, 2)), "accuracy": 0.6, "rows_right": pytest.approx(1 / 3)}


def test_only_so_many_batches_are_read() -> None:
    assert score(RIGHT_AND_WRONG, [([7], [6])], batches=1)["accuracy"] == 0.75
    model = Copy()
    score_rows(model, Held(*[[([1], [1])]] * 9))  # type: ignore[arg-type]
    assert model.asked == VALIDATION_BATCHES


def test_the_head_is_asked_for_scored_places_only() -> None:
    model = Copy()
    score_rows(model, Held(RIGHT_AND_WRONG))  # type: ignore[arg-type]
    assert model.asked == 4


def test_a_row_without_questions_counts_as_neither_right_nor_wrong() -> None:
    assert score([([1, 2], [1, NO]), ([1, 2], [NO, NO]), ([1, 2], [2, NO])])["rows_right"] == 0.5


def test_no_question_at_all_is_not_a_number() -> None:
    assert all(math.isnan(value) for value in score([([1, 2], [NO, NO])]).values())


def held_out(spec: str = "mqar:pairs=2,length=16,vocabulary=32") -> HeldOutRows:
    return load_tasks(DataConfig(specs=(spec,))).held_out(3, 24)


def test_a_real_model_is_scored_by_its_own_logits_and_left_as_it_was() -> None:
    rows = held_out()
    model = tiny_model(vocab_size=50, dropout=0.5).train()
    found = score_rows(model, rows, batches=3)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    losses, right = [], []
    model.eval()
    for batch in rows.batches(3):
        with torch.no_grad():
            logits, _ = model(batch.tokens)
        asked = batch.targets >= 0
        losses.append(
            torch.nn.functional.cross_entropy(logits[asked], batch.targets[asked], reduction="none")
        )
        right.append(logits[asked].argmax(-1) == batch.targets[asked])
    assert found["nats"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float(torch.cat(right).double().mean()))
    assert score_rows(model, rows, batches=3) == found
    assert not model.training


def test_the_mode_is_restored_after_an_error() -> None:
    model = tiny_model(vocab_size=20).train()
    with pytest.raises(ValueError, match="vocab_size"):
        score_rows(model, held_out())
    assert model.training


def test_training_scores_rows_by_the_same_function() -> None:
    rows, model = held_out(), tiny_model(vocab_size=50)
    tokenizer = load_tasks(DataConfig(specs=("mqar:pairs=2,length=16,vocabulary=32",))).tokenizer
    assert evaluate(model, tokenizer, rows) == score_rows(model, rows)


def test_numbers_of_numpy_are_numbers_and_the_callers_random_numbers_stay() -> None:
    model, number = tiny_model(vocab_size=200), np.int64
    kept, kept_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    plain = ask_rows(model, RecallQuestions(length=(64,), pairs=4), rows=3, batch_size=2, seed=5)
    made = RecallQuestions(length=(number(64),), pairs=number(4))
    found = ask_rows(model, made, rows=number(3), batch_size=number(2), piece=number(48), seed=number(5))
    assert json.loads(json.dumps(found.to_dict())) == plain.to_dict()
    assert torch.equal(torch.get_rng_state(), kept)
    assert (np.random.get_state()[1] == kept_numpy).all()  # type: ignore[index]


def test_numbers_of_numpy_are_numbers_in_questions_of_text() -> None:
    tokenizer, number = load_tokenizer("bytes"), np.int64
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    plain = ask(model, tokenizer, PasskeyQuestions(length=(160,), depth=(0.5,), digits=4), samples=2, seed=5)
    made = PasskeyQuestions(length=(number(160),), depth=(np.float64(0.5),), digits=number(4))
    found = ask(model, tokenizer, made, samples=number(2), batch_size=number(2), seed=number(5))
    assert json.loads(json.dumps(found.to_dict())) == plain.to_dict()


def test_rows_do_not_depend_on_the_defaults_of_the_process() -> None:
    model = tiny_model(vocab_size=200)
    for queries in ("end", "everywhere"):
        made = RecallQuestions(length=(64,), pairs=4, queries=queries)  # type: ignore[arg-type]
        plain = ask_rows(model, made, rows=3, seed=5).to_dict()
        with torch.device("meta"):
            assert ask_rows(model, made, rows=3, seed=5).to_dict() == plain
        torch.set_default_dtype(torch.float64)
        try:
            assert ask_rows(model, made, rows=3, seed=5).to_dict() == plain
        finally:
            torch.set_default_dtype(torch.float32)
