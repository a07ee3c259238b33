"""Facts asked of a model by turns and filler: one that finds what it read scores one, others what they
deserve."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmat.data.tokenizer import Tokenizer, byte_tokenizer
from rmat.evaluation.asking import QuestionResult, prompt_ids
from rmat.tasks.facts import FactsQuestions, FactsTask, contains_word
from rmat.tasks.talk import KINDS
from tests.evaluation.test_question_tasks import asked
from tests.makers.sources import write_dialogues
from tests.makers.stores import Rows, StandIn, tiny_model

BYTES = byte_tokenizer()


def facts(model: Any, tokenizer: Tokenizer, **options: Any) -> QuestionResult:
    return asked(FactsQuestions, model, tokenizer, options)


USER, ASSISTANT, END = (BYTES.special_id(name) for name in ("user", "assistant", "turn_end"))


def told(ids: list[int]) -> list[str]:
    """Texts of the user's turns, told from others by the tokens around them alone."""
    marks = "".join(
        chr(one) if one < 256 else {USER: "\x01", ASSISTANT: "\x02", END: "\x03"}.get(one, "") for one in ids
    )
    return [text.encode("latin-1").decode() for text in re.findall("\x01([^\x01\x02\x03]*)\x03", marks)]


class Finder(StandIn):
    """Reads turns and answers with the newest value, the first one, or whatever `spoil` makes of the
    answer."""

    def __init__(self, spoil=lambda answer: answer, which: int = -1) -> None:
        super().__init__()
        self.config = tiny_model(vocab_size=BYTES.vocab_size).config
        self.spoil, self.which = spoil, which

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
        if ASSISTANT not in ids:
            return END
        start = len(ids) - ids[::-1].index(ASSISTANT)
        answer = [*self.spoil(self.answer(told(ids))).encode(), END]
        return answer[min(len(ids) - start, len(answer) - 1)]

    def answer(self, said: list[str]) -> str:
        for kind in KINDS:
            if said[-1] in kind.questions:
                patterns = [
                    re.escape(statement).replace(r"\{\}", "(.+)").removesuffix(r"\.") + r"\."
                    for statement in kind.statements
                ]
                values = [
                    found[1]
                    for text in said
                    for pattern in patterns
                    if (found := re.fullmatch(rf"(?:[\w ]+: )?{pattern}", text, re.IGNORECASE))
                ]
                return kind.answer.format(values[self.which])
        return "?"


def test_a_perfect_memory_is_one_in_every_cell(tmp_path: Path) -> None:
    read: list[int] = []
    talks = str(write_dialogues(tmp_path / "talks"))
    found = facts(
        Finder(), BYTES, turns=(0, 40), filler=("talk", talks), samples=5, changes=0.5, batch_size=4, piece=64,
        seed=3, advance=read.append,
    ).to_dict()  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    assert [(cell["task"], cell["turns"], cell["depth"]) for cell in found["cells"]] == [
        (f"facts in {name}", turns, None) for name in ("talk", "talks") for turns in (0, 40)
    ]
    assert all(cell["samples"] == 5 and cell["accuracy"] == 1.0 for cell in found["cells"])
    assert (found["state_bytes"], found["memory"], found["seed"]) == (17, "on", 3)
    total = sum(5 * cell["length"] for cell in found["cells"])
    assert abs(total - sum(read)) <= 4 * 5 / 2, "the length is that of a prompt, on average"
    first = found["examples"][1]
    assert (first["task"], first["turns"], first["length"]) == (
        "facts in talk",
        40,
        found["cells"][1]["length"],
    )
    assert first["output"] == first["reference"] and first["score"] == 1.0


def test_prompts_are_read_with_the_tokens_of_their_roles() -> None:
    made = FactsTask().after(np.random.default_rng(0), 5)
    ids = list(prompt_ids(BYTES, made))
    assert ids[0] == BYTES.special_id("document") and ids[-2:] == [END, ASSISTANT]
    assert ids.count(USER) + ids.count(ASSISTANT) - 1 == ids.count(END)
    assert "|" not in BYTES.decode(ids), "no role is spelled in letters"


def test_without_a_memory_nothing_is_found() -> None:
    found = facts(Finder(), BYTES, turns=(3,), samples=4, memory="zeroed")
    assert found.cells[0].scores == (0.0,) * 4 and found.memory == "zeroed"


def test_an_old_value_is_wrong() -> None:
    for changes, score in ((0.0, 1.0), (1.0, 0.0)):
        found = facts(Finder(which=0), BYTES, turns=(9,), samples=5, facts=2, changes=changes)
        assert found.cells[0].scores == (score,) * 5


def test_the_value_counts_not_the_words_around_it() -> None:
    for spoil, score in (
        (lambda answer: "I think: " + answer.lower(), 1.0),
        (lambda answer: answer.replace(".", "s and more"), 0.0),
    ):
        found = facts(Finder(spoil), BYTES, turns=(2,), samples=4, max_new_tokens=80)
        assert found.cells[0].scores == (score,) * 4


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("Your dog is called Rex.", "Rex", 1.0),
        ("rex", "Rex", 1.0),
        ("Rexy", "Rex", 0.0),
        ("T-Rex", "Rex", 1.0),
        ("48210", "4821", 0.0),
        ("It is copper falcon!", "copper falcon", 1.0),
        ("", "Rex", 0.0),
    ],
)
def test_a_word_of_its_own(output: str, reference: str, score: float) -> None:
    assert contains_word(output, (reference, "never said")) == score


def test_same_seed_same_scores_whatever_the_batch() -> None:
    model = tiny_model(vocab_size=BYTES.vocab_size)
    one, again, other = (
        facts(model, BYTES, turns=(4,), samples=4, seed=seed, batch_size=size, max_new_tokens=6)
        for seed, size in ((0, 1), (0, 4), (1, 4))
    )
    assert one == again and one.examples != other.examples


def test_bad_settings_are_refused() -> None:
    for settings, sentence in (
        ({"samples": 0}, "samples=0: ask at least one"),
        ({"turns": (-1,)}, "turns=-1 is not possible"),
        ({"facts": 0}, "facts must lie in 1..16, got 0"),
        ({"changes": 2.0}, "changes must lie in 0..1, got 2.0"),
        ({"filler": ("nowhere",)}, "nowhere"),
    ):
        with pytest.raises(ValueError, match=sentence):
            facts(Finder(), BYTES, **settings)
