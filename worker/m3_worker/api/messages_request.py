"""The body of Anthropic's `POST /v1/messages`, read into a conversation.

Owns the translation of content blocks, tools and thinking. What Anthropic's API leaves out is off: thinking too. Tool
results stand in user messages there and are messages of their own here. Unknown fields are accepted; blocks and tools
that this worker cannot serve are refused by name.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from m3_worker.api.errors import shown
from m3_worker.chat.conversation import (
    ChatError,
    Conversation,
    ImagePart,
    MediaSource,
    Message,
    Part,
    ResponseFormat,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    VideoPart,
)

_CHOICES: dict[str, Literal["none", "auto", "required", "named"]] = {
    "none": "none",
    "auto": "auto",
    "any": "required",
    "tool": "named",
}


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ThinkingConfig(_Fields):
    """`thinking`. A budget is accepted and has no effect: the model decides how long it thinks."""

    type: Thinking
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class ToolChoiceFields(_Fields):
    """`tool_choice`."""

    type: Literal["none", "auto", "any", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = False

    @model_validator(mode="after")
    def _a_tool_is_named(self) -> "ToolChoiceFields":
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("name belongs to type tool, and to no other")
        return self


class ToolFields(_Fields):
    """One of `tools`: a function of the client's own."""

    type: str | None = None
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = False


