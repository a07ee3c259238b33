"""The recall scorer on hand-made answers, the cells it makes of them, and its readings in pieces."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from rmat.evaluation.rows import Answers, RowResult, ask_rows
from rmat.model import ModelConfig
from rmat.tasks.recall import RecallQuestions, RecallTask
from rmat.tasks.task import RowPart
from tests.makers.stores import StandIn, tiny_model

TASK = RecallTask(n_pairs=2, n_keys=4, n_values=4, n_filler=4, length=24)


def recall(model: Any, task: RecallTask, **options: Any) -> RowResult:
    fields = {name: options.pop(name) for name in ("length", "queries") if name in options}
    return ask_rows(model, RecallQuestions(task=task, **fields), **{"rows": 64, "batch_size": 32, **options})


def counted(predicted: Tensor, part: RowPart) -> list[int]:
    """First right, first asked, right, asked, over all rows."""
    found = Answers.none(len(predicted))
    found.count(predicted, part)
    return [int(x.sum()) for x in (found.first_right, found.first_asked, found.right, found.asked)]


def test_scorer_counts_right_and_wrong_answers() -> None:
    ignored = -100
    targets = torch.tensor([[ignored, 7, ignored, 5, 7], [4, ignored, ignored, 4, ignored]])
    first = torch.tensor([[False, True, False, True, False], [True, False, False, False, False]])
    predicted = torch.tensor([[7, 7, 7, 4, 7], [4, 4, 4, 5, 4]])
    # Asked: 7 (first, right), 5 (first, wrong), 7 (again, right); 4 (first, right), 4 (again, wrong).
    assert counted(predicted, RowPart(predicted, targets, first)) == [2, 3, 3, 5]


def test_answer_at_a_place_that_is_not_asked_counts_nothing() -> None:
    targets = torch.full((1, 3), -100)
    predicted = torch.tensor([[-100, -100, 5]])
    assert counted(predicted, RowPart(predicted, targets, torch.zeros(1, 3, dtype=torch.bool))) == [
        0,
        0,
        0,
        0,
    ]


def test_answers_add_up() -> None:
    found = Answers.none(1)
    for predicted in ([1, 2], [1, 9]):
        tokens, targets = torch.tensor([predicted]), torch.tensor([[1, 2]])
        found.count(tokens, RowPart(tokens, targets, torch.tensor([[True, False]])))
    assert (int(found.first_right), int(found.first_asked), int(found.right), int(found.asked)) == (
        2,
        2,
        3,
        4,
    )


def test_cell_has_the_accuracy_of_first_queries_and_of_all() -> None:
    cell = recall(Oracle(), TASK, length=(400,), rows=5).cells[0]
    assert (cell["task"], cell["length"], cell["depth"]) == ("recall", 400, 0.0)
    assert cell["low"] < cell["accuracy"] == cell["high"] == 1.0
    assert cell["all"]["samples"] > cell["samples"] > 0 and cell["all"]["accuracy"] == 1.0


class Oracle(StandIn):
    """Answers every query right, as it sees the pairs through its state: a dict from key to value for each
    row."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfig.preset("tiny", variant="local", vocab_size=TASK.vocab_size)
        self.calls: list[int] = []

    def initial_state(self, batch_size: int) -> "Oracle.State":
        return self.State([{} for _ in range(batch_size)], 0)

    @dataclasses.dataclass
    class State:
        pairs: list[dict[int, int]]
        position: int
        nbytes: int = 17

    def forward(
        self, tokens: Tensor, state: "Oracle.State", valid: None, memory: str
    ) -> tuple[Tensor, "Oracle.State"]:
        self.calls.append(tokens.shape[1])
        logits = torch.zeros(*tokens.shape, TASK.vocab_size)
        for b, row in enumerate(tokens.tolist()):
            for t, token in enumerate(row):
                place = state.position + t
                if place < 2 * TASK.n_pairs and place % 2:
                    state.pairs[b][self.key[b]] = token
                elif place < 2 * TASK.n_pairs:
                    self.key = {**getattr(self, "key", {}), b: token}
                elif memory == "on" and token in state.pairs[b]:
                    logits[b, t, state.pairs[b][token]] = 1.0
        return logits, self.State(state.pairs, state.position + tokens.shape[1])


@pytest.mark.parametrize("queries", ["end", "everywhere"])
def test_perfect_memory_scores_one_at_any_length_read_in_pieces(queries: str) -> None:
    oracle = Oracle()
    found = recall(oracle, TASK, length=(24, 400), queries=queries, rows=5, batch_size=3, piece=7)
    assert max(oracle.calls) == 7 and sum(oracle.calls) == 2 * (24 + 400)
    for cell in found.cells:
        assert cell["rows"] == 5 and cell["all"]["samples"] > 0
        assert cell["accuracy"] == cell["all"]["accuracy"] == 1.0
        # Each key of a row is asked for the first time at most once.
        assert cell["samples"] <= 5 * TASK.n_pairs
    assert found.state_bytes == 17


def test_memory_mode_reaches_the_model() -> None:
    found = recall(Oracle(), TASK, length=(400,), rows=8, memory="zeroed")
    assert found.cells[0]["all"]["accuracy"] == 0


def test_queries_at_the_end_stand_in_the_last_tenth() -> None:
    (cell,) = RecallQuestions(task=TASK, length=(400,)).cells(2, 0, 400)
    (part,) = cell.batch(0, 2)
    asked = (part.targets >= 0).nonzero()[:, 1]
    assert int(asked.min()) >= 360


def test_same_seed_same_cells() -> None:
    model = tiny_model(vocab_size=TASK.vocab_size)
    one, again, other = (recall(model, TASK, length=(100,), rows=30, seed=seed).cells for seed in (0, 0, 1))
    assert one == again != other


def test_refuses_a_model_with_too_few_tokens() -> None:
    with pytest.raises(ValueError, match=r"task needs 12 tokens, the model has 5"):
        recall(tiny_model(vocab_size=5), TASK)
