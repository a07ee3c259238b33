"""The wheel and the source distribution: built, installed where nothing of the project lies, and used there."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import rmat

ROOT = Path(__file__).parent.parent


def run(*command: object, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=200,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both, as a package index has them."""
    out = tmp_path_factory.mktemp("built")
    code = f"from hatchling.build import build_sdist, build_wheel; build_sdist({str(out)!r}); build_wheel({str(out)!r})"
    run(sys.executable, "-c", code, cwd=ROOT)
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


def test_both_hold_the_whole_package(built: dict[str, Path]) -> None:
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "rmat").rglob("*.py")}
    assets = {
        f"rmat/assets/starter/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    with zipfile.ZipFile(built["wheel"]) as wheel:
        held = set(wheel.namelist())
    assert code | assets <= held
    assert not {name for name in held if name.startswith(("tests", "docs", "benchmarks"))}
    with tarfile.open(built["sdist"]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert code | assets | {"pyproject.toml", "README.md", "LICENSE", "docs/README.md", "Makefile"} <= held


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_elsewhere_the_command_and_the_starter_work(
    built: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    """An environment of its own, whose other packages are those of this one."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    others = [path for path in sys.path if path.endswith("-packages")]
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    run(*install, "--disable-pip-version-check", "--target", site, built[kind])
    (site / "others.pth").write_text("\n".join(others) + "\n")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = run(python, "-c", "import rmat; print(rmat.__file__)", cwd=tmp_path, env=clean).strip()
    assert Path(where).is_relative_to(site)
    command = [python, "-m", "rmat"]
    assert run(*command, "--version", cwd=tmp_path, env=clean).strip() == f"rmat {rmat.__version__}"
    written = run(
        *command,
        "generate",
        "starter",
        "def main():",
        "--max-new-tokens",
        "8",
        "--seed",
        "1",
        cwd=tmp_path,
        env=clean,
    )
    assert written.strip()
