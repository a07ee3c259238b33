"""Make a corpus of code whose documents are whole packages: text that far context helps to predict.

    python benchmarks/code_corpus.py --out runs/code

Each document is one installed package: its files, each behind a comment with its path, a file behind those
that it imports (as DeepSeek-Coder orders repositories, arXiv 2401.14196, section 2.2). Packages are those of
the constraints file, split by name into train, valid and test; tests and vendored copies of other packages are
left out. `corpus.json` beside them says the version, files and bytes of each.
"""

from __future__ import annotations

import argparse
import json
import platform
import sysconfig
from importlib.metadata import packages_distributions, version
from pathlib import Path, PurePosixPath

from rmat.data.repository import imported

TRAIN = (
    *("torch", "sympy", "matplotlib", "numpy", "fontTools", "mypy", "mypyc", "pygments", "setuptools"),
    *("huggingface_hub", "_pytest", "PIL", "openai", "pip", "schemathesis", "playwright", "torchgen"),
    *("fsspec", "urllib3", "httpcore", "uvicorn", "yaml", "requests", "charset_normalizer", "tqdm"),
    *("hatchling", "pyparsing", "dateutil", "graphql", "filelock", "execnet", "pathspec"),
)
VALID = ("pydantic", "werkzeug", "anyio", "markdown_it")
TEST = (
    *("networkx", "hypothesis", "mpmath", "rich", "pypdf", "fastapi", "jinja2", "click", "prompt_toolkit"),
    "packaging",
)
LEFT_OUT = frozenset(("test", "tests", "testing", "_vendor", "vendored", "__pycache__"))
"""Folders that are left out: tests, and copies of packages that may stand in another split."""

MOST_BYTES = 4_000_000
"""Of one package, so that none is most of the corpus."""


def ordered(texts: dict[str, str]) -> list[str]:
    """Paths in an order in which a file stands behind those of the package that it imports."""
    by_module: dict[tuple[str, ...], str] = {}
    for name in texts:
        parts = PurePosixPath(name).with_suffix("").parts
        by_module[parts[:-1] if parts[-1] == "__init__" else parts] = name
    order: list[str] = []
    seen: set[str] = set()

    def visit(start: str) -> None:
        stack = [(start, iter(needed(start)))]
        seen.add(start)
        while stack:
            name, rest = stack[-1]
            other = next((other for other in rest if other not in seen), None)
            if other is None:
                order.append(name)
                stack.pop()
            else:
                seen.add(other)
                stack.append((other, iter(needed(other))))

    def needed(name: str) -> list[str]:
        found = {by_module[parts] for parts in imported(texts[name], name) if parts in by_module}
        return sorted(found - {name})

    for name in sorted(texts):
        if name not in seen:
            visit(name)
    return order


def package_text(root: Path, package: str) -> tuple[str, int]:
    """The text of a package, and how many files are in it. Raises ValueError if it is not installed."""
    texts = {}
    for path in sorted((root / package).rglob("*.py")):
        name = path.relative_to(root)
        text = path.read_text(encoding="utf-8", errors="ignore")
        if LEFT_OUT.isdisjoint(name.parts) and text.strip():
            texts[name.as_posix()] = text
    if not texts:
        raise ValueError(f"package {package!r} is not in {root}: install the project's `dev` extra")
    parts, n_bytes = [], 0
    for name in ordered(texts):
        part = f"# {name}\n{texts[name].strip()}\n\n\n"
        if n_bytes + len(part.encode()) > MOST_BYTES:
            break
        parts.append(part)
        n_bytes += len(part.encode())
    return "".join(parts), len(parts)


def main() -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/code"), metavar="DIR")
    out = parser.parse_args().out
    root = Path(sysconfig.get_paths()["purelib"])
    distributions = packages_distributions()
    record = []
    for split, packages in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        (out / split).mkdir(parents=True, exist_ok=True)
        for package in packages:
            text, n_files = package_text(root, package)
            (out / split / f"{package}.py").write_text(text, encoding="utf-8")
            entry = {"package": package, "split": split, "version": version(distributions[package][0])}
            record.append({**entry, "files": n_files, "bytes": len(text.encode())})
    described = {"python": platform.python_version(), "packages": record}
    (out / "corpus.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    for split in ("train", "valid", "test"):
        n_bytes = sum(entry["bytes"] for entry in record if entry["split"] == split)
        print(f"{split}: {sum(e['split'] == split for e in record)} packages, {n_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
