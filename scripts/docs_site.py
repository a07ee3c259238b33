"""The documentation as a site: `make docs`.

The pages stay where they are readable on their own; MkDocs gets a copy of them in build/docs, with whatever
they link to, so that no link has to know where it is read.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import griffe

ROOT = Path(__file__).parent.parent
STAGE = ROOT / "build" / "docs"
LINK = re.compile(r"\]\(([^)\s#]+)([^)]*)\)")


def stage() -> None:
    """Copy the pages, and the files and folders that they link to, of which a folder becomes a list."""
    shutil.rmtree(STAGE, ignore_errors=True)
    waiting = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    done: set[Path] = set()
    while waiting:
        source = waiting.pop()
        if source in done:
            continue
        done.add(source)
        place = STAGE / source.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            place.mkdir(exist_ok=True)
            names = sorted(entry.name + "/" * entry.is_dir() for entry in source.iterdir())
            listing = "\n".join([f"# {source.relative_to(ROOT)}", "", *(f"- `{name}`" for name in names), ""])
            (place / "index.md").write_text(listing, "utf-8")
        elif source.suffix == ".md":
            place.write_text(LINK.sub(partial(_follow, source, waiting), source.read_text("utf-8")), "utf-8")
        else:
            shutil.copyfile(source, place)


def _follow(source: Path, waiting: list[Path], link: re.Match[str]) -> str:
    """A link of a page as the site has it; what it leads to is put on the list of what to copy."""
    target = (source.parent / link[1]).resolve()
    if "://" in link[1] or not target.exists() or ROOT not in target.parents:
        return link[0]
    waiting.append(target)
    return f"]({link[1].rstrip('/')}/index.md{link[2]})" if target.is_dir() else link[0]


class JointParameters(griffe.Extension):
    """Parameters that are documented together, as in `top_k, top_p: ...`, get an entry each."""

    JOINT = re.compile(r"^( +)(\w+(?:,\s+\w+)+):((?: .*|\n\1 +.*)+)", re.MULTILINE)

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of `obj`."""
        if obj.docstring is not None:
            obj.docstring.value = self.JOINT.sub(self._apart, obj.docstring.value)

    @staticmethod
    def _apart(found: re.Match[str]) -> str:
        indent, names, text = found[1], re.split(r",\s+", found[2]), found[3]
        return "\n".join(f"{indent}{name}:{text}" for name in names)


if __name__ == "__main__":
    stage()
    command = [sys.executable, "-m", "mkdocs", *(sys.argv[1:] or ["build"]), "--strict"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)
