"""Finding strings in text that arrives in pieces, without ever letting part of one through.

Owns the holding back: text is kept only as long as it could still be the beginning of a string that is looked for.
"""

from collections.abc import Sequence


def held_back(text: str, needles: Sequence[str]) -> int:
    """Length of the longest end of `text` that one of `needles` begins with, and that is not all of it."""
    longest = 0
    for needle in needles:
        for length in range(min(len(needle) - 1, len(text)), longest, -1):
            if text.endswith(needle[:length]):
                longest = length
                break
    return longest


class StopStrings:
    """Passes text on up to the first stop string, which is not passed on itself."""

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` must not contain the empty string."""
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """The text that can be passed on now. Once `stopped`, there is none."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = held_back(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What is still held, when no more text comes."""
        held, self._held = self._held, ""
        return held
