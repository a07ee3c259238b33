"""API keys: where they come from, how one is checked, and whose sessions belong to it."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ENVIRONMENT = "RMAT_API_KEYS"
"""Variable with keys separated by blanks or commas."""

ANONYMOUS = "public"
"""Owner of the sessions of a server without keys."""

_PREFIX = "sha256:"
_HASHED = re.compile(r"sha256:[0-9a-fA-F]{64}")


def hash_key(key: str) -> str:
    """How a key can be kept without being readable: `sha256:` and 64 hexadecimal digits."""
    return _PREFIX + hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """The keys that a server accepts; without any it accepts everyone.

    Args:
        entries: keys, or what `hash_key` gives for them. Only hashes are kept.

    Raises ValueError for an entry that is neither.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        hashes = set()
        for entry in entries:
            if entry.lower() in ("", hash_key("")):
                raise ValueError(
                    "an API key is empty, so everyone would have it: make one with openssl rand -hex 24"
                )
            if entry.startswith(_PREFIX) and not _HASHED.fullmatch(entry):
                raise ValueError(
                    "an API key begins with sha256: but is no hash: 64 hexadecimal digits follow, "
                    "as `rmat serve --hash-key` prints them"
                )
            if not entry.isascii() or not entry.isprintable() or " " in entry:
                raise ValueError("an API key holds a blank or a character that is not ASCII: choose another")
            hashes.add(entry.lower() if entry.startswith(_PREFIX) else hash_key(entry))
        self._hashes = tuple(sorted(hashes))

    def __len__(self) -> int:
        return len(self._hashes)

    @staticmethod
    def others_can_read(file: str | Path) -> bool:
        """Whether other users of this machine can read the file."""
        return sys.platform != "win32" and bool(os.stat(file).st_mode & 0o044)

    @staticmethod
    def collect(file: str | Path | None) -> Keys:
        """The keys in a file, one on each line (empty lines and those beginning with # are skipped), and in
        the environment. Raises ValueError where the file holds none."""
        entries = os.environ.get(ENVIRONMENT, "").replace(",", " ").split()
        if file is not None:
            lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
            listed = [line for line in lines if line and not line.startswith("#")]
            if not listed:
                raise ValueError(f"{file} holds no API key: write one on each line")
            entries += listed
        return Keys(entries)

    def owner(self, authorization: str | None) -> str | None:
        """Name of the one whose key stands in an `Authorization` header, or None for a wrong key or none.

        Every key is compared, each in constant time, so that the time taken tells nothing.
        """
        if not self._hashes:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        given = hash_key(key.strip()).encode()
        matches = [hmac.compare_digest(given, known.encode()) for known in self._hashes]
        if scheme.lower() != "bearer" or not key.strip() or not any(matches):
            return None
        return given.decode().removeprefix(_PREFIX)[:32]
