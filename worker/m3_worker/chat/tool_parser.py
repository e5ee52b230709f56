"""Tool calls in what the model writes, as they come: a call's name at once, then its arguments as fragments of JSON.

Owns M3's format of calls. Every tag follows the namespace token, and nothing in a value is escaped, so only what
follows that token is a tag:

    NS<tool_call>
    NS<invoke name="f">NS<a>textNS</a>NS<b>NS<item>textNS</item>NS</b>NS</invoke>
    NS</tool_call>

Types are restored by the tool's schema. A value that can only be a string is passed on while it is written, and ends
at nothing but its own closing tag; another one is held until it is complete. What is no call is passed on as content,
once: a whole block if no call began in it, else what follows the last thing understood, and the call is closed.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from m3_worker.chat.argument_types import ArgumentType
from m3_worker.chat.conversation import Tool
from m3_worker.chat.events import Content, ToolCallArguments, ToolCallEnd, ToolCallStart, TurnEvent
from m3_worker.stop_strings import held_back

NAMESPACE = "]<]minimax[>["
BLOCK_OPENING = f"{NAMESPACE}<tool_call>"
BLOCK_CLOSING = f"{NAMESPACE}</tool_call>"

_TAG = re.compile(r"<(/?)([^<>\n]{1,500})>")
_BEGINNING_OF_TAG = re.compile(r"(</?[^<>\n]{0,500})?")
_INVOKE = re.compile(r'invoke name="([^"]*)"')
_MAX_DEPTH = 64


@dataclass(slots=True)
class _Element:
    """An element that is open. The arguments of a call are the outermost one, named `invoke`."""

    name: str
    type: ArgumentType
    form: Literal["undecided", "string", "object", "array"]
    text: str = ""
    """What an undecided one has so far."""
    children: int = 0


@dataclass(frozen=True, slots=True)
class _Tag:
    is_closing: bool
    name: str
    text: str
    """All of it, with the namespace token."""


class ToolCallParser:
    """Parses the answer of one turn, after its thinking."""

    def __init__(self, tools: Sequence[Tool], new_id: Callable[[], str]) -> None:
        """Without tools there are no calls, and all is content."""
        self._tools = {tool.name: tool for tool in tools}
        self._new_id = new_id
        self._events: list[TurnEvent] = []
        self._buffer = ""
        self._place: Literal["text", "block", "call"] = "text"
        self._open: list[_Element] = []  # not empty in a call, and only there
        self._index = -1
        self._block = ""  # of a block in which no call began yet: what becomes content if none does
        self._block_calls = 0
        self._is_after_block = False

    def push(self, text: str) -> list[TurnEvent]:
        """The events that are certain by now."""
        self._buffer += text
        while self._buffer and self._advance():
            pass
        return self._taken()

    def finish(self, *, was_cut: bool = False) -> list[TurnEvent]:
        """What is still held, when no more text comes; `was_cut`: by a limit, and not by the model.

        A call whose arguments are all written out counts as complete if the model ended there, and as cut off if not.
        """
        held, self._buffer = self._buffer, ""
        if self._place == "text":
            self._content(held)
        elif self._place == "block":
            self._leave_block(held)
        elif self._open[-1].form == "string":
            self._json_text(held)
        elif len(self._open) == 1 and not was_cut and not held.strip():
            self._close()
        return self._taken()

    def _advance(self) -> bool:
        """Understand the beginning of the buffer. False if more text is needed for that."""
        if self._place == "text":
            return self._pass_text()
        if self._place == "block":
            return self._read_block()
        if self._open[-1].form == "string" or self._open[-1].text.strip():
            return self._read_text()
        return self._read_element()

    def _pass_text(self) -> bool:
        if not self._tools:
            self._content(self._buffer)
            self._buffer = ""
            return False
        text, opening, rest = self._buffer.partition(BLOCK_OPENING)
        if opening:
            self._content(text)
            self._place, self._buffer = "block", rest
            self._block, self._block_calls = opening, 0
            return True
        keep = held_back(self._buffer, (BLOCK_OPENING,))
        self._content(self._buffer[: len(self._buffer) - keep])
        self._buffer = self._buffer[len(self._buffer) - keep :]
        return False

    def _read_block(self) -> bool:
        tag = self._next_tag()
        if tag is None:
            return False
        invoke = None if isinstance(tag, str) or tag.is_closing else _INVOKE.fullmatch(tag.name)
        if isinstance(tag, str):
            return self._leave_block(tag)
        if invoke is not None:
            self._begin_call(invoke[1])
            return True
        if tag.is_closing and tag.name == "tool_call" and self._block_calls:
            self._place, self._is_after_block = "text", True
            return True
        return self._leave_block(tag.text)

    def _leave_block(self, text: str) -> bool:
        """There is `text` where a call should begin, or the block end."""
        self._place, self._is_after_block = "text", self._block_calls > 0
        self._content(text if self._block_calls else self._block + text)
        return True

    def _begin_call(self, name: str) -> None:
        self._place = "call"
        self._index += 1
        self._block_calls += 1
        self._events.append(ToolCallStart(self._index, self._new_id(), name))
        schema = self._tools[name].parameters if name in self._tools else {}
        self._open.append(_Element("invoke", ArgumentType(schema), "object"))
        self._json("{")

    def _read_text(self) -> bool:
        """More of a string, or of a value that began as text: neither has elements, all up to the closing tag is it."""
        top = self._open[-1]
        closing = f"{NAMESPACE}</{top.name}>"
        text, found, rest = self._buffer.partition(closing)
        if not found:
            keep = held_back(text, (closing,))
            text, rest = text[: len(text) - keep], text[len(text) - keep :]
        self._buffer = rest
        if top.form == "string":
            self._json_text(text)
        else:
            top.text += text
        if found:
            self._close()
        return bool(found)

    def _read_element(self) -> bool:
        """The next tag of an object, an array, or a value of which it is not known yet what it is."""
        top = self._open[-1]
        tag = self._next_tag(into=top if top.form == "undecided" else None)
        if tag is None:
            return bool(top.text.strip())
        if isinstance(tag, str):
            return self._malformed(tag)
        if tag.is_closing and tag.name == top.name:
            self._close()
            return True
        if tag.is_closing or _INVOKE.fullmatch(tag.name) or not self._open_child(tag.name):
            return self._malformed(tag.text)
        return True

    def _open_child(self, name: str) -> bool:
        """False if there can be no such element here."""
        top = self._open[-1]
        if top.form == "undecided":
            if top.text.strip() or not top.type.is_container:
                return False
            top.form = "array" if top.type.is_array(name) else "object"
            self._json("[" if top.form == "array" else "{")
        if len(self._open) > _MAX_DEPTH or (top.form == "array" and name != "item"):
            return False
        self._json("," if top.children else "")
        if top.form == "object":
            self._json(json.dumps(name, ensure_ascii=False) + ":")
        kind = top.type.item(top.children) if top.form == "array" else top.type.property(name)
        top.children += 1
        self._open.append(_Element(name, kind, "string" if kind.is_text else "undecided"))
        self._json('"' if kind.is_text else "")
        return True

    def _close(self) -> None:
        """End the innermost element, and the call with its outermost one."""
        top = self._open.pop()
        if top.form == "undecided":
            self._json(json.dumps(top.type.value_of(top.text), ensure_ascii=False))
        else:
            self._json({"string": '"', "object": "}", "array": "]"}[top.form])
        if not self._open:
            self._events.append(ToolCallEnd(self._index))
            self._place = "block"

    def _malformed(self, text: str) -> bool:
        """There is `text` where it means nothing: end the call with what is understood, and pass on the rest."""
        while self._open:
            self._close()
        return self._leave_block(text)

    def _next_tag(self, into: _Element | None = None) -> _Tag | str | None:
        """Take the next tag off the buffer, with what is before it: white space, or text that goes `into` an element.

        A text instead of a tag is what stands where only a tag may. None: more text is needed, or the element has some.
        """
        text, found, rest = self._buffer.partition(NAMESPACE)
        if not found:
            keep = held_back(text, (NAMESPACE,))
            text, rest = text[: len(text) - keep], text[len(text) - keep :]
        self._buffer = found + rest
        if into is not None:
            into.text += text
        elif text.strip():
            return text
        elif self._place == "block":
            self._block += text
        if not found or (into is not None and into.text.strip()):
            return None
        match = _TAG.match(rest)
        if match is None and _BEGINNING_OF_TAG.fullmatch(rest):
            return None
        self._buffer = rest[match.end() :] if match else rest
        if match is not None:
            return _Tag(bool(match[1]), match[2], NAMESPACE + match[0])
        if into is None:
            return NAMESPACE
        into.text += NAMESPACE  # no tag follows it: it is part of the value
        return None

    def _content(self, text: str) -> None:
        """Pass on text that belongs to no call; white space between calls and after them is part of their form."""
        if self._is_after_block:
            text = text.lstrip()
        if text:
            self._is_after_block = False
            self._events.append(Content(text))

    def _json_text(self, text: str) -> None:
        self._json(json.dumps(text, ensure_ascii=False)[1:-1])

    def _json(self, fragment: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCallArguments):
            self._events[-1] = ToolCallArguments(self._index, last.json_fragment + fragment)
        elif fragment:
            self._events.append(ToolCallArguments(self._index, fragment))

    def _taken(self) -> list[TurnEvent]:
        events, self._events = self._events, []
        return events
