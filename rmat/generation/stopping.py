"""Text in pieces: bytes to whole characters, and stop strings found across the borders of pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class StopMatcher:
    """Passes text on until a stop string appears, wherever the pieces happen to be cut.

    Text that may still become a stop string is held back; the stop string itself and what follows are
    dropped. Of several stop strings the one that is complete first counts, and of those the one that began
    first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise ValueError(f"stop is the string {stops!r}: give a list of strings, [{stops!r}]")
        if not isinstance(stops, Iterable) or not all(isinstance(stop, str) for stop in stops):
            raise ValueError(f"stop is {stops!r}: give a list of strings")
        if not all(stops):
            raise ValueError("stop holds an empty string, which is everywhere: leave it out")
        self._stops = tuple(stops)
        self.active = True
        """Whether a stop string that is complete ends the text."""
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that is safe to show now, and whether a stop string has appeared."""
        if not self._stops:
            return piece, False
        start = len(self._held)
        text = self._held + piece
        # Only an end inside the new piece can complete a stop string: the held text alone has none.
        for end in range(start + 1, len(text) + 1) if self.active else ():
            complete = [stop for stop in self._stops if text.endswith(stop, 0, end)]
            if complete:
                self._held = ""
                return text[: end - max(map(len, complete))], True
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The text held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, and is not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
