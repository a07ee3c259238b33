"""Bits per byte of reference answers against one plain reading, and that every mode reads what it says."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmat.data.documents import encode_documents
from rmat.data.files import Skipped
from rmat.data.records import read_records
from rmat.data.tokenizer import load_tokenizer
from rmat.evaluation.dialogue import DialogueResult, dialogue, local_reach
from rmat.evaluation.meetings import read_meetings
from rmat.model import LanguageModel
from tests.makers.stores import tiny_model
from tests.makers.texts import write_jsonl

TOKENIZER = load_tokenizer("bytes")
FAR = 12
"""Turns of a meeting between its evidence and its end; more than what two layers of eight tokens hand on."""


def meeting(fact: str, answers: tuple[str, ...] = ("yes",), filler: str = "so it goes") -> dict[str, Any]:
    """A record whose first turn holds the evidence of all its questions."""
    turns = [{"role": "user", "text": fact}, *({"role": "Ann", "text": filler} for _ in range(FAR))]
    queries = [{"query": f"what {n}?", "answer": a, "spans": [[0, 0]]} for n, a in enumerate(answers)]
    return {"turns": turns, "queries": queries}


THREE = (
    meeting("red red red!", ("it is red", "no"), filler="on we go"),
    meeting("blue, blue.."),
    meeting("green green ", ("green", "and green", "gréén")),
)


def model_of(variant: str = "recommended", **fields: Any) -> LanguageModel:
    return tiny_model(variant, vocab_size=TOKENIZER.vocab_size, **fields)


def file(folder: Path, *records: dict[str, Any]) -> Path:
    return write_jsonl(folder / "talk.jsonl", records)


def in_one_reading(model: LanguageModel, record: dict[str, Any], number: int, folder: Path) -> float:
    """Nats of one answer: the training document of the meeting with this question alone, in one call."""
    path = write_jsonl(folder / "one.jsonl", [record | {"queries": [record["queries"][number]]}])
    (document,) = read_records(path, "one", "text", Skipped())
    tokens = torch.from_numpy(encode_documents(TOKENIZER, [document])[0].tokens.astype(np.int64))[None]
    size = len(record["queries"][number]["answer"].encode())
    with torch.no_grad():
        logits, _ = model(tokens[:, :-1])
    nats = -torch.log_softmax(logits[0], -1).gather(1, tokens[0, 1:, None])[:, 0]
    return float(nats[-size - 1 : -1].sum())  # the last token closes the assistant's turn


@pytest.mark.parametrize("variant", ["recommended", "paper", "full"])
def test_is_the_likelihood_of_the_answer_at_the_end_of_the_training_document(
    tmp_path: Path, variant: str
) -> None:
    model, path = model_of(variant), file(tmp_path, *THREE)
    found = dialogue(model, TOKENIZER, path, batch_size=2, window=11)
    expected = [
        in_one_reading(model, record, n, tmp_path) for record in THREE for n in range(len(record["queries"]))
    ]
    sizes = [len(query["answer"].encode()) for record in THREE for query in record["queries"]]
    np.testing.assert_allclose(found.nats["on"], expected, rtol=1e-9)
    assert found.bytes.tolist() == sizes
    assert found.meeting.tolist() == [0, 0, 1, 2, 2, 2]
    assert found.bits_per_byte().value == pytest.approx(sum(expected) / math.log(2) / sum(sizes))


def test_batch_and_window_change_nothing(tmp_path: Path) -> None:
    model, path = model_of(), file(tmp_path, *THREE)
    modes = ("zeroed", "frozen")
    one = dialogue(model, TOKENIZER, path, modes=modes, batch_size=1, window=1000)
    for batch_size, window in ((2, 7), (8, None)):
        other = dialogue(model, TOKENIZER, path, modes=modes, batch_size=batch_size, window=window)
        for mode in one.nats:
            np.testing.assert_allclose(other.nats[mode], one.nats[mode], rtol=1e-9)


def changed_by(
    model: LanguageModel, folder: Path, before: list[dict[str, Any]], number: int
) -> dict[str, Any]:
    """Per mode: which meetings' answers change when the far fact of one meeting does."""
    after = list(before)
    after[number] = meeting("purple tint?", tuple(query["answer"] for query in before[number]["queries"]))
    one = dialogue(model, TOKENIZER, file(folder, *before), batch_size=2)
    two = dialogue(model, TOKENIZER, file(folder, *after), batch_size=2)
    return {mode: np.unique(one.meeting[one.nats[mode] != two.nats[mode]]).tolist() for mode in one.nats}


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_what_each_mode_knows_of_a_fact_out_of_local_reach(tmp_path: Path, number: int) -> None:
    """A shuffled answer depends on what other meetings said, and on nothing far that its own said."""
    facts = ("black black.", "brown brown.", "amber amber.")
    records = [meeting("white white.", ("one", "two")), *(meeting(fact) for fact in facts)]
    model = model_of(gate="none", n_slots=256)  # every token is written and none is lost
    changed = changed_by(model, tmp_path, records, number)
    assert changed["on"] == changed["frozen"] == [number]
    assert changed["zeroed"] == []
    assert number not in changed["shuffled"]
    assert bool(changed["shuffled"]) == (number in (0, 2)), "nobody reads the last row of a batch"


