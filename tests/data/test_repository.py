"""Which files of a repository are context, and that the nearest are read last."""

from pathlib import Path

import pytest

from rmat.data.files import Skipped
from rmat.data.repository import context_files, context_texts, imported, nearest_last, target_name, within
from tests.makers.texts import write_files

FILES: dict[str, str | bytes] = {
    "README.md": "words\n",
    "setup.py": "top\n",
    "pkg/core/target.py": "target\n",
    "pkg/core/near.py": "near\n",
    "pkg/core/notes.md": "notes\n",
    "pkg/tool.py": "tool\n",
    "pkg/__init__.py": "pkg\n",
    "other/deep/far.py": "far\n",
    "other/lib.js": "lib\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_files(tmp_path / "repo", FILES)


def names(root: Path, target: str | None = "pkg/core/target.py", **options: object) -> list[str]:
    path = None if target is None else root / target
    return [file.name for file in context_files(root, Skipped(), target=path, **options)]  # type: ignore[arg-type]


def test_the_nearest_come_last_and_the_target_not_at_all(root: Path) -> None:
    assert names(root) == [
        "other/deep/far.py",
        "other/lib.js",
        "README.md",
        "setup.py",
        "pkg/__init__.py",
        "pkg/tool.py",
        "pkg/core/notes.md",
        "pkg/core/near.py",
    ]


def test_what_the_target_imports_is_nearest_of_all(root: Path) -> None:
    text = "import os\nfrom other.deep.far import thing\nfrom .. import tool as t\n"
    assert names(root, text=text)[-3:] == ["other/deep/far.py", "pkg/__init__.py", "pkg/tool.py"]


def test_what_git_ignores_and_what_is_no_text_is_left_out(root: Path) -> None:
    write_files(
        root,
        {
            ".gitignore": "build/\n*.gen.py\n",
            "build/made.py": "x\n",
            "pkg/a.gen.py": "x\n",
            ".hidden/x.py": "x\n",
            "data.jsonl": '{"text": "x"}\n',
            "picture.png": b"\x89PNG\0",
            "binary.py": b"x = 1\0",
            "empty.py": "",
        },
    )
    skipped = Skipped()
    found = context_files(root, skipped, target=root / "pkg/core/target.py")
    assert {file.name for file in found} == FILES.keys() - {"pkg/core/target.py"}
    assert {"binary", "hidden", "ignored by .gitignore", "empty", "records"} <= skipped.to_dict().keys()


def test_a_target_may_be_new_elsewhere_or_without_a_name(root: Path, tmp_path: Path) -> None:
    assert names(root, "pkg/core/new.py")[-1] == "pkg/core/target.py"
    assert len(names(root, "../elsewhere.py")) == len(names(root, None)) == len(FILES)
    assert target_name(root, root / "pkg" / "core" / ".." / "tool.py") == "pkg/tool.py"
    assert target_name(root, tmp_path / "elsewhere.py") == "elsewhere.py"


def test_the_target_is_left_out_under_any_path_to_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "pkg")
    (tmp_path / "link").symlink_to(root)
    (root / "alias.py").symlink_to(root / "pkg/core/target.py")
    for path in (Path("core/target.py"), tmp_path / "link/pkg/core/target.py"):
        found = context_files(root, Skipped(), target=path)
        assert not {"pkg/core/target.py", "alias.py"} & {file.name for file in found}


def test_a_limit_takes_from_the_nearest_on(root: Path) -> None:
    skipped = Skipped()
    found = context_files(root, skipped, target=root / "pkg/core/target.py", max_bytes=16)
    assert [file.name for file in found] == ["pkg/tool.py", "pkg/core/notes.md", "pkg/core/near.py"]
    assert skipped.to_dict()["over the limit of context"]["count"] == 5
    assert names(root, max_bytes=0) == []
    assert within([5, 1, 9, 2], 8) == [0, 1, 3], "one that is too large does not hide those behind it"


def test_texts_are_read_when_it_is_their_turn(root: Path) -> None:
    files = context_files(root, Skipped(), target=root / "pkg/core/target.py")
    (root / "setup.py").write_bytes(b"caf\xe9")
    (root / "pkg/core/near.py").write_text("changed\r\n", newline="")
    skipped = Skipped()
    texts = dict(context_texts(files, skipped))
    assert texts["pkg/core/near.py"] == "changed\r\n" and "setup.py" not in texts
    assert skipped.to_dict()["not UTF-8"]["first"] == "setup.py"


@pytest.mark.parametrize(
    ("line", "modules"),
    [
        ("import os.path as p, sys", {("os", "path"), ("sys",)}),
        ("    from a.b import c", {("a", "b"), ("a", "b", "c")}),
        ("from . import near", {("pkg", "core"), ("pkg", "core", "near")}),
        ("from ..x import (one, two as t)", {("pkg", "x"), ("pkg", "x", "one"), ("pkg", "x", "two")}),
        ("from .....x import y", {("x",), ("x", "y")}),
        ('#include "lib/thing.h"', {("lib", "thing")}),
        ("#include <vector>", {("vector",)}),
        ("import { a } from '../lib'", {("lib",)}),
        ("const lib = require('./x/lib.js')", {("x", "lib")}),
        ("important = 'no import of this'", set()),
    ],
)
def test_imports_are_read_by_the_form_of_the_line(line: str, modules: set[tuple[str, ...]]) -> None:
    assert modules <= imported(f"x = 1\n{line}\n", "pkg/core/target.py")
    assert modules or not imported(line, "pkg/core/target.py")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("z/lib.js", "import a from './lib'"),
        ("z/pkg/__init__.py", "import pkg"),
        ("z/lib/index.js", 'require("../z/lib")'),
        ("z/a/b.py", "from a.b import c"),
        ("z/a/b.py", "from a import b"),
    ],
)
def test_an_imported_file_is_known(name: str, text: str) -> None:
    assert nearest_last([name, "near.py"], "target.py", text)[-1] == name
    assert nearest_last([name, "near.py"], "target.py")[-1] == "near.py"


def test_faults_are_told(root: Path) -> None:
    with pytest.raises(ValueError, match=r"setup\.py is no folder"):
        context_files(root / "setup.py", Skipped())
    with pytest.raises(ValueError, match="-1 bytes"):
        names(root, max_bytes=-1)
