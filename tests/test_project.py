"""The shape of the project: who may import whom, what importing costs, how long a file may be."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import rmat

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rmat"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = [
    path
    for part in ("rmat", "tests", "benchmarks", "examples", "scripts")
    for path in sorted((ROOT / part).rglob("*.py"))
]

MAY_IMPORT = {
    "ops": set(),
    "model": {"ops", "settings"},
    "reference": {"model"},
    "settings": set(),
    "machine": set(),
    "storage": {"model"},
    "accounting": {"model"},
    "context_parallel": {"model", "ops"},
    "data": {"settings", "machine"},
    "tasks": {"data", "settings", "machine"},
    "pretrained": {"ops", "model", "storage", "data", "tasks", "training", "settings", "machine", ""},
    "generation": {"model", "data", "settings"},
    "evaluation": {"model", "data", "tasks", "generation", "settings", "machine"},
    "training": {"model", "storage", "data", "tasks", "settings", "machine", "context_parallel"},
    "sessions": {"model", "storage", "data", "generation", "settings", "machine"},
    "engine": {"model", "data", "generation", "settings"},
    "serving": {"model", "storage", "data", "generation", "sessions", "engine", "settings", ""},
    "api": {
        "model",
        "storage",
        "data",
        "tasks",
        "generation",
        "evaluation",
        "training",
        "pretrained",
        "settings",
    },
    "integrations": {
        *("model", "storage", "accounting", "data", "pretrained", "generation", "settings", "machine"),
    },
    "report": {
        *("ops", "model", "storage", "machine", "accounting", "data", "tasks", "generation", "evaluation"),
        *("training", "api"),
    },
    "cli": {
        *(
            "model",
            "storage",
            "settings",
            "machine",
            "accounting",
            "data",
            "tasks",
            "generation",
            "evaluation",
        ),
        *("pretrained", "training", "sessions", "engine", "serving", "report", "integrations", "api", ""),
    },
    "": {"model", "data", "generation", "sessions", "training", "pretrained", "api"},
    "__main__": {"cli"},
}
"""Part -> parts it may import besides itself; "" is rmat/__init__.py, which imports lazily."""

ALLOWED_EXCEPTIONS = {("model/language_model.py", "storage"), ("model/state.py", "storage")}
"""`model.save` and `state.save` are the two places where the model knows of files."""

OUTSIDE = {
    "ops": {"torch"},
    "model": {"torch", "safetensors"},
    "reference": {"torch"},
    "settings": set(),
    "machine": {"torch", "platformdirs"},
    "storage": {"torch", "safetensors", "numpy"},
    "accounting": {"torch"},
    "context_parallel": {"torch"},
    "data": {
        "torch",
        "numpy",
        "tokenizers",
        "filelock",
        "pathspec",
        "pyarrow",
        "datasets",
        "rich",
        "pypdf",
        "bs4",
        "jinja2",
    },
    "pretrained": {"torch", "numpy", "safetensors", "tokenizers", "gguf", "huggingface_hub"},
    "tasks": {"torch", "numpy", "tokenizers"},
    "generation": {"torch", "numpy", "safetensors", "llguidance"},
    "evaluation": {"torch", "numpy"},
    "training": {"torch", "numpy", "safetensors", "rich", "filelock"},
    "api": {"torch"},
    "sessions": {"torch", "numpy", "safetensors", "filelock"},
    "engine": {"torch", "numpy"},
    "serving": {"torch", "fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"},
    "integrations": {"torch", "numpy", "transformers", "tokenizers", "lm_eval", "huggingface_hub"},
    "report": {"torch", "numpy", "matplotlib"},
    "cli": {"torch", "rich", "yaml", "prompt_toolkit"},
    "": set(),
    "__main__": set(),
}
"""Part -> packages it may import besides the standard library."""

OPTIONAL = {"pyarrow", "datasets", "yaml", "pathspec", "matplotlib", "pypdf", "bs4", "prompt_toolkit"} | {
    *("gguf", "huggingface_hub", "jinja2", "llguidance"),
}
"""Packages that a command which does not need them must not load."""


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules imported in a file, and whether at its top level; those for type checking only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            yield node.module, id(node) in top


def fresh(code: str) -> str:
    """Standard output of `code` in an interpreter that has imported nothing."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_point_one_way() -> None:
    offenders = []
    for path in SOURCES:
        part, name = part_of(path), str(path.relative_to(PACKAGE))
        assert part in MAY_IMPORT, f"{part} has no place among the layers"
        for module, at_top in imports(path):
            package, _, rest = module.partition(".")
            target = rest.partition(".")[0]
            if package == "rmat":
                fine = target in MAY_IMPORT[part] | {part} or (name, target) in ALLOWED_EXCEPTIONS
                offenders += [] if fine else [f"{name} imports {module}"]
            elif package not in sys.stdlib_module_names:
                offenders += [] if package in OUTSIDE[part] else [f"{name} imports {module}"]
                if package in OPTIONAL and at_top and name != "cli/explain.py":
                    offenders += [
                        f"{name} imports {module} at its top: import it in the function that needs it"
                    ]
            if part == "reference" and module.startswith("rmat.model") and module != "rmat.model.config":
                offenders += [f"{name} imports {module}: what defines the model must not use it"]
    assert not offenders, "\n".join(offenders)


