"""Scores of answers, between 0 and 1."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")
_CUT = re.compile(r"\.|<context>|<example>")

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")

BABI_LABELS: dict[int, tuple[str, ...]] = {
    **dict.fromkeys((1, 2, 3, 4), PLACES),
    5: ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
}
"""The possible answers of the bAbI tasks that BABILong scores."""


def exact_match(output: str, references: Sequence[str]) -> float:
    """1 if the output is one of the references, blanks around them aside."""
    return float(output.strip() in {reference.strip() for reference in references})


def share_of_references(output: str, references: Sequence[str]) -> float:
    """Share of the references that occur in the output, whatever their case (RULER's score).

    Raises ValueError if there is no reference.
    """
    if not references:
        raise ValueError("references is empty: give at least one string to look for")
    text = _CONTROL.sub("\n", output).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def contains_word(output: str, references: Sequence[str]) -> float:
    """1 if one of the references stands in the output as a word or words of its own, whatever their case."""
    return float(
        any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", output, re.IGNORECASE) for one in references)
    )


def named_label(output: str, target: str, question: str, labels: Sequence[str]) -> float:
    """1 if of the labels the output names the target alone (BABILong's score of free answers).

    Only what stands before the first full stop counts, whatever its case, and labels that the question names are left
    out, so that repeating the question does no harm.
    """
    said, asked = _CUT.split(output.lower(), maxsplit=1)[0], question.lower()
    named = {label.lower() for label in labels if label.lower() in said and label.lower() not in asked}
    return float(named == {target.lower()})
