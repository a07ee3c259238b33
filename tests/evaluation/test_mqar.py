"""Recall by number of pairs: of models that know, do not know, or half know the answers, and of a real
one."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rmat.evaluation.rows import RowResult, ask_rows
from rmat.model.evaluating import is_training
from rmat.tasks.mqar import TEST_MIX, MqarQuestions
from tests.makers.stores import StandIn, tiny_model

VOCABULARY = 40


class Known(StandIn):
    """Answers a key that stands once more by the newest value that stood behind it in the pairs of the row.

    A hidden vector is the answer as a number; `spoil(batch, answer)` changes those of a call.
    """

    class State:
        nbytes = 17

    def __init__(self, spoil: Callable[[int, Tensor], Tensor] = lambda call, answer: answer) -> None:
        super().__init__()
        self.config = tiny_model(vocab_size=VOCABULARY).config
        self.spoil = spoil
        self.stated = 4
        self.calls: list[tuple[int, ...]] = []
        self.modes: set[str] = set()

    def initial_state(self, batch_size: int) -> "Known.State":
        assert batch_size == 1
        return self.State()

    def hidden(self, tokens: Tensor, state: Any, *, valid: Tensor | None, memory: str) -> tuple[Tensor, int]:
        assert not is_training(self)
        self.calls.append(tuple(tokens.shape))
        self.modes.add(memory)
        answer = torch.zeros(tokens.shape, dtype=torch.float64)
        for b, row in enumerate(tokens.tolist()):
            pairs = dict(zip(row[: self.stated : 2], row[1 : self.stated : 2], strict=True))
            answer[b] = torch.tensor([float(pairs.get(token, 0)) for token in row])
        return self.spoil(len(self.calls), answer)[..., None], 0

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(hidden[..., 0].long(), VOCABULARY).double()


def wrong(call: int, answer: Tensor) -> Tensor:
    return torch.zeros_like(answer)


def ask(model: Any, sets: tuple[tuple[int, int], ...] = ((16, 2),), **options: Any) -> RowResult:
    fields = {name: options.pop(name) for name in ("vocabulary", "changes") if name in options}
    asked = tuple(f"{length},{pairs}" for length, pairs in sets)
    questions = MqarQuestions(**{"set": asked, "vocabulary": VOCABULARY, **fields})
    return ask_rows(model, questions, **{"rows": 10, "batch_size": 4, **options})


def numbers(cell: dict[str, Any]) -> tuple[float, float, float]:
    return cell["accuracy"], cell["low"], cell["high"]


def rows_of(**options: Any) -> list[list[int]]:
    """The rows that a model is shown."""
    seen: list[list[int]] = []

    class Seen(Known):
        def hidden(
            self, tokens: Tensor, state: Any, *, valid: Tensor | None, memory: str
        ) -> tuple[Tensor, int]:
            seen.extend(tokens.tolist())
            return super().hidden(tokens, state, valid=valid, memory=memory)

    ask(Seen(), **options)
    return seen


def test_all_right_is_one_and_all_wrong_is_none() -> None:
    for model, share in ((Known(), 1.0), (Known(wrong), 0.0)):
        (cell,) = ask(model).cells
        assert (cell["length"], cell["pairs"], cell["samples"]) == (16, 2, 10)
        assert numbers(cell) == (share, share, share)


def test_half_of_the_rows_right_is_a_half_with_room_around_it() -> None:
    def odd_calls(call: int, answer: Tensor) -> Tensor:
        return answer * (call % 2)

    (cell,) = ask(Known(odd_calls), rows=40, batch_size=1).cells
    assert cell["accuracy"] == 0.5 and 0.3 < cell["low"] < 0.5 < cell["high"] < 0.7


def test_half_of_each_rows_questions_right_is_a_half_without_doubt() -> None:
    """Rows are what is drawn: they all score the same, so their interval has no width."""

    def first_key_only(call: int, answer: Tensor) -> Tensor:
        spoiled = answer.clone()
        spoiled[answer == answer[:, 2:3]] = 0.0  # the key of the second pair
        return spoiled

    (cell,) = ask(Known(first_key_only)).cells
    assert numbers(cell) == (0.5, 0.5, 0.5)


def test_every_set_is_read_once_in_batches_and_the_score_is_their_mean() -> None:
    def second_set_wrong(call: int, answer: Tensor) -> Tensor:
        return answer * (answer.shape[1] == 16)

    model = Known(second_set_wrong)
    found = ask(model, ((16, 2), (20, 2), (24, 2)))
    assert [cell["accuracy"] for cell in found.cells] == [1.0, 0.0, 0.0]
    assert found.mean == pytest.approx(1 / 3)
    by_length: dict[int, int] = {}
    for rows, length in model.calls:
        assert 1 <= rows <= 4
        by_length[length] = by_length.get(length, 0) + rows
    assert by_length == {16: 10, 20: 10, 24: 10}


def test_of_changed_pairs_the_newest_counts() -> None:
    model = Known()
    model.stated = 6
    assert ask(model, changes=1).mean == 1.0
    model.stated = 4  # never sees what was stated again
    assert ask(model, changes=1).mean == 0.5
    assert ask(Known(), changes=0).mean == 1.0


def test_more_changes_than_pairs_change_every_pair() -> None:
    model = Known()
    model.stated = 8
    assert ask(model, changes=5).mean == 1.0


def test_the_result_is_json_with_the_keys_of_a_table() -> None:
    made = ask(Known(), ((16, 2), (20, 2)), seed=3, memory="zeroed").to_dict()
    assert json.loads(json.dumps(made)) == made
    assert made["cells"][0] == {
        "task": "mqar",
        "length": 16,
        "pairs": 2,
        "depth": None,
        "samples": 10,
        "accuracy": 1.0,
        "low": 1.0,
        "high": 1.0,
    }
    assert {name: made[name] for name in ("mean", "state_bytes", "memory", "seed")} == {
        "mean": 1.0,
        "state_bytes": 17,
        "memory": "zeroed",
        "seed": 3,
    }


def test_memory_mode_reaches_the_model() -> None:
    for mode in ("on", "zeroed", "frozen"):
        model = Known()
        ask(model, memory=mode)
        assert model.modes == {mode}


def test_a_shuffled_row_reads_the_bank_of_another_row() -> None:
    """In front of every batch stand a row without tokens and one that is not scored."""
    model = Known()
    found = ask(model, rows=9, batch_size=4, memory="shuffled")
    assert [rows for rows, _ in model.calls] == [6, 6, 3] and found.cells[0]["samples"] == 9
    assert ask(Known(), rows=1, batch_size=1, memory="shuffled").mean == 1.0, "whatever the bank"


def test_the_same_seed_asks_the_same_whatever_the_batch() -> None:
    one, again, other = (
        rows_of(rows=20, batch_size=size, seed=seed) for size, seed in ((4, 0), (7, 0), (4, 1))
    )
    assert one == again and not {*map(tuple, one)} & {*map(tuple, other)}
    model = tiny_model(vocab_size=VOCABULARY)
    cells = [ask(model, rows=60, batch_size=size).cells for size in (30, 7)]
    assert cells[0] == cells[1]


def test_more_rows_leave_the_first_ones_as_they_are() -> None:
    few, many = rows_of(rows=5), rows_of(rows=9)
    assert few == many[:5] and len({*map(tuple, many)}) == 9


@pytest.mark.parametrize("variant", ["recommended", "paper", "local"])
def test_a_real_model_has_cells_and_a_state_and_is_left_as_it_was(variant: str) -> None:
    model = tiny_model(variant, vocab_size=VOCABULARY, dropout=0.5).train()
    found = ask(model, ((16, 2), (31, 3)))
    assert model.training
    assert all(0.0 <= cell["accuracy"] <= 1.0 for cell in found.cells)
    assert found.state_bytes == model.initial_state(1).nbytes
    assert found == ask(model.eval(), ((16, 2), (31, 3))), "without dropout"
    assert not model.training


def test_the_mode_is_restored_after_an_error() -> None:
    model = Known().train()
    with pytest.raises(ValueError, match=r"2 pairs and questions do not fit 7 tokens: give at least 8"):
        ask(model, ((16, 2), (7, 2)))
    assert model.training


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vocabulary": 64}, "the task needs 64 tokens, the model has 40: ask a model trained on the task"),
        ({"rows": 0}, r"rows=0, batch_size=4, piece=4096: give at least one each"),
        ({"batch_size": 0}, r"rows=10, batch_size=0"),
        ({"sets": ((64, 30),)}, "mqar.pairs is 30 with 40 tokens: give 1 to 19"),
        ({"changes": -1}, "mqar.changes is -1"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ask(Known(), **options)


def test_the_published_sets_are_the_default() -> None:
    assert MqarQuestions().sets is TEST_MIX
    assert TEST_MIX == ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
