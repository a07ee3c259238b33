"""The documentation points at things that exist, and its tables of settings are those of the code."""

import ast
import dataclasses
import inspect
import re
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest

import rmat
from rmat.data.config import DataConfig
from rmat.generation.stream import generate
from rmat.model.state import TENSORS
from rmat.settings import coerce, field_types
from rmat.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SYMBOL = re.compile(r"`([\w/.]+\.py)::([\w.]+)`")
FILE = re.compile(r"`((?:rmat|tests|benchmarks|examples|scripts|docs)/[\w/.-]+\.\w+)`")
TEST_NAME = re.compile(r"`(test_\w+)`")


def text_of(page: Path) -> str:
    return CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def symbols(path: Path) -> frozenset[str]:
    """Dotted names that a source file defines at its top level and inside its classes."""

    def names(body: list[ast.stmt], prefix: str) -> set[str]:
        found: set[str] = set()
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    found |= names(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
        return found

    return frozenset(names(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def table(page: str, section: str, pattern: str) -> dict[str, str]:
    """Name -> value of the rows of a page's section that begin as `pattern` says."""
    text = text_of(ROOT / "docs" / page).partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return dict(re.findall(pattern, text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for link in LINK.findall(text_of(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_symbols_exist(page: Path) -> None:
    text = text_of(page)
    for name in FILE.findall(text):
        assert (ROOT / name).is_file(), f"{page.name} names {name}"
    for name, symbol in SYMBOL.findall(text):
        assert (ROOT / name).is_file(), f"{page.name} names {name}"
        assert symbol in symbols(ROOT / name), f"{page.name} names {symbol} of {name}"


def test_every_row_of_the_equations_says_where() -> None:
    rows = [line for line in text_of(ROOT / "docs" / "equations.md").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| equation ")]
    assert len(rows) > 20
    for row in rows:
        assert row.count("|") == 5, row
        assert SYMBOL.search(row.split("|")[3]), row


def test_named_tests_exist() -> None:
    defined = {name for path in (ROOT / "tests").rglob("test_*.py") for name in symbols(path)}
    for name in TEST_NAME.findall((ROOT / "docs" / "testing.md").read_text(encoding="utf-8")):
        assert name in defined, f"testing.md names {name}"


@pytest.mark.parametrize(("page", "config"), [("training.md", TrainConfig), ("data.md", DataConfig)])
def test_tables_of_settings_are_those_of_the_code(page: str, config: type) -> None:
    """Every field is listed with the default that it has."""
    listed = table(page, "Settings", r"^\| `(\w+)` \| `([^`]+)` \|")
    kinds, defaults = field_types(config), config()
    assert list(listed) == [field.name for field in dataclasses.fields(config)]
    for name, value in listed.items():
        assert coerce(value, kinds[name], name) == getattr(defaults, name), name


def test_the_table_of_generation_is_that_of_the_code() -> None:
    listed = table("generation.md", "Options", r"^\| `(\w+)` \| (?:`--[\w-]+`)? ?\| `([^`]+)` \|")
    keywords = {
        name: repr(parameter.default)
        for name, parameter in inspect.signature(generate).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert listed == keywords


def test_the_table_of_the_state_is_that_of_the_code() -> None:
    listed = table("formats.md", "Stream state file", r"^\| `layers\.N\.(\w+)` \| ([^|]+) \|")
    assert list(listed) == list(TENSORS)


def test_the_site_has_every_page_and_every_name() -> None:
    """`make docs` takes its navigation from mkdocs.yml, and the documentation of what api.md names."""
    listed = re.findall(r"docs/[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)
    names = re.findall(
        r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    found = {resolve_name(name) for name in names}
    assert len(found) == len(names)
    assert found >= {getattr(rmat, name) for name in rmat.__all__ if name != "__version__"}
