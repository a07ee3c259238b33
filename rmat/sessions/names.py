"""What a session may be called."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""What Windows takes for a device, whatever follows the first dot."""


def is_name(name: str) -> bool:
    """Whether a session can be called so."""
    return _NAME.fullmatch(name) is not None and _DEVICES.fullmatch(name) is None


def check_name(name: str) -> str:
    """`name` if a session can be called so, else ValueError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"no session can be called {name!r}: give 1 to 64 letters (a to z), digits, '.', '_' or '-', the first "
            "a letter or digit"
        )
    if _DEVICES.fullmatch(name):
        raise ValueError(
            f"no session can be called {name!r}, which is a device on Windows: take another name"
        )
    return name
