"""One turn of the assistant, from text as it arrives to events that every dialect can write down.

Owns the order of what a turn consists of: thinking first, then the answer, in which tool calls may be. Events are read
from here by the dialects; what a tag looks like is thinking's and tool_parser's.
"""

import uuid
from collections.abc import Callable, Iterable, Sequence

from m3_worker.chat.conversation import Tool
from m3_worker.chat.events import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart, TurnEvent
from m3_worker.chat.thinking import Segment, ThinkingSplitter
from m3_worker.chat.tool_parser import ToolCallParser

__all__ = ["Content", "Reasoning", "ToolCallArguments", "ToolCallEnd", "ToolCallStart", "TurnEvent", "TurnParser"]


class TurnParser:
    """Turns the text of one turn into events."""

    def __init__(self, prompt: str, tools: Sequence[Tool] = (), new_id: Callable[[], str] | None = None) -> None:
        """`prompt`: the rendered prompt, whose end says whether the turn begins inside of thinking.

        `new_id` makes the ids of tool calls: unique ones in OpenAI's form, if nothing is given.
        """
        self._thinking = ThinkingSplitter(prompt)
        self._answer = ToolCallParser(tools, new_id or _new_call_id)

    def push(self, text: str) -> list[TurnEvent]:
        """The events that are certain by now."""
        return self._events(self._thinking.push(text))

    def finish(self, *, was_cut: bool = False) -> list[TurnEvent]:
        """What is still held, when no more text comes; `was_cut`: by a limit, and not by the model."""
        return [*self._events(self._thinking.finish()), *self._answer.finish(was_cut=was_cut)]

    def _events(self, segments: Iterable[Segment]) -> list[TurnEvent]:
        events: list[TurnEvent] = []
        for segment in segments:
            if segment.kind == "reasoning":
                events.append(Reasoning(segment.text))
            else:
                events += self._answer.push(segment.text)
        return events


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
