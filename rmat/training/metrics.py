"""JSON lines that survive interruption: after a resume the file reads as if nothing had happened."""

import json
from pathlib import Path
from typing import Any

from rmat.storage import flush, to_json, write_file


class JsonLines:
    """A file of one JSON object a line, each with the key "step", in order of time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Add `row` and hand it to the operating system, so that the death of this process cannot lose it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")

    def cut_after(self, step: int) -> None:
        """Drop every row later than `step`, and the remains of a row whose writing was interrupted."""
        kept = [row for row in self.rows() if row["step"] <= step]
        write_file(self.path, "".join(to_json(row) + "\n" for row in kept))

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        if self.path.exists():
            flush(self.path)
