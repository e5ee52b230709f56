"""The body of OpenAI's `POST /v1/responses`, read into a conversation.

Owns the translation of items: what an assistant thought, said and called are items of their own there and one message
here. Nothing is stored, so whatever refers to something stored is refused by name. Thinking is off unless an effort
above `minimal` or `thinking` turns it on, off being what MiniMax's own API does here; there are no levels of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import from_json

from m3_worker.api.errors import shown
from m3_worker.chat.conversation import (
    ChatError,
    Conversation,
    ImagePart,
    MediaSource,
    Message,
    Part,
    ResponseFormat,
    Role,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    VideoPart,
)

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "developer"}
_ASSISTANT_ITEMS = ("reasoning", "function_call")


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Reasoning(_Fields):
    """`reasoning`. A summary is accepted and none is written: thinking is returned as it is."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = None


class ThinkingFields(_Fields):
    """`thinking`: MiniMax's own switch, as in chat completions."""

    type: Thinking


class TextFormat(_Fields):
    """`text.format`."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _a_schema_is_given(self) -> "TextFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("schema is required for json_schema")
        return self


class TextFields(_Fields):
    """`text`. Verbosity is accepted and has no effect."""

    format: TextFormat | None = None
    verbosity: str | None = None


class FunctionTool(_Fields):
    """One of `tools`."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(_Fields):
    """`tool_choice`, where it names a function."""

    type: Literal["function"]
    name: str


class InputFields(_Fields):
    """What a request says about the conversation."""

    input: str | list[Any]
    instructions: str | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = True
    reasoning: Reasoning | None = None
    thinking: ThinkingFields | None = None
    text: TextFields | None = None

    def conversation(self) -> Conversation:
        """The conversation that these fields mean. Raises ChatError."""
        return Conversation(
            messages=self._messages(),
            tools=tuple(map(_tool, self.tools or ())),
            tool_choice=self._tool_choice(),
            thinking=self._thinking(),
            response_format=self._response_format(),
        )

    def _messages(self) -> tuple[Message, ...]:
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        reader = _Items()
        if self.instructions:
            reader.messages.append(Message("developer", self.instructions, where="instructions"))
        for place, item in enumerate(items):
            reader.read(f"input[{place}]", item)
        reader.end_turn()
        return tuple(reader.messages)

    def _tool_choice(self) -> ToolChoice:
        parallel = self.parallel_tool_calls is not False
        if isinstance(self.tool_choice, NamedChoice):
            return ToolChoice("named", self.tool_choice.name, parallel)
        return ToolChoice(self.tool_choice or "auto", None, parallel)

    def _thinking(self) -> Thinking:
        if self.thinking is not None:
            return self.thinking.type
        effort = self.reasoning.effort if self.reasoning else None
        return "disabled" if effort in (None, "none", "minimal") else "enabled"

    def _response_format(self) -> ResponseFormat | None:
        wanted = self.text.format if self.text else None
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return ResponseFormat("json_object")
        return ResponseFormat("json_schema", json.dumps(wanted.json_schema, ensure_ascii=False))


def _tool(tool: FunctionTool) -> Tool:
    if tool.parameters is None:
        return Tool(tool.name, tool.description, strict=bool(tool.strict))
    return Tool(tool.name, tool.description, tool.parameters, bool(tool.strict))


