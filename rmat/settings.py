"""Turning nested dicts of strings into typed dataclass fields, and naming the nearest valid key."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_NONE = {"none", "null"}


def field_types(cls: type) -> dict[str, Any]:
    """Name -> resolved type of every field of the dataclass `cls`, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def nearest(name: str, valid: Iterable[str]) -> str:
    """The member of `valid` most like `name`; a match of the last dotted part counts as much as the whole."""
    tail = name.rpartition(".")[2]

    def likeness(candidate: str) -> float:
        candidate_tail = candidate.rpartition(".")[2]
        return max(
            difflib.SequenceMatcher(None, name, candidate).ratio(),
            difflib.SequenceMatcher(None, tail, candidate_tail).ratio(),
        )

    return max(valid, key=likeness)


def refuse_unknown(
    given: Mapping[str, Any], section: str, valid_here: Iterable[str], valid: Iterable[str]
) -> None:
    """Raise ValueError for the first key of `given` that is not in `valid_here`.

    `section` is the dotted name of the place ("" at the top); `valid` are all dotted names that exist, from
    which the nearest is offered."""
    allowed = set(valid_here)
    for key in given:
        if key not in allowed:
            dotted = f"{section}.{key}" if section else str(key)
            raise ValueError(f"unknown setting {dotted!r}: did you mean {nearest(dotted, valid)!r}?")


def coerce(value: Any, kind: Any, name: str) -> Any:
    """`value` as the type `kind`, reading strings as a command line gives them.

    Understands int, float, bool, str, dict, None, Literal, tuple[X, ...] and unions of these. Text for a
    tuple is a JSON list or values between commas. Raises ValueError naming `name`, the value and what is
    expected."""
    fits, result = _try_coerce(value, kind)
    if not fits:
        raise ValueError(f"{name} is {value!r}: give {describe(kind)}")
    return result


def describe(kind: Any) -> str:
    """Words for the type `kind`, as they appear in an error."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return "none"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is tuple:
        return f"values between commas, each {describe(arguments[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    return words.get(origin or kind, str(kind))


def _try_coerce(value: Any, kind: Any) -> tuple[bool, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return value is None or (isinstance(value, str) and value.lower() in _NONE), None
    if origin is typing.Literal:
        return value in arguments, value
    if origin in (typing.Union, types.UnionType):
        # None and numbers first: every string would pass as str.
        for argument in sorted(arguments, key=lambda option: option is str):
            fits, result = _try_coerce(value, argument)
            if fits:
                return True, result
        return False, None
    if origin is tuple:
        return _try_tuple(value, arguments[0])
    if kind is bool:
        text = str(value).lower()
        return (text in _TRUE | _FALSE), text in _TRUE
    if kind in (int, float):
        return _try_number(value, kind)
    if kind is str:
        return isinstance(value, str), value
    if (origin or kind) is dict:
        return isinstance(value, Mapping), value
    raise TypeError(f"no rule reads a setting of type {kind}")


def _try_number(value: Any, kind: type) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False, None
    try:
        if kind is float:
            return math.isfinite(float(value)), float(value)
        number = int(value)
        return number == float(value), number
    except (ValueError, OverflowError):
        return False, None


def _try_tuple(value: Any, element: Any) -> tuple[bool, Any]:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return False, None
    elif isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        return False, None
    results = [_try_coerce(part, element) for part in value]
    return all(fits for fits, _ in results), tuple(result for _, result in results)
