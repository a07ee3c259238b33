"""SPECs of synthetic tasks: `mqar`, `recall:pairs=8`, `passkey:filler=noise+python-stdlib,from=160,grow=500`,
...

A SPEC is the name of a task, then settings. Every task whose rows have no length of their own (all but
`mqar`) takes

    from=TOKENS   rows are at least so long (default: as long as `train.window`)
    grow=UPDATES  the longest row grows from `from` to `train.window` over so many updates (default 0)

and a row's length is drawn anew for every batch between the two. Values with several parts are joined by `+`.

A task is one module of this package and one line in `rmat.tasks.TASKS`. The module has

    members(*, split, ...)  the rows that a SPEC stands for; its keyword arguments are the settings, as text
    QUESTIONS               a dataclass: what `rmat eval NAME` asks, its fields the command's options
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from importlib import import_module
from typing import Any

from rmat.settings import nearest
from rmat.tasks import TASKS
from rmat.tasks.haystack import Split
from rmat.tasks.task import Member, Questions, whole


def is_task(spec: str) -> bool:
    """Whether a SPEC names a synthetic task, not text."""
    return spec.partition(":")[0] in TASKS


def questions_of(name: str) -> type[Questions]:
    """What `rmat eval NAME` asks."""
    found: type[Questions] = _module(name).QUESTIONS
    return found


def parse_task(spec: str, split: Split) -> list[Member]:
    """The rows that a SPEC stands for, with facts and filler of `split` ("train", "valid" or "test").

    Raises ValueError for a setting that the task has not (with the nearest it has) or a value that it cannot
    take.
    """
    name, _, tail = spec.partition(":")
    make = _module(name).members
    settings = {key: value for key, value in inspect.signature(make).parameters.items() if key != "split"}
    known = [*settings, "from", "grow"]
    given: dict[str, str] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise ValueError(f"{spec!r}: {part!r} is no setting: write key=value, for example {known[0]}=...")
        if key not in known:
            raise ValueError(
                f"{spec!r}: {name} has no setting {key!r}: did you mean {nearest(key, known)!r}?"
            )
        if key in given:
            raise ValueError(f"{spec!r}: {key} is given twice: leave one out")
        given[key] = value
    for key, parameter in settings.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise ValueError(f"{spec!r}: {name} needs {key}: write {name}:{key}=...")
    try:
        shortest = whole("from", given.pop("from"), 1) if "from" in given else None
        grow = whole("grow", given.pop("grow"), 0) if "grow" in given else 0
        if grow and shortest is None:
            raise ValueError("grow needs from, the length to grow from")
        members: list[Member] = make(split=split, **given)
        if shortest is None:
            return members
        if any(member.length is not None for member in members):
            raise ValueError("rows of this task have a length of their own: leave from and grow out")
        return [replace(member, shortest=shortest, grow=grow) for member in members]
    except ValueError as error:
        raise ValueError(f"{spec!r}: {error}") from None


def _module(name: str) -> Any:
    return import_module(f"rmat.tasks.{name}")
