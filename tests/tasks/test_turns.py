"""Turns of dialogues come in order and from the right split; small talk tells of others what facts tell of
the user."""

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rmat.data.documents import dialogue_document, text_document
from rmat.tasks.haystack import NOISE_LINE
from rmat.tasks.talk import ABOUT_OTHERS, ACKNOWLEDGED, KINDS, OTHERS, Exchange, Talk
from rmat.tasks.turns import Dialogues, TurnFiller, load_turns
from tests.makers.sources import write_books, write_dialogues


def some(filler: TurnFiller, count: int = 300, seed: int = 0) -> list[Exchange]:
    return list(itertools.islice(filler.exchanges(np.random.default_rng(seed)), count))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_dialogues_of_one_split_are_read_in_order_from_any_turn_on(tmp_path: Path, split: str) -> None:
    exchanges = some(load_turns(str(write_dialogues(tmp_path / "talks")), split), 900)
    places = [
        re.fullmatch(r"(?:Ann: )?(\w+) (\d+) (\d+)\.", text).groups()
        for turns in exchanges
        for _, text in turns
    ]
    assert {name for name, _, _ in places} == {split}
    turns = [(int(dialogue), int(turn)) for _, dialogue, turn in places]
    begun = [now for before, now in itertools.pairwise(turns) if now != (before[0], before[1] + 1)]
    ended = [before for before, now in itertools.pairwise(turns) if now != (before[0], before[1] + 1)]
    assert {turn for _, turn in ended} == {41}, "a dialogue is left at its end alone"
    assert {dialogue for dialogue, _ in begun} == {0, 1, 2} and len({turn for _, turn in begun}) > 10


def test_a_question_and_its_reply_stay_together(tmp_path: Path) -> None:
    exchanges = some(load_turns(str(write_dialogues(tmp_path / "talks")), "train"))
    roles = Counter(tuple(role for role, _ in turns) for turns in exchanges)
    assert roles.keys() == {("user", "assistant"), ("user",), ("assistant",)}
    assert roles["assistant",] < 20, "only where a dialogue was entered at a reply"
    assert all(
        turns[0][1].startswith("Ann: ") for turns in exchanges if len(turns) == 1 and turns[0][0] == "user"
    )


def test_long_and_empty_turns_are_left_out() -> None:
    document = dialogue_document(
        "x", [("user", "a" * 1001), ("user", "b" * 1000), ("user", " "), ("assistant", "c")]
    )
    said = {text for turns in some(Dialogues([document], "x"), 20) for _, text in turns}
    assert said == {"b" * 1000, "c"}


def test_text_is_said_in_turns(tmp_path: Path) -> None:
    exchanges = some(load_turns(str(write_books(tmp_path / "books")), "valid"), 50)
    for (first, said), (second, replied) in exchanges:
        assert (first, second) == ("user", "assistant")
        assert re.fullmatch(r"Valid\d+ [a-z ]+\.", said) and re.fullmatch(r"Valid\d+ [a-z ]+\.", replied)
    noise = [text for turns in some(load_turns("noise", "test"), 5) for _, text in turns]
    assert set(noise) == {line.strip() for line in NOISE_LINE} and len(noise) == 10


def test_dialogues_beside_text_are_told_apart(tmp_path: Path) -> None:
    talks = write_dialogues(tmp_path / "talks")
    for split in ("train", "valid", "test"):
        (talks / f"{split}.txt").write_text("A sentence. Another one. " * 9)
    assert not any("sentence" in text for turns in some(load_turns(str(talks), "train")) for _, text in turns)


def test_no_dialogue_is_refused() -> None:
    with pytest.raises(ValueError, match="no dialogue in books; give a SPEC with records that have turns"):
        Dialogues([text_document("x", "text")], "books")


def test_same_numbers_same_talk() -> None:
    one, again, other = (some(Talk(), seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert all([role for role, _ in turns] == ["user", "assistant"] for turns in one)
    assert not any(set(text) & set("{}_") for turns in one for _, text in turns), "every slot is filled"


def test_talk_is_full_of_facts_about_others() -> None:
    exchanges = some(Talk(), 4000)
    told = [turns for turns in exchanges if turns[1][1] in ACKNOWLEDGED]
    assert abs(len(told) / 4000 - ABOUT_OTHERS) < 0.03
    kinds: Counter[str] = Counter()
    for (_, said), _ in told:
        (found,) = {
            kind.name
            for kind in KINDS
            for who in OTHERS
            for other in kind.others
            if said.startswith(other.format("{}", who=who).split("{}")[0])
        }
        kinds[found] += 1
    assert len(kinds) == len(KINDS) and min(kinds.values()) > len(told) / len(KINDS) / 2


def test_talk_states_nothing_about_the_user() -> None:
    text = "\n".join(text for turns in some(Talk(), 4000) for _, text in turns)
    for kind in KINDS:
        for statement in kind.statements:
            assert statement.split("{}")[0] not in text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_has_wordings_and_many_values(kind) -> None:
    values = {kind.draw(np.random.default_rng(seed)) for seed in range(600)}
    assert len(values) > 30
    assert len(set(kind.statements)) > 1 and len(set(kind.questions)) > 1
    for text in (*kind.statements, *kind.others, kind.answer):
        assert text.count("{}") == 1
    assert all("{who}" in text for text in kind.others) and not any("{" in text for text in kind.questions)