class OutputFormat(_Fields):
    """`output_config.format`."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(_Fields):
    """`output_config`. An effort is accepted and has no effect: M3 has no levels."""

    effort: str | None = None
    format: OutputFormat | None = None


class TextBlock(_Fields):
    """A block of `system`."""

    type: Literal["text"]
    text: str


class ConversationFields(_Fields):
    """What a request to answer and a request to count have in common."""

    messages: list[Any] = Field(min_length=1, max_length=100_000)
    system: str | list[TextBlock] | None = None
    tools: list[ToolFields] | None = None
    tool_choice: ToolChoiceFields | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    continue_final_message: bool | None = False
    """Not Anthropic's: whether the last message, the assistant's, is gone on with."""

    def conversation(self) -> Conversation:
        """The conversation that these fields mean. Raises ChatError."""
        choice = self.tool_choice or ToolChoiceFields(type="auto")
        return Conversation(
            messages=(*self._system(), *_messages(self.messages, continues=bool(self.continue_final_message))),
            tools=tuple(_tool(place, tool) for place, tool in enumerate(self.tools or ())),
            tool_choice=ToolChoice(_CHOICES[choice.type], choice.name, not choice.disable_parallel_tool_use),
            thinking=self.thinking.type if self.thinking else "disabled",
            response_format=self._response_format(),
            continues=bool(self.continue_final_message),
        )

    def _system(self) -> Iterable[Message]:
        if not self.system:
            return ()
        text = self.system if isinstance(self.system, str) else "\n".join(block.text for block in self.system)
        return (Message("system", text, where="system"),)

    def _response_format(self) -> ResponseFormat | None:
        if self.output_config is None or self.output_config.format is None:
            return None
        return ResponseFormat("json_schema", json.dumps(self.output_config.format.json_schema, ensure_ascii=False))


def _tool(place: int, fields: ToolFields) -> Tool:
    if fields.type not in (None, "custom"):
        where = f"tools[{place}].type"
        raise ChatError(
            where, f"{where} is {shown(fields.type)}: only custom tools are supported, which the client runs"
        )
    if fields.input_schema is None:
        raise ChatError(f"tools[{place}].input_schema", f"tools[{place}].input_schema is required")
    return Tool(fields.name, fields.description, fields.input_schema, bool(fields.strict))


def _messages(messages: list[Any], *, continues: bool) -> Iterable[Message]:
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role == "user":
            yield from _user(where, _blocks(where, message.get("content")))
        elif role == "assistant":
            yield _assistant(where, _blocks(where, message.get("content")))
        else:
            raise ChatError(f"{where}.role", f"{where}.role is {shown(role)}: must be user or assistant")
    if role == "assistant" and not continues:
        raise ChatError(
            where,
            f"{where} is the assistant's: the last message must be the user's, unless continue_final_message is true",
        )


def _blocks(where: str, content: object) -> list[tuple[str, Mapping[str, Any]]]:
    """The blocks of a message, each with what the client calls it; a string is one block of text."""
    where = f"{where}.content"
    if isinstance(content, str):
        return [(where, {"type": "text", "text": content})]
    if not isinstance(content, list):
        raise ChatError(where, f"{where} is {shown(content)}: must be a string or a list of content blocks")
    for place, block in enumerate(content):
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            raise ChatError(f"{where}[{place}]", f"{where}[{place}] must be an object with a type")
    return [(f"{where}[{place}]", block) for place, block in enumerate(content)]


def _user(where: str, blocks: list[tuple[str, Mapping[str, Any]]]) -> Iterable[Message]:
    """Tool results, each a message, then the rest as one."""
    rest: list[Part] = []
    has_results = False
    for at, block in blocks:
        if block["type"] != "tool_result":
            rest.append(_part(at, block))
            continue
        if rest:
            raise ChatError(at, f"{at}: tool_result blocks must come before other content of the message")
        has_results = True
        yield _tool_result(at, block)
    if rest or not has_results:
        yield Message("user", _content(rest), where=where)


def _tool_result(at: str, block: Mapping[str, Any]) -> Message:
    content = block.get("content")
    parts = [] if content is None else [_part(where, part) for where, part in _blocks(at, content)]
    if block.get("is_error"):
        parts.insert(0, TextPart("Error: "))
    return Message("tool", _content(parts), tool_call_id=_string(at, block, "tool_use_id"), where=at)


def _assistant(where: str, blocks: list[tuple[str, Mapping[str, Any]]]) -> Message:
    """Thinking, then text, then calls, as the model writes them; text between or after calls goes before them."""
    text, thinking, calls = "", "", []
    for at, block in blocks:
        match block["type"]:
            case "text":
                text += _string(at, block, "text")
            case "thinking":
                thinking += _string(at, block, "thinking")
            case "tool_use":
                calls.append(
                    ToolCall(_string(at, block, "id"), _string(at, block, "name"), _object(at, block, "input"))
                )
            case other:
                raise _unknown(at, other, "text, thinking and tool_use")
    return Message("assistant", text, reasoning=thinking or None, tool_calls=tuple(calls), where=where)


def _part(at: str, block: Mapping[str, Any]) -> Part:
    match block["type"]:
        case "text":
            return TextPart(_string(at, block, "text"))
        case "image":
            return ImagePart(_source(f"{at}.source", block.get("source")))
        case "video":
            return VideoPart(_source(f"{at}.source", block.get("source")))
        case other:
            raise _unknown(at, other, "text, image, video and tool_result")


def _source(at: str, source: object) -> MediaSource:
    if not isinstance(source, Mapping):
        raise ChatError(at, f"{at} must be an object with a type")
    match source.get("type"):
        case "url":
            return MediaSource(_string(at, source, "url"), where=at)
        case "base64":
            kind, data = _string(at, source, "media_type"), _string(at, source, "data")
            return MediaSource(f"data:{kind};base64,{data}", where=at)
        case other:
            raise ChatError(f"{at}.type", f"{at}.type is {shown(other)}: must be base64 or url")


def _content(parts: list[Part]) -> str | tuple[Part, ...]:
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "".join(texts) if len(texts) == len(parts) else tuple(parts)


def _string(at: str, block: Mapping[str, Any], name: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise ChatError(f"{at}.{name}", f"{at}.{name} is {shown(value)}: must be a string")
    return value


def _object(at: str, block: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = block.get(name)
    if not isinstance(value, dict):
        raise ChatError(f"{at}.{name}", f"{at}.{name} is {shown(value)}: must be an object")
    return value


def _unknown(at: str, kind: object, known: str) -> ChatError:
    return ChatError(f"{at}.type", f"{at}.type is {shown(kind)}: only {known} blocks are supported here")
