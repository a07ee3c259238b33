"""The recall scorer on hand-made answers, the cells it makes of them, and its readings in pieces."""

import dataclasses

import pytest
import torch
from torch import Tensor

from rmat.evaluation.recall import Answers, RecallCell, recall, score_answers
from rmat.model import ModelConfig
from rmat.tasks.recall import RecallTask
from tests.makers.stores import StandIn, tiny_model

TASK = RecallTask(n_pairs=2, n_keys=4, n_values=4, n_filler=4, length=24)


def test_scorer_counts_right_and_wrong_answers() -> None:
    ignored = -100
    targets = torch.tensor([[ignored, 7, ignored, 5, 7], [4, ignored, ignored, 4, ignored]])
    first = torch.tensor([[False, True, False, True, False], [True, False, False, False, False]])
    predicted = torch.tensor([[7, 7, 7, 4, 7], [4, 4, 4, 5, 4]])
    # Asked: 7 (first, right), 5 (first, wrong), 7 (again, right); 4 (first, right), 4 (again, wrong).
    assert score_answers(predicted, targets, first) == Answers(first_right=2, first_asked=3, right=3, asked=5)


def test_answer_at_a_place_that_is_not_asked_counts_nothing() -> None:
    targets = torch.full((1, 3), -100)
    found = score_answers(torch.tensor([[-100, -100, 5]]), targets, torch.zeros(1, 3, dtype=torch.bool))
    assert found == Answers()


def test_answers_add_up() -> None:
    one, other = Answers(first_right=1, first_asked=2, right=3, asked=4), Answers(asked=5)
    assert one + other == Answers(first_right=1, first_asked=2, right=3, asked=9)


def test_cell_has_the_accuracy_of_first_queries_and_of_all() -> None:
    answers = Answers(first_right=9, first_asked=10, right=15, asked=20)
    cell = RecallCell(length=64, queries="end", rows=5, answers=answers).to_dict()
    assert (cell["task"], cell["length"], cell["depth"]) == ("recall", 64, 0.0)
    assert (cell["samples"], cell["accuracy"]) == (10, 0.9)
    assert cell["low"] < 0.9 < cell["high"]
    assert (cell["all"]["samples"], cell["all"]["accuracy"]) == (20, 0.75)


class Oracle(StandIn):
    """Answers every query right, as it sees the pairs through its state: a dict from key to value for each row."""

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
    found = recall(oracle, TASK, lengths=(24, 400), queries=queries, rows=5, batch_size=3, piece=7)
    assert max(oracle.calls) == 7 and sum(oracle.calls) == 2 * (24 + 400)
    for cell in found.cells:
        assert cell.rows == 5 and cell.answers.asked > 0
        assert (
            cell.answers.right == cell.answers.asked and cell.answers.first_right == cell.answers.first_asked
        )
        # Each key of a row is asked for the first time at most once.
        assert cell.answers.first_asked <= 5 * TASK.n_pairs
    assert found.state_bytes == 17


def test_memory_mode_reaches_the_model() -> None:
    found = recall(Oracle(), TASK, lengths=(400,), rows=8, memory="zeroed")
    assert found.cells[0].answers.right == 0


def test_queries_at_the_end_stand_in_the_last_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def look(predicted: Tensor, targets: Tensor, first: Tensor) -> Answers:
        seen.append(targets)
        return score_answers(predicted, targets, first)

    monkeypatch.setattr("rmat.evaluation.recall.score_answers", look)
    recall(Oracle(), TASK, lengths=(400,), rows=2, piece=400)
    asked = (seen[0] >= 0).nonzero()[:, 1]
    assert int(asked.min()) >= 360


def test_same_seed_same_cells() -> None:
    model = tiny_model(vocab_size=TASK.vocab_size)
    one, again, other = (recall(model, TASK, lengths=(100,), rows=30, seed=seed).cells for seed in (0, 0, 1))
    assert one == again != other


def test_refuses_a_model_with_too_few_tokens() -> None:
    with pytest.raises(ValueError, match=r"task needs 12 tokens, the model has 5"):
        recall(tiny_model(vocab_size=5), TASK)
