"""Finding strings in text that arrives in pieces, without ever letting part of one through.

Owns the holding back: text is kept only as long as it could still be the beginning of a string that is looked for.
"""

from collections.abc import Sequence
from operator import itemgetter


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
        self.found: str | None = None
        """The stop string that ended the text; of several at one place the first that was given."""
        self._stops = tuple(stops)
        self._held = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.found is not None

    def push(self, text: str) -> str:
        """The text that can be passed on now. Once `stopped`, there is none."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        text = self._held + text
        places = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            place, self.found = min(places, key=itemgetter(0))
            self._held = ""
            return text[:place]
        keep = held_back(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What is still held, when no more text comes."""
        held, self._held = self._held, ""
        return held
