"""One turn of the assistant, as events that every dialect can write down.

Owns the order of what a turn consists of: thinking first, then the answer, in which tool calls may be. Each event is of
one kind, so that a delta made of one event never has thinking and answer both. How the text is cut into pieces makes no
difference to what the events of a kind add up to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from m3_worker.chat.conversation import Tool
from m3_worker.chat.thinking import ThinkingSplitter


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins. Calls are numbered from 0 in the turn, and none begins before the one before it ended."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of a call's arguments: the fragments of a call that ended join to one JSON object."""

    index: int
    json_fragment: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A call is complete. One without this event was cut off, and its arguments are no valid JSON."""

    index: int


TurnEvent = Reasoning | Content | ToolCallStart | ToolCallArguments | ToolCallEnd


class TurnParser:
    """Turns the text of one turn into events, as it arrives."""

    def __init__(self, prompt: str, tools: Sequence[Tool] = (), new_id: Callable[[], str] | None = None) -> None:
        """`prompt`: the rendered prompt, whose end says whether the turn begins inside of thinking."""
        self._thinking = ThinkingSplitter(prompt)

    def push(self, text: str) -> list[TurnEvent]:
        """The events that are certain by now."""
        return [
            Reasoning(segment.text) if segment.kind == "reasoning" else Content(segment.text)
            for segment in self._thinking.push(text)
        ]

    def finish(self, *, was_cut: bool = False) -> list[TurnEvent]:
        """What is still held, when no more text comes; `was_cut`: by a limit, and not by the model."""
        return [
            Reasoning(segment.text) if segment.kind == "reasoning" else Content(segment.text)
            for segment in self._thinking.finish()
        ]
