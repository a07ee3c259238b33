"""Answers do not depend on how prompts are read, and come out as greedy generation writes them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmat.data.tokenizer import byte_tokenizer
from rmat.evaluation import asking
from rmat.evaluation.asking import answers, prompt_ids
from rmat.generation.stream import generate
from rmat.model import LanguageModel
from rmat.model.evaluating import is_training
from rmat.tasks.passkey import PasskeyTask
from rmat.tasks.task import Example
from tests.makers.stores import Rows, StandIn, tiny_model

BYTES = byte_tokenizer()
TEXTS = ("Short.", "A text of some length, with words.", "", "x" * 83, "Number 12345 and more of it. " * 4)


def example(text: str, cut: int = 10) -> Example:
    pieces = [text[start : start + cut] for start in range(0, len(text), cut)]
    return Example(pieces=pieces, answer=" x", references=("x",))


EXAMPLES = [example(text) for text in TEXTS]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model(vocab_size=BYTES.vocab_size)


def say(model: LanguageModel, **settings: object) -> list[str]:
    return list(answers(model, BYTES, EXAMPLES, **{"max_new_tokens": 12, **settings}))


def test_answers_are_those_of_greedy_generation_one_by_one(model: LanguageModel) -> None:
    expected = []
    for text in TEXTS:
        ids = [BYTES.special_id("document"), *BYTES.encode(text)]
        run = generate(model, BYTES, ids, max_new_tokens=12, temperature=0.0)
        list(run)
        expected.append(BYTES.decode(run.tokens))
    assert say(model) == expected and len(set(expected)) > 1 and all(expected)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("piece", [1, 7, 64])
def test_batch_and_piece_change_nothing(model: LanguageModel, batch_size: int, piece: int) -> None:
    assert say(model, batch_size=batch_size, piece=piece) == say(model, batch_size=1, piece=4096)


def test_memory_modes_reach_the_model(model: LanguageModel) -> None:
    said = {mode: tuple(say(model, memory=mode, batch_size=5)) for mode in ("on", "zeroed", "shuffled")}
    assert len(set(said.values())) == 3
    with pytest.raises(ValueError, match='memory="shuffled" needs at least two prompts'):
        list(answers(model, BYTES, EXAMPLES[:1], memory="shuffled"))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("fields", [{}, {"n_layers": 4}, {"variant": "paper"}], ids=str)
def test_a_shuffled_answer_never_depends_on_its_own_far_past(batch_size: int, fields: dict[str, Any]) -> None:
    """The banks of others are read, and through no layer and no segment does a prompt's own content come
    back."""
    model = tiny_model(**{"vocab_size": BYTES.vocab_size, "gate": "none", "n_slots": 256, **fields})
    texts = ["".join(chr(97 + (7 * n + k) % 26) for k in range(200)) for n in range(3)]

    def said(number: int, text: str) -> list[Tensor]:
        seen: list[Tensor] = []
        given = [example(text if n == number else other) for n, other in enumerate(texts)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                asking, "_write", lambda *args: seen.append(args[2][2:]) or [[]] * (len(args[2]) - 2)
            )
            list(answers(model, BYTES, given, memory="shuffled", batch_size=batch_size))
        return torch.cat(seen)

    before, heard = said(0, texts[0]), set[int]()
    for number in range(3):
        after = said(number, "QQQQQ" + texts[number][5:])
        changed = {row for row in range(3) if not torch.equal(before[row], after[row])}
        assert number not in changed
        heard |= changed
    assert heard, "others are heard"


def test_reading_and_writing_use_the_memory_alike() -> None:
    model = Counting()
    list(answers(model, BYTES, [example("a3"), example("b2")], memory="frozen"))
    assert model.modes == ["frozen"] * len(model.calls) and len(model.calls) > 2


def test_an_answer_ends_at_the_end_token_and_others_go_on() -> None:
    """A model that says the row's first letter n times, n being the number behind it, and then ends."""
    said = list(
        answers(Counting(), BYTES, [example(text) for text in ("a3", "b1", "c9", "d0")], max_new_tokens=5)
    )
    assert said == ["aaa", "b", "ccccc", ""]


def test_every_token_is_told_once(model: LanguageModel) -> None:
    told: list[int] = []
    say(model, batch_size=3, piece=16, advance=told.append)
    assert sum(told) == sum(1 + len(text) for text in TEXTS) and max(told) <= 3 * 16


def test_prompts_are_read_a_batch_at_a_time_and_piece_by_piece(model: LanguageModel) -> None:
    begun: list[int] = []

    def endless(number: int) -> Iterator[str]:
        begun.append(number)
        yield from ("some text ",) * 20

    made = [Example(pieces=endless(n), answer="", references=()) for n in range(6)]
    stream = answers(model, BYTES, made, batch_size=2, max_new_tokens=2, piece=32)
    assert begun == []
    next(stream)
    assert begun == [0, 1]
    assert len(list(stream)) == 5 and len(begun) == 6


def test_a_long_prompt_is_read_in_bounded_calls() -> None:
    model = Counting()
    made = PasskeyTask().example(np.random.default_rng(0), 8000, BYTES)
    n_tokens = len(list(prompt_ids(BYTES, made)))
    list(answers(model, BYTES, [made], max_new_tokens=1, piece=1000))
    assert model.calls[:8] == [1000] * 7 + [n_tokens - 7000]


def test_training_mode_is_restored_even_after_an_error(model: LanguageModel) -> None:
    model.train()
    try:
        say(model)
        assert model.training

        def broken() -> Iterator[str]:
            assert not is_training(model)
            yield "a"
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            list(answers(model, BYTES, [Example(pieces=broken(), answer="", references=())]))
        assert model.training
    finally:
        model.eval()


def test_bad_counts_and_another_tokenizer_are_refused_at_once(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="piece=0: give at least one each"):
        answers(model, BYTES, EXAMPLES, piece=0)
    with pytest.raises(ValueError, match="vocabulary mismatch"):
        answers(tiny_model(), BYTES, EXAMPLES)


class Counting(StandIn):
    """Says the first letter of a row as often as the digit behind it tells, then the end token."""

    def __init__(self) -> None:
        super().__init__()
        self.config = tiny_model(vocab_size=BYTES.vocab_size).config
        self.calls: list[int] = []
        self.modes: list[str] = []

    def initial_state(self, batch_size: int) -> Rows:
        return Rows([] for _ in range(batch_size))

    def forward(self, tokens, state, valid=None, memory="on"):
        self.calls.append(tokens.shape[1])
        self.modes.append(memory)
        logits = torch.zeros(*tokens.shape, BYTES.vocab_size)
        state = Rows(list(row) for row in state)
        for b, row in enumerate(tokens.tolist()):
            for t, token in enumerate(row):
                if valid is not None and not valid[b, t]:
                    continue
                state[b].append(token)
                _, letter, count, *said = [*state[b], 0, 0, 0][: max(3, len(state[b]))]
                more = len(said) < count - ord("0")
                logits[b, t, letter if more else BYTES.special_id("turn_end")] = 1.0
        return logits, state
