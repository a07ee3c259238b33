"""Writing files so that a reader never finds half of one, whatever interrupts the writer."""

import json
import os
import shutil
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Wait until the file or folder `path` is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`: either all of it is there afterwards or what was there before."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


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
        sync(path)
    sync(temporary)
    if target.exists():
        shutil.rmtree(target)
    os.rename(temporary, target)
    sync(target.parent)
