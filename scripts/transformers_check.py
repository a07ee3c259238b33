"""Run transformers' own tests of models on ours: `make transformers-check`, or give the source distribution as an
argument. Nothing of them is kept but in the cache folder."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = ROOT / "tests" / "integrations" / "their_tests.py"

MISSING = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
}
"""What the source distribution leaves out and its tests import."""


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        archive = Path(arguments[0]) if arguments else download(folder)
        with tarfile.open(archive) as packed:
            members = [member for member in packed.getmembers() if "/tests/" in member.name]
            packed.extractall(folder, members, filter="data")
        tests = next(folder.glob("transformers-*/tests"))
        for name, text in MISSING.items():
            (tests / name).parent.mkdir(exist_ok=True)
            (tests / name).write_text(text)
        target = tests / "models" / "rmat" / "test_modeling_rmat.py"
        target.parent.mkdir(parents=True)
        shutil.copy(OURS, target)
        for made in (tests, *(path for path in tests.rglob("*") if path.is_dir())):
            (made / "__init__.py").touch()
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-rs",
            str(target),
            *arguments[1:],
        ]
        return subprocess.run(command, cwd=tests.parent).returncode


def download(folder: Path) -> Path:
    """The source distribution of the installed transformers."""
    name = f"transformers=={version('transformers')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-binary", ":all:", "--dest", str(folder), name], check=True)
    return next(folder.glob("transformers-*.tar.gz"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