def test_a_small_bank_has_forgotten_the_fact_but_not_if_it_is_frozen(tmp_path: Path) -> None:
    changed = changed_by(model_of(n_slots=8), tmp_path, [meeting("white white."), meeting("black black.")], 0)
    assert (changed["on"], changed["frozen"]) == ([], [0])


def test_without_a_memory_all_modes_are_one(tmp_path: Path) -> None:
    found = dialogue(model_of("local"), TOKENIZER, file(tmp_path, *THREE))
    for mode in ("zeroed", "frozen", "shuffled"):
        np.testing.assert_allclose(found.nats[mode], found.nats["on"], rtol=1e-12)
        assert (found.minus_on(mode).low, found.minus_on(mode).high) == pytest.approx((0, 0), abs=1e-12)


def test_groups_by_where_the_evidence_lies(tmp_path: Path) -> None:
    reach = local_reach(model_of().config)
    ending = "x" * (reach - 2)  # with its role and its end just what local attention reaches
    spans = ([[0, 1]], [[0, 0], [1, 1]], [[2, 2]], [], [[0, 2]])
    record = {
        "turns": [{"role": "user", "text": text} for text in ("far", "far too", ending)],
        "queries": [{"query": "?", "answer": "a", "spans": part} for part in spans],
    }
    (found,) = read_meetings(file(tmp_path, record), TOKENIZER, reach)
    assert [question.group for question in found.questions] == ["far", "far", "near", "whole", "near"]
    record["turns"][2]["text"] = ending[:-1]
    (found,) = read_meetings(file(tmp_path, record), TOKENIZER, reach)
    assert [question.group for question in found.questions] == ["near", "near", "near", "whole", "near"]


def test_long_turns_are_cut_and_close_all_the_same(tmp_path: Path) -> None:
    record = meeting("0123456789", ("a long answer",), filler="01234")
    (found,) = read_meetings(file(tmp_path, record), TOKENIZER, 16, max_turn_tokens=5)
    user, end = TOKENIZER.special_id("user"), TOKENIZER.special_id("turn_end")
    first = [TOKENIZER.special_id("document"), user, *b"01234", end]
    assert found.tokens.tolist() == first + FAR * [user, *b"Ann: ", end]
    assert bytes(found.questions[0].tokens[found.questions[0].n_prompt :].tolist()) == b"a long answer"


def test_the_first_meetings_with_questions_are_taken(tmp_path: Path) -> None:
    path = file(tmp_path, {"text": "no talk"}, {"turns": []}, *THREE)
    found = dialogue(model_of(), TOKENIZER, path, max_meetings=2)
    assert found.meeting.tolist() == [0, 0, 1]


