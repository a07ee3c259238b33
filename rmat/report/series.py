"""Numbers of a report in two forms: plain lists for people and programs, packed bytes for the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KINDS = ("u1", "i1", "u2", "i2", "u4", "i4")


@dataclass(frozen=True)
class Series:
    """An array whose values are told to a step: 0.01 keeps two decimals. NaN (and -1 with `index`) means
    "none"."""

    values: NDArray[Any]
    step: float = 1
    index: bool = False
    """Whether the values are places in another array."""

    def plain(self) -> list[Any]:
        """Nested lists of numbers, null for none."""
        steps, missing = self._steps()
        if self.step == 1:
            numbers = steps.astype(object)
        else:
            digits = max(0, int(np.ceil(-np.log10(self.step) - 1e-9)))
            numbers = np.round(steps * self.step, digits).astype(object)
        numbers[missing] = None
        listed: list[Any] = numbers.tolist()
        return listed

    def packed(self) -> dict[str, Any]:
        """Little-endian integers in the narrowest type, in base64. `t` is the type, `n` the shape, `s` the
        step; the type's largest value stands for none."""
        steps, missing = self._steps()
        least, most = (int(steps.min()), int(steps.max())) if steps.size else (0, 0)
        kind = next(k for k in _KINDS if np.iinfo(k).min <= least and most < np.iinfo(k).max)
        steps = np.where(missing, np.iinfo(kind).max, steps)
        data = base64.b64encode(steps.astype(f"<{kind}").tobytes()).decode()
        return {"t": kind, "n": list(self.values.shape), "s": self.step, "d": data}

    def _steps(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        missing = self.values < 0 if self.index else np.isnan(self.values.astype(np.float64))
        return np.round(np.where(missing, 0, self.values) / self.step).astype(np.int64), missing


def plain(tree: Any) -> Any:
    """`tree` with every `Series` as lists."""
    return _replace(tree, Series.plain)


def packed(tree: Any) -> Any:
    """`tree` with every `Series` packed."""
    return _replace(tree, Series.packed)


def _replace(tree: Any, form: Any) -> Any:
    if isinstance(tree, Series):
        return form(tree)
    if isinstance(tree, dict):
        return {key: _replace(value, form) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_replace(value, form) for value in tree]
    return tree
