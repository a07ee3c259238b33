from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmat.generation.stopping import StopMatcher


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """The text shown for each piece (and at the end), up to a stop."""
    matcher = StopMatcher(stops)
    shown = []
    for piece in pieces:
        safe, stopped = matcher.push(piece)
        shown.append(safe)
        if stopped:
            return shown, True
    return [*shown, matcher.flush()], False


def test_without_stops_everything_passes_at_once() -> None:
    assert run([], ["ab", "c"]) == (["ab", "c", ""], False)


def test_a_stop_inside_a_piece() -> None:
    assert run(["END"], ["some END more"]) == (["some "], True)


def test_a_stop_across_pieces_is_held_back() -> None:
    assert run(["END"], ["xE", "N", "D!"]) == (["x", "", ""], True)


def test_what_turns_out_harmless_is_shown_late() -> None:
    assert run(["END"], ["xE", "N", "Q"]) == (["x", "", "ENQ", ""], False)


def test_held_text_appears_at_the_end() -> None:
    assert run(["END"], ["xEN"]) == (["x", "EN"], False)


def test_a_false_start_inside_a_true_one() -> None:
    assert run(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", ""], True)


def test_the_first_complete_stop_counts() -> None:
    assert run(["bcde", "c"], ["abcde"]) == (["ab"], True)
    assert run(["bc", "c"], ["abcde"]) == (["a"], True)


def test_while_it_is_not_active_a_stop_passes() -> None:
    """A stop string that ends before is text, one that ends behind counts, wherever it began."""
    matcher = StopMatcher(["END"])
    matcher.active = False
    assert matcher.push("an END, EN") == ("an END, ", False)
    matcher.active = True
    assert matcher.push("D of it") == ("", True)


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=12), st.text("ab", min_size=1, max_size=4))
def test_cuts_do_not_matter(pieces: list[str], stop: str) -> None:
    """However the text is cut, what is shown is the text before the first stop."""
    text = "".join(pieces)
    shown, stopped = run([stop], pieces)
    assert stopped == (stop in text)
    assert "".join(shown) == text.split(stop)[0]


def test_bad_stops_are_refused() -> None:
    with pytest.raises(ValueError, match="empty string"):
        StopMatcher(["a", ""])
    with pytest.raises(ValueError, match="give a list"):
        StopMatcher("END")


@pytest.mark.parametrize("stops", [None, 5, [1]])
def test_stops_are_a_list_of_strings(stops: Any) -> None:
    with pytest.raises(ValueError, match="give a list of strings"):
        StopMatcher(stops)