def made(on: list[float], off: list[float], meetings: list[int], groups: list[str]) -> DialogueResult:
    """A result of answers of one byte each."""
    bits = math.log(2)
    return DialogueResult(
        nats={"on": bits * np.array(on), "zeroed": bits * np.array(off)},
        bytes=np.ones(len(on)),
        meeting=np.array(meetings),
        group=np.array(groups),
        local_reach=32,
        state_bytes=100,
        seed=0,
    )


def test_differences_are_paired_by_meeting() -> None:
    """Meetings differ by far more than the memory is worth, yet what it is worth is plain."""
    found = made([1, 3, 9, 9.5], [1.1, 3.1, 9.1, 9.6], [0, 0, 1, 2], ["far", "near", "far", "whole"])
    worth = found.minus_on("zeroed")
    assert worth.value == pytest.approx(0.1)
    assert worth.low == pytest.approx(0.1)
    assert worth.excludes_zero
    assert found.bits_per_byte("on").high > found.bits_per_byte("zeroed").low
    assert found.bits_per_byte("on", "far").value == pytest.approx(5)
    assert found.bits_per_byte("on", "near").low is None  # one meeting alone gives no interval


def test_to_dict_is_json_and_says_what_it_rests_on() -> None:
    found = made([1, 3, 9], [2, 3, 9], [0, 0, 1], ["far", "far", "far"])
    told = json.loads(json.dumps(found.to_dict()))
    assert told["modes"] == ["on", "zeroed"]
    assert (told["samples"], told["meetings"], told["bytes"], told["seed"]) == (3, 2, 3, 0)
    assert told["groups"]["far"] == {"samples": 3, "meetings": 2}
    assert told["zeroed"]["bits_per_byte"] == pytest.approx(14 / 3)
    assert told["zeroed"]["minus_on"]["bits_per_byte"] == pytest.approx(1 / 3)
    assert told["zeroed"]["groups"]["far"] == {k: v for k, v in told["zeroed"].items() if k != "groups"}
    assert told["on"]["groups"]["near"] is None


def test_progress_is_told_in_tokens(tmp_path: Path) -> None:
    told: list[int] = []
    path = file(tmp_path, *THREE)
    dialogue(model_of(), TOKENIZER, path, modes=("zeroed",), window=50, advance=told.append)
    assert len(told) > 2
    assert sum(told) == 2 * sum(len(found.tokens) for found in read_meetings(path, TOKENIZER, 16))


def test_training_mode_is_restored(tmp_path: Path) -> None:
    model = model_of().train()
    dialogue(model, TOKENIZER, file(tmp_path, *THREE), modes=())
    assert model.training


def test_one_meeting_has_no_other_to_read_from(tmp_path: Path) -> None:
    path = file(tmp_path, THREE[0])
    assert list(dialogue(model_of(), TOKENIZER, path).nats) == ["on", "zeroed", "frozen"]
    with pytest.raises(ValueError, match="at least two meetings"):
        dialogue(model_of(), TOKENIZER, path, modes=("shuffled",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"window": 0}, "window=0"),
        ({"max_meetings": 0}, "max_meetings=0"),
        ({"max_turn_tokens": 0}, "max_turn_tokens=0"),
        ({"modes": ("off",)}, "modes has 'off': choose among on, zeroed"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dialogue(model_of(), TOKENIZER, file(tmp_path, *THREE), **options)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no conversation with questions"):
        dialogue(model_of(), TOKENIZER, file(tmp_path, {"turns": [], "queries": []}))
    with pytest.raises(ValueError, match=r"nowhere\.jsonl"):
        dialogue(model_of(), TOKENIZER, tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="the model only 40"):
        dialogue(tiny_model(), TOKENIZER, file(tmp_path, *THREE))