def test_one_file_writes_tensors() -> None:
    """Whole or not at all, through links and never over a device: those rules stand in one place."""
    writers = [
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        if re.search(r"\bsave_file\b|\bserialize_file\b", path.read_text(encoding="utf-8"))
    ]
    assert writers == ["storage.py"]


def test_importing_rmat_is_light() -> None:
    loaded = fresh("import sys, rmat; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert "rmat" in loaded
    assert not {
        "torch",
        "numpy",
        "safetensors",
        "tokenizers",
        "rich",
        "yaml",
        "pathspec",
        "pyarrow",
        "datasets",
        "matplotlib",
        "transformers",
    } & set(loaded)


def test_the_model_needs_torch_and_safetensors_only() -> None:
    """torch itself may load numpy; nothing else that is ours to choose comes along."""
    loaded = fresh(
        "import sys, rmat; rmat.LanguageModel; print(*{name.partition('.')[0] for name in sys.modules})"
    ).split()
    assert not {"tokenizers", "rich", "yaml", "pathspec", "pyarrow", "datasets"} & set(loaded)


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        *(
            [name, "--help"]
            for name in ("train", "generate", "complete", "chat", "read", "ask", "sessions", "serve")
        ),
        ["eval", "ablation", "--help"],
    ],
)
def test_help_does_not_wait_for_torch(command: list[str]) -> None:
    code = (
        "import sys, rmat.cli.main as main\n"
        f"try: main.main({command!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "print('torch' in sys.modules)"
    )
    assert fresh(code).splitlines()[-1] == "False"


def test_every_public_name_is_there() -> None:
    for name in rmat.__all__:
        assert getattr(rmat, name) is not None
        assert name in dir(rmat)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rmat.nonsense  # noqa: B018


def test_one_version() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == rmat.__version__


def test_nothing_is_pickled() -> None:
    """Weights, states and checkpoints are safetensors and JSON; loading a file must never run code from it."""
    offenders = []
    for path in ALL_FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            wrong = False
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                packages = {name.partition(".")[0] for name in names}
                wrong = bool({"pickle", "cloudpickle", "dill", "joblib"} & packages)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                wrong = node.value.id == "torch" and node.attr in ("save", "load")
            elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
                wrong = (node.arg, node.value.value) == ("allow_pickle", True)
            if wrong:
                offenders.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}")
    assert not offenders, "\n".join(offenders)


def test_lines_are_short() -> None:
    """110 columns at most, docstrings and comments too: the formatter leaves those to their authors."""
    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 110 and "http" not in line
    ]
    assert not offenders, "\n".join(offenders)


def test_every_dependency_is_pinned() -> None:
    """`make` installs exact versions of all that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.split(r"[<>=\[]", line)[0].lower() for line in wanted} - {"rmat"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert names <= pinned
    assert "torch==2.13.0" in lines
