"""The reader: ragged rows as if each were read alone, in pieces, from any state; and nothing else reads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import rmat
from rmat.generation import reader
from rmat.generation.reader import Piece, read, read_row, scan
from rmat.model import LanguageModel, StreamState
from tests.makers.stores import VOCAB, tiny_model

ROWS = [list(range(1, 30)), [], [5, 6, 7], list(range(20))]


@pytest.fixture
def model() -> LanguageModel:
    return tiny_model()


def alone(model: LanguageModel, row: list[int], state: StreamState | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([row]), state)[0][0, -1]


@pytest.mark.parametrize("size", [1, 7, None])
def test_ragged_rows_are_read_as_each_alone(model: LanguageModel, size: int | None) -> None:
    logits_BV, state = read(model, ROWS, size=size)
    for b, row in enumerate(ROWS):
        wanted = alone(model, row) if row else torch.zeros(VOCAB, dtype=torch.float64)
        torch.testing.assert_close(logits_BV[b], wanted)
    assert state.position.tolist() == [len(row) for row in ROWS]
    more_BV, _ = read(model, [[3], [3, 4], [], [9]], state)
    torch.testing.assert_close(more_BV[1], alone(model, [3, 4]))
    torch.testing.assert_close(more_BV[3], alone(model, [*ROWS[3], 9]))


def test_rows_that_leave_change_nothing_but_the_work(model: LanguageModel) -> None:
    for leave in (False, True):
        pieces: list[Piece] = []
        state = scan(model, ROWS, size=10, leave=leave, each=pieces.append)
        assert [len(piece.rows) for piece in pieces] == ([4, 2, 1] if leave else [4, 4, 4])
        assert state.position.tolist() == [len(row) for row in ROWS]
        for b, row in enumerate(ROWS):
            if row:
                seen = [
                    piece.logits_BTV[place, : piece.lengths[place]]
                    for piece in pieces
                    for place, number in enumerate(piece.rows)
                    if number == b
                ]
                torch.testing.assert_close(torch.cat(seen), model(torch.tensor([row]))[0][0])


def test_pieces_say_where_they_stand_and_progress_is_told(model: LanguageModel) -> None:
    told: list[int] = []
    found: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
    state = scan(
        model, ROWS, size=10, advance=told.append,
        each=lambda piece: found.append((piece.start, piece.lengths, piece.ended)),
    )  # fmt: skip
    assert found == [(0, (10, 0, 3, 10), (2,)), (10, (10, 0, 0, 10), (3,)), (20, (9, 0, 0, 0), (0,))]
    assert told == [23, 20, 9] and state.batch_size == 4


def test_the_head_is_computed_for_the_last_token_alone(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda x: (asked.append(x[..., 0].numel()), logits(x))[1])
    read(model, ROWS, size=4)
    scan(model, ROWS, size=4, leave=True)
    assert sum(asked) == 3, "one token of each row that has any"


@pytest.mark.parametrize("position", [0, 5, 40])
def test_pieces_end_where_segments_do(
    model: LanguageModel, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PIECE_TOKENS", 40)
    segment = model.config.segment_len
    size = reader.piece_length(model)
    _, state = read(model, [[1] * position])
    ends: list[int] = []
    scan(model, [[2] * 90], state, each=lambda piece: ends.append(int(piece.state.position[0])))
    assert ends[-1] == position + 90 and not any(end % segment for end in ends[:-1])
    assert len(ends) <= 90 // size + 2
    cut = reader.spans(model, 90, position)
    assert [position + span.stop for span in cut] == ends
    assert [span.start for span in cut] == [0, *(span.stop for span in cut[:-1])]
    assert reader.spans(model, 0, position) == []


def test_iterators_are_consumed_a_piece_ahead(model: LanguageModel) -> None:
    taken = 0

    def row() -> Iterator[int]:
        nonlocal taken
        for token in range(1000):
            taken += 1
            yield token % VOCAB

    ahead: list[int] = []
    scan(model, [row()], size=8, each=lambda piece: ahead.append(taken - piece.start))
    assert max(ahead) == 16, "the piece and the next one"


def test_the_state_handed_out_can_be_trained_on_and_the_mode_stays(model: LanguageModel) -> None:
    model.train()
    _, state = read_row(model, np.array([1, 2, 3]))
    assert model.training
    model(torch.tensor([[4, 5]]), state)[0].sum().backward()


def test_nothing_to_read_leaves_the_state(model: LanguageModel) -> None:
    _, state = read_row(model, [1, 2, 3])
    logits_BV, same = read(model, [[]], state)
    assert same is state and not logits_BV.any()
    assert read(model, [[], []])[1].batch_size == 2


def test_broken_numbers_end_with_a_sentence(model: LanguageModel) -> None:
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    with pytest.raises(ValueError, match="output is not finite"):
        read_row(model, [1, 2, 3])


def test_another_default_device_does_not_matter(model: LanguageModel) -> None:
    with torch.device("meta"):
        assert read(model, ROWS)[0].device.type == "cpu"


READERS = (
    "generation/reader.py",
    "engine/job.py",
    "training/objective.py",
    "pretrained/gates.py",
    "pretrained/distil.py",
    "integrations/hf/modeling.py",
)
"""Who may call a model: the reader; the engine's job; training; fitting and distilling gates, which read a passage at once; the
model of transformers, whose callers bring their own masks."""


def test_nothing_else_reads_through_a_model() -> None:
    """No other file builds a mask of padding, or calls a model on tokens."""
    root = Path(rmat.__file__).parent
    odd = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith(("model/", "reference/", "data/")) or name in READERS:
            continue
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            callee = ast.unparse(call.func)
            if any(keyword.arg == "valid" for keyword in call.keywords) or (
                callee in ("model", "self.model", "self._model") or callee.endswith(".hidden")
            ):
                odd.append(f"{name}:{call.lineno} {callee}")
    assert not odd
