"""Where thinking ends and the answer begins in what the model writes.

Owns the thinking tags. Works on text, because the tags are ordinary tokens to a decoder. Nothing is stripped or
reordered: sent back as it was returned, a turn renders to what the model wrote, and its prefix is the same.
"""

from typing import Literal, NamedTuple

from m3_worker.stop_strings import held_back

OPENING = "<mm:think>"
CLOSING = "</mm:think>"


class Segment(NamedTuple):
    """A piece of one kind; pieces come in the order of the text."""

    kind: Literal["reasoning", "content"]
    text: str


class ThinkingSplitter:
    """Splits one turn. A tag is never passed on, nor is a part of one; a closing tag that closes nothing is dropped."""

    def __init__(self, prompt: str) -> None:
        """`prompt` is the rendered prompt: it may end inside of thinking, after it, or leave that to the model."""
        self._held = ""
        self._state: Literal["undecided", "thinking", "answering"] = "undecided"
        if prompt.endswith(OPENING):
            self._state = "thinking"
        elif prompt.endswith(CLOSING):
            self._state = "answering"

    def push(self, text: str) -> list[Segment]:
        """The pieces that are certain by now."""
        text, self._held = self._held + text, ""
        if self._state == "undecided":
            text = self._decide(text)
        if self._state == "thinking":
            return self._split(text)
        if self._state == "answering" and text:
            return [Segment("content", text)]
        return []

    def finish(self) -> list[Segment]:
        """What is still held, when no more text comes."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [Segment("reasoning" if self._state == "thinking" else "content", held)]

    def _decide(self, text: str) -> str:
        """Whether the turn begins with thinking; what is left of `text` after the tag that says so."""
        begun = text.lstrip()
        if begun.startswith(OPENING):
            self._state = "thinking"
            return begun[len(OPENING) :]
        if begun.startswith(CLOSING):
            self._state = "answering"
            return begun[len(CLOSING) :]
        if OPENING.startswith(begun) or CLOSING.startswith(begun):
            self._held = text
            return ""
        self._state = "answering"
        return text

    def _split(self, text: str) -> list[Segment]:
        thought, closing, answer = text.partition(CLOSING)
        if closing:
            self._state = "answering"
        else:
            keep = held_back(text, (CLOSING,))
            thought, self._held = text[: len(text) - keep], text[len(text) - keep :]
        pieces = (Segment("reasoning", thought), Segment("content", answer))
        return [piece for piece in pieces if piece.text]
