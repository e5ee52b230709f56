"""What happens in one turn of the assistant, in the order in which it happens.

Each event is of one kind, so that a delta made of one event never has thinking and answer both. How a turn's text is
cut into pieces makes no difference to what its events add up to.
"""

from dataclasses import dataclass


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
