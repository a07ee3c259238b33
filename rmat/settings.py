"""Settings by name and type: what is given is read, checked and refused here, with one sentence.

Every refusal reads `NAME=VALUE is not possible: REMEDY`; an unknown name is answered with the nearest one
there is.
"""

import dataclasses
import difflib
import functools
import inspect
import json
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

Called = TypeVar("Called", bound=Callable[..., Any])

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_NONE = {"none", "null"}


if TYPE_CHECKING:
    once = functools.cached_property
else:

    class once(functools.cached_property):
        """`functools.cached_property` without the lock that it takes in Python 3.11, where torch.compile
        would end a graph. For what a compiled block asks its settings."""

        def __get__(self, instance: object, owner: type | None = None) -> Any:
            if instance is None:
                return self
            value = instance.__dict__[self.attrname] = self.func(instance)
            return value


def refuse(name: str, value: object, remedy: str) -> NoReturn:
    """Raise ValueError: the setting `name` cannot have this value."""
    raise ValueError(f"{name}={value!r} is not possible: {remedy}")


def whole(name: str, value: Any, least: int = 0, most: int | None = None, *, remedy: str = "") -> int:
    """`value` as an int of at least `least` and at most `most`; numpy's integers are whole numbers too, true
    and 1.0 are not. Raises ValueError."""
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    remedy = remedy or f"give a whole number {limits}"
    if isinstance(value, bool):
        refuse(name, value, remedy)
    try:
        number = operator.index(value)
    except TypeError:
        refuse(name, value, remedy)
    if number < least or (most is not None and number > most):
        refuse(name, value, remedy)
    return number


def string(name: str, value: Any) -> str:
    """`value` if it is text. Raises ValueError."""
    return value if isinstance(value, str) else refuse(name, value, "give text")


def number(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    remedy: str = "",
) -> float:
    """`value` as a finite float in [least, most] and, of the open interval, in (above, below). Raises
    ValueError."""
    limits = [
        *([f"of at least {least:g}"] if least > -math.inf else []),
        *([f"above {above:g}"] if above > -math.inf else []),
        *([f"of at most {most:g}"] if most < math.inf else []),
        *([f"below {below:g}"] if below < math.inf else []),
    ]
    remedy = remedy or " ".join(["give a number", " and ".join(limits)]).rstrip()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        refuse(name, value, remedy)
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not (math.isfinite(result) and least <= result <= most and above < result < below):
        refuse(name, value, remedy)
    return result


def choice(name: str, value: Any, choices: Iterable[str]) -> Any:
    """`value` if it is one of `choices`. Raises ValueError."""
    valid = list(choices)
    if not isinstance(value, str) or value not in valid:
        refuse(name, value, f"choose one of {', '.join(valid)}")
    return value


def check(
    owner: object, section: str, names: str | Iterable[str], rule: Callable[..., Any], *args: Any, **more: Any
) -> None:
    """Put what `rule(name, value, *args, **more)` makes of them into fields of the frozen dataclass `owner`.

    A field that is None stays so if that is its default. `section` is what an error names them by, such as
    "train".
    """
    for name in (names,) if isinstance(names, str) else names:
        value = getattr(owner, name)
        if value is not None or getattr(type(owner), name, ...) is not None:
            object.__setattr__(owner, name, rule(f"{section}.{name}", value, *args, **more))


def field_types(cls: type) -> dict[str, Any]:
    """Name -> resolved type of every field of the dataclass `cls`, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def nearest(name: str, valid: Iterable[str], at_least: float = 0.0) -> str | None:
    """The member of `valid` most like `name`; a match of the last dotted part counts as much as the whole.
    None where none has a likeness of `at_least`, between 0 and 1."""

    def likeness(candidate: str) -> float:
        pairs = ((name, candidate), (name.rpartition(".")[2], candidate.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, one, other).ratio() for one, other in pairs)

    best = max(valid, key=likeness, default=None)
    return best if best is not None and likeness(best) >= at_least else None


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


def known_keywords(also: Callable[[], Iterable[str]] = tuple) -> Callable[[Called], Called]:
    """Decorator of a function, or of a class for its constructor: an unknown keyword argument raises a
    TypeError that names the nearest of the parameters and of what `also` gives, instead of Python's own,
    which names none."""

    def decorate(call: Called) -> Called:
        target: Any = vars(call)["__init__"] if isinstance(call, type) else call
        accepted = [p for p in inspect.signature(target).parameters if p != "self"]

        @functools.wraps(target)
        def checked(*args: Any, **given: Any) -> Any:
            for key in given:
                if key not in accepted:
                    near = nearest(key, [*accepted, *also()])
                    raise TypeError(f"{call.__name__} takes no {key!r}: did you mean {near!r}?")
            return target(*args, **given)

        if not isinstance(call, type):
            return typing.cast(Called, checked)
        call.__init__ = checked  # type: ignore[misc]
        return call

    return decorate


def coerce(value: Any, kind: Any, name: str) -> Any:
    """`value` as the type `kind`, reading strings as a command line gives them.

    Understands int, float, bool, str, dict, None, Literal, tuple[X, ...] and unions of these. Text for a
    tuple is a JSON list or values between commas. Raises ValueError naming `name`, the value and what is
    expected."""
    fits, result = _try_coerce(value, kind)
    if not fits:
        refuse(name, value, f"give {describe(kind)}")
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
        return isinstance(value, str) and value in arguments, value
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
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, str)):
        return False, None
    try:
        if kind is float:
            return math.isfinite(float(value)), float(value)
        whole_number = int(value)  # type: ignore[arg-type]
        return whole_number == float(value), whole_number
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
