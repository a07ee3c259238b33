"""Values are read, checked and refused in one way."""

from dataclasses import dataclass

import numpy as np
import pytest

from rmat.settings import check, choice, coerce, known_keywords, nearest, number, whole


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_every_kind_become_ints(value: object) -> None:
    assert type(whole("n", value, 1)) is int
    assert coerce(value, int, "n") == 3 and type(coerce(value, int, "n")) is int


@pytest.mark.parametrize("value", [0, 3.0, "3", True, None, np.bool_(True), np.float32(3)])
def test_what_is_no_whole_number_of_at_least_one_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^n=.* is not possible: give a whole number of at least 1$"):
        whole("n", value, 1)


def test_the_upper_limit_of_a_whole_number() -> None:
    assert whole("port", 5, 1, 5) == 5
    with pytest.raises(ValueError, match="port=6 is not possible: give a whole number from 1 to 5"):
        whole("port", 6, 1, 5)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5)])
def test_numbers_of_every_kind_become_floats(value: object) -> None:
    assert type(number("x", value, 0, 1)) is float
    assert coerce(value, float, "x") == 0.5


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, "0.5", True, None, float("nan"), float("inf"), 10**400, 1j])
def test_what_is_no_number_in_the_range_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^x=.* is not possible: give a number of at least 0 and below 1$"):
        number("x", value, 0, below=1)


def test_open_and_closed_ends() -> None:
    assert number("x", 0, 0, 1) == 0 and number("x", 1, 0, 1) == 1
    with pytest.raises(ValueError, match="give a number above 0"):
        number("x", 0, above=0)
    with pytest.raises(ValueError, match="x=2 is not possible: give less"):
        number("x", 2, 0, 1, remedy="give less")


@pytest.mark.parametrize("value", ["c", "", None, 1, ["a"]])
def test_a_choice(value: object) -> None:
    assert choice("kind", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="is not possible: choose one of a, b"):
        choice("kind", value, ("a", "b"))


@known_keywords()
@dataclass(frozen=True, kw_only=True)
class Limits:
    steps: int = 3
    minutes: float | None = None

    def __post_init__(self) -> None:
        check(self, "limits", "steps", whole, 1)
        check(self, "limits", "minutes", number, above=0)


def test_fields_of_a_frozen_dataclass_are_checked_and_typed() -> None:
    limits = Limits(steps=np.int64(4), minutes=2)
    assert type(limits.steps) is int and type(limits.minutes) is float and Limits().minutes is None
    with pytest.raises(ValueError, match=r"limits\.minutes=0 is not possible: give a number above 0"):
        Limits(minutes=0)
    with pytest.raises(ValueError, match=r"limits\.steps=None is not possible"):
        Limits(steps=None)  # type: ignore[arg-type]


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="Limits takes no 'stesp': did you mean 'steps'"):
        Limits(stesp=1)  # type: ignore[call-arg]

    @known_keywords(lambda: ["limits.minutes"])
    def work(first: int, *, second: int = 0) -> int:
        return first + second

    assert work(1, second=2) == 3
    with pytest.raises(TypeError, match="work takes no 'scond': did you mean 'second'"):
        work(1, scond=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"work takes no 'minutes': did you mean 'limits\.minutes'"):
        work(1, minutes=2)  # type: ignore[call-arg]


def test_the_nearest_name() -> None:
    assert nearest("lr", ["train.lr", "out"]) == "train.lr"
    assert nearest("zzz", ["train.lr", "out"], 0.6) is None
    assert nearest("x", []) is None