@dataclass(slots=True)
class _Items:
    """Reads items one by one; those of an assistant's turn are gathered until something else follows."""

    messages: list[Message] = field(default_factory=list)
    _reasoning: str = ""
    _said: str = ""
    _calls: list[ToolCall] = field(default_factory=list)
    _turn_at: str | None = None
    """Where the turn began; None between turns."""

    def read(self, at: str, item: object) -> None:
        if not isinstance(item, Mapping):
            raise ChatError(at, f"{at} is {shown(item)}: must be an object")
        kind = item.get("type", "message")
        if kind in _ASSISTANT_ITEMS or (kind == "message" and item.get("role") == "assistant"):
            self._turn_at = self._turn_at or at
            self._read_assistant(at, kind, item)
            return
        self.end_turn()
        match kind:
            case "message":
                role = _ROLES.get(str(item.get("role")))
                if role is None:
                    raise ChatError(f"{at}.role", f"{at}.role is {shown(item.get('role'))}: must be one of {_names()}")
                self.messages.append(Message(role, _content(f"{at}.content", item.get("content")), where=at))
            case "function_call_output":
                output = _content(f"{at}.output", item.get("output"))
                self.messages.append(Message("tool", output, tool_call_id=_string(at, item, "call_id"), where=at))
            case "item_reference":
                raise ChatError(at, f"{at} refers to a stored item: this worker stores nothing, send the item itself")
            case _:
                known = "message, reasoning, function_call and function_call_output"
                raise ChatError(f"{at}.type", f"{at}.type is {shown(kind)}: only {known} are supported")

    def end_turn(self) -> None:
        """Write down the assistant's turn, if one is under way."""
        if self._turn_at is None:
            return
        calls, reasoning = tuple(self._calls), self._reasoning or None
        self.messages.append(Message("assistant", self._said, reasoning, calls, where=self._turn_at))
        self._reasoning, self._said, self._calls, self._turn_at = "", "", [], None

    def _read_assistant(self, at: str, kind: object, item: Mapping[str, Any]) -> None:
        match kind:
            case "reasoning":
                self._reasoning += _reasoning(at, item)
            case "function_call":
                arguments = _arguments(at, _string(at, item, "arguments"))
                self._calls.append(ToolCall(_string(at, item, "call_id"), _string(at, item, "name"), arguments))
            case _:
                content = _content(f"{at}.content", item.get("content"))
                if not isinstance(content, str):
                    raise ChatError(f"{at}.content", f"{at}.content: an assistant's message can only have text")
                self._said += content


def _names() -> str:
    return ", ".join(_ROLES)


def _reasoning(at: str, item: Mapping[str, Any]) -> str:
    """The thinking itself; where only a summary came back, that."""
    for name in ("content", "summary"):
        parts = item.get(name) or []
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            raise ChatError(f"{at}.{name}", f"{at}.{name} must be a list of objects")
        text = "".join(_string(f"{at}.{name}[{place}]", part, "text") for place, part in enumerate(parts))
        if text:
            return text
    return ""


def _arguments(at: str, text: str) -> dict[str, Any]:
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ChatError(f"{at}.arguments", f"{at}.arguments is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ChatError(f"{at}.arguments", f"{at}.arguments is {shown(text)}: must be a JSON object")
    return value


def _content(at: str, content: object) -> str | tuple[Part, ...]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ChatError(at, f"{at} is {shown(content)}: must be a string or a list of parts")
    parts = [_part(f"{at}[{place}]", part) for place, part in enumerate(content)]
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "".join(texts) if len(texts) == len(parts) else tuple(parts)


def _part(at: str, part: object) -> Part:
    if not isinstance(part, Mapping):
        raise ChatError(at, f"{at} is {shown(part)}: must be an object")
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return TextPart(_string(at, part, "text"))
        case "refusal":
            return TextPart(_string(at, part, "refusal"))
        case "input_image":
            return ImagePart(_source(at, part, "image_url"))
        case "input_video":
            return VideoPart(_source(at, part, "video_url"))
        case other:
            known = "input_text, output_text, input_image and input_video"
            raise ChatError(f"{at}.type", f"{at}.type is {shown(other)}: only {known} are supported")


def _source(at: str, part: Mapping[str, Any], name: str) -> MediaSource:
    if part.get("file_id") is not None:
        raise ChatError(f"{at}.file_id", f"{at}.file_id: this worker stores no files, send {name}")
    url, where = _string(at, part, name), f"{at}.{name}"
    match part.get("detail"):
        case None | "auto":
            return MediaSource(url, where=where)
        case "low":
            return MediaSource(url, "low", where)
        case "high":
            return MediaSource(url, "high", where)
        case other:
            raise ChatError(f"{at}.detail", f"{at}.detail is {shown(other)}: must be auto, low or high")


def _string(at: str, item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise ChatError(f"{at}.{name}", f"{at}.{name} is {shown(value)}: must be a string")
    return value
