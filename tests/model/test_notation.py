"""The legend of axes is kept: names say what a tensor is, and `rmat/model` stays small."""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import rmat
from rmat.model import notation
from tests.makers.models import make_model, make_tokens, schedules_of

PACKAGE = Path(rmat.__file__).parent
FILES = [*sorted((PACKAGE / "model").glob("*.py")), *sorted((PACKAGE / "ops").glob("*.py"))]
LEGEND = set(re.findall(r"(?:^|\s{4,})([A-Z])   \w", notation.__doc__ or "", re.MULTILINE))
SUFFIX = re.compile(r"^[a-z]\w*_([A-Z0-9]+)$")
CODE_LINES = 2283


def names(path: Path) -> set[str]:
    """All names that a file gives to variables, parameters, fields and functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.Attribute)):
            found.add(node.name if isinstance(node, ast.FunctionDef) else node.attr)
    return found


def test_suffixes_are_of_rank_three_or_more_and_of_the_legend() -> None:
    assert set("ABCDEFGHJKLMNPRSTVWX") == LEGEND
    offenders = [
        f"{path.name}: {name}"
        for path in FILES
        for name in sorted(names(path))
        if (suffix := SUFFIX.match(name)) and (len(suffix[1]) < 3 or set(suffix[1]) - LEGEND - set("12"))
    ]
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize(
    "name",
    [
        "recommended",
        "paper",
        "joint_both_gates",
        "newest_first",
        "all_push_scalar",
        "admitted_weakest_with_sinks",
    ],
)
def test_a_suffix_has_as_many_letters_as_its_tensor_has_axes(name: str) -> None:
    """Watched while models run, whole and token by token: every local variable and argument of every function."""
    model = make_model(name)
    sizes = {"E": model.config.d_model, "K": model.config.n_kv_heads, "F": model.config.d_ff}
    offenders, seen = set(), set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event != "return" or path not in FILES:
            return
        for local, value in frame.f_locals.items():
            if not isinstance(value, torch.Tensor):
                continue
            where = f"{path.name}: {frame.f_code.co_name}: {local} {tuple(value.shape)}"
            if suffix := SUFFIX.match(local):
                seen.add(local)
                wrong = [
                    axis
                    for axis, n in zip(suffix[1], value.shape, strict=False)
                    if sizes.get(axis, n) not in (n, 1)
                ]
                if len(suffix[1]) != value.dim() or wrong:
                    offenders.add(where)

    sys.setprofile(watch)
    try:
        for schedule in schedules_of(model.config):
            _, state = model(make_tokens(2, 21), schedule=schedule)
            model(make_tokens(2, 1), state)
    finally:
        sys.setprofile(None)
    assert len(seen) > 20
    assert not offenders, "\n".join(sorted(offenders))


def code_lines(path: Path) -> int:
    """Lines that hold code: no comments, docstrings and blanks."""
    text = path.read_text(encoding="utf-8")
    texts: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            texts |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    layout = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - texts)


def test_the_model_stays_small() -> None:
    """The folder, not a file: split where two readers need different halves."""
    assert sum(map(code_lines, sorted((PACKAGE / "model").glob("*.py")))) <= CODE_LINES
