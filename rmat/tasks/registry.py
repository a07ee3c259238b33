"""SPECs of synthetic tasks: `mqar`, `recall:pairs=8`, `passkey:filler=noise+python-stdlib,from=160,grow=500`, ...

A SPEC is the name of a task, then settings. Every task whose rows have no length of their own (all but `mqar`) takes

    from=TOKENS   rows are at least so long (default: as long as `train.window`)
    grow=UPDATES  the longest row grows from `from` to `train.window` over so many updates (default 0)

and a row's length is drawn anew for every batch between the two. Values with several parts are joined by `+`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from rmat.tasks.haystack import Split
from rmat.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Member:
    """One kind of rows in a mixture."""

    task: Task
    share: float = 1.0
    """Share of the batches, in any unit."""
    length: int | None = None
    """Tokens of every row; None: drawn between `shortest` and the window."""
    shortest: int | None = None
    """Least tokens of a row; None: the window, so that all rows are equally long."""
    grow: int = 0
    """Updates over which the longest row grows from `shortest` to the window."""

    def draw_length(self, window: int, batch: int, uniform: float) -> int:
        """Tokens of the rows of batch number `batch`, given a number drawn from [0, 1)."""
        if self.length is not None:
            return self.length
        shortest = min(self.shortest or window, window)
        longest = (
            window if not self.grow else shortest + (window - shortest) * min(batch, self.grow) // self.grow
        )
        return shortest + int(uniform * (longest - shortest + 1))


def is_task(spec: str) -> bool:
    """Whether a SPEC names a synthetic task, not text."""
    return spec.partition(":")[0] in _MAKERS


def parse_task(spec: str, split: Split) -> list[Member]:
    """The rows that a SPEC stands for, with facts and filler of `split` ("train", "valid" or "test").

    Raises ValueError for a setting that the task has not (with the nearest it has) or a value that it cannot take.
    """
    name, _, tail = spec.partition(":")
    maker = _MAKERS[name]
    settings = {key: value for key, value in inspect.signature(maker).parameters.items() if key != "split"}
    known = list(settings)
    given: dict[str, str] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise ValueError(f"{spec!r}: {part!r} is no setting: write key=value, for example {known[0]}=...")
        if key not in (*known, "from", "grow"):
            near = difflib.get_close_matches(key, [*known, "from", "grow"], n=1, cutoff=0.0)[0]
            raise ValueError(f"{spec!r}: {name} has no setting {key!r}: did you mean {near!r}?")
        if key in given:
            raise ValueError(f"{spec!r}: {key} is given twice: leave one out")
        given[key] = value
    missing = [key for key in known if settings[key].default is inspect.Parameter.empty and key not in given]
    if missing:
        raise ValueError(f"{spec!r}: {name} needs {missing[0]}: write {name}:{missing[0]}=...")
    try:
        shortest = _whole("from", given.pop("from"), 1) if "from" in given else None
        grow = _whole("grow", given.pop("grow"), 0) if "grow" in given else 0
        if grow and shortest is None:
            raise ValueError("grow needs from, the length to grow from")
        return (
            maker(split=split, **given)
            if shortest is None
            else _ranged(maker(split=split, **given), shortest, grow)
        )
    except ValueError as error:
        raise ValueError(f"{spec!r}: {error}") from None


def _ranged(members: list[Member], shortest: int, grow: int) -> list[Member]:
    if any(member.length is not None for member in members):
        raise ValueError("rows of this task have a length of their own: leave from and grow out")
    return [replace(member, shortest=shortest, grow=grow) for member in members]


def _whole(name: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}={text} is not possible: give a whole number of at least {least}")
    return int(text)


def _share(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}={text} is not possible: give a number") from None


def _recall(
    *,
    split: Split,
    pairs: str = "8",
    keys: str = "64",
    values: str = "64",
    fillers: str = "64",
    queries: str = "0.2",
) -> list[Member]:
    from rmat.tasks.recall import RecallTask

    del split  # every row is drawn afresh
    counts = {
        "n_pairs": _whole("pairs", pairs, 1),
        "n_keys": _whole("keys", keys, 1),
        "n_values": _whole("values", values, 1),
        "n_filler": _whole("fillers", fillers, 1),
    }
    least = 2 * counts["n_pairs"] + 2  # every row gets the length of its batch
    return [Member(task=RecallTask(**counts, length=least, query_share=_share("queries", queries)))]


def _mqar(
    *,
    split: Split,
    pairs: str | None = None,
    length: str | None = None,
    vocabulary: str = "8192",
    changes: str = "0",
) -> list[Member]:
    from rmat.tasks.mqar import TRAIN_MIX, MqarTask

    del split
    size = _whole("vocabulary", vocabulary, 4)
    if (pairs is None) != (length is None):
        raise ValueError("give pairs and length together, or neither for the published mixture")
    mix = TRAIN_MIX if pairs is None else ((_whole("length", str(length), 4), _whole("pairs", pairs, 1), 1),)
    return [
        Member(
            task=MqarTask(pairs=n, vocabulary=size, changes=_whole("changes", changes, 0)),
            share=share,
            length=tokens,
        )
        for tokens, n, share in mix
    ]


def _passkey(*, split: Split, filler: str = "noise", digits: str = "5") -> list[Member]:
    from rmat.tasks.passkey import PasskeyTask

    return [
        Member(
            task=PasskeyTask(filler=tuple(filler.split("+")), split=split, digits=_whole("digits", digits, 1))
        )
    ]


def _needle(*, split: Split, tasks: str = "single_1", haystack: str = "python-stdlib") -> list[Member]:
    from rmat.tasks.needle import NeedleTask

    return [Member(task=NeedleTask(task=task, haystack=haystack, split=split)) for task in tasks.split("+")]


def _babilong(
    *,
    split: Split,
    facts: str,
    filler: str = "python-stdlib",
    tasks: str = "1+2+3+4+5",
    questions: str = "last",
) -> list[Member]:
    from rmat.tasks.babilong import BabilongTask

    asked = _last_or_all(questions)
    return [
        Member(
            task=BabilongTask(
                facts=facts,
                filler=filler,
                tasks=(_whole("tasks", task, 1),),
                split=split,
                questions=asked,
            )
        )
        for task in tasks.split("+")
    ]


def _facts(
    *, split: Split, filler: str = "talk", facts: str = "4", changes: str = "0", questions: str = "last"
) -> list[Member]:
    from rmat.tasks.facts import FactsTask

    return [
        Member(
            task=FactsTask(
                filler=tuple(filler.split("+")),
                split=split,
                facts=_whole("facts", facts, 1),
                changes=_share("changes", changes),
                questions=_last_or_all(questions),
            )
        )
    ]


def _last_or_all(questions: str) -> Literal["last", "all"]:
    asked: Literal["last", "all"] = "all" if questions == "all" else "last"
    if questions != asked:
        raise ValueError(f"questions={questions} is not possible: choose last or all")
    return asked


_MAKERS: dict[str, Callable[..., list[Member]]] = {
    "recall": _recall,
    "mqar": _mqar,
    "passkey": _passkey,
    "needle": _needle,
    "babilong": _babilong,
    "facts": _facts,
}

TASKS = tuple(_MAKERS)
"""Names of the tasks."""
