"""Writing files so that a reader never finds half of one, whatever interrupts the writer."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rmat.storage import flush


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`: either all of it is there afterwards or what was there before."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def fresh_folder(target: Path) -> Path:
    """An empty folder beside `target` to be filled and given to `move_into_place`."""
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def move_into_place(temporary: Path, target: Path) -> None:
    """Make the filled folder `temporary` the folder `target`, replacing what was there."""
    for path in temporary.iterdir():
        flush(path)
    flush(temporary)
    if target.exists():
        shutil.rmtree(target)
    os.rename(temporary, target)
    flush(target.parent)
