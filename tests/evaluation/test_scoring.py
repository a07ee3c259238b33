"""Scorers on hand-made answers, right and wrong."""

import pytest

from rmat.tasks.babilong import BABI_LABELS, PLACES, named_label
from rmat.tasks.needle import share_of_references
from rmat.tasks.task import exact_match


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("48213", 1),
        (" 48213\n", 1),
        ("48213.", 0),
        ("4821", 0),
        ("482130", 0),
        ("It is 48213", 0),
        ("", 0),
    ],
)
def test_exact_match(output: str, score: float) -> None:
    assert exact_match(output, ("48213",)) == score


def test_exact_match_takes_any_reference_and_minds_the_case() -> None:
    assert exact_match("Fred", ("Jeff", " Fred ")) == 1
    assert exact_match("fred", ("Fred",)) == 0


@pytest.mark.parametrize(
    ("output", "references", "score"),
    [
        ("1234567", ("1234567",), 1),
        ("It is 1234567, I think.", ("1234567",), 1),
        ("123456", ("1234567",), 0),
        ("1234567, 7654321", ("7654321", "1234567"), 1),
        ("1234567, 765432", ("7654321", "1234567"), 0.5),
        ("one: 111, two: 222, three: 333", ("111", "222", "333", "444"), 0.75),
        ("abcde FGHIJ", ("ABCDE", "fghij"), 1),
        ("", ("1",), 0),
        ("12\x0034", ("1234",), 0),
        ("\x071234\x1f", ("1234",), 1),
    ],
)
def test_share_of_references(output: str, references: tuple[str, ...], score: float) -> None:
    assert share_of_references(output, references) == score


def test_control_characters_are_line_ends() -> None:
    assert share_of_references("a\x00b", ("a\nb",)) == 1


def test_share_of_no_references_is_refused() -> None:
    with pytest.raises(ValueError, match="references is empty"):
        share_of_references("any", ())


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("bathroom", 1),
        ("Mary is in the Bathroom.", 1),
        ("Bathroom. She was in the kitchen before.", 1),
        ("bathroom<example>kitchen", 1),
        ("bathroom <context> office", 1),
        ("the bathroom or the kitchen", 0),
        ("kitchen", 0),
        ("She left. bathroom", 0),
        ("bath room", 0),
        ("", 0),
    ],
)
def test_named_label(output: str, score: float) -> None:
    assert named_label(output, "bathroom", "Where is Mary?", PLACES) == score


def test_labels_of_the_question_do_not_count() -> None:
    question = "What is the bathroom east of?"
    assert named_label("The bathroom is east of the bedroom", "bedroom", question, PLACES) == 1
    assert named_label("the bathroom", "bedroom", question, PLACES) == 0
    assert named_label("Fred gave it to Jeff", "Jeff", "Who did Fred give the apple to?", BABI_LABELS[5]) == 1
    assert (
        named_label("Fred gave it to Jeff and Bill", "Jeff", "Who did Fred give it to?", BABI_LABELS[5]) == 0
    )
