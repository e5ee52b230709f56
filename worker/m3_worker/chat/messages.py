"""Messages as `POST /v1/chat/completions` has them, read into a conversation's.

Owns the forms of OpenAI's chat messages and of the additions to them that reasoning models brought. A field it does not
know says something to somebody else and is passed over; what is meant for the model and cannot be shown to it is
refused by name. Whether the messages make a conversation is rules' to say.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic_core import from_json

from m3_worker.chat.conversation import (
    ROLES,
    ChatError,
    ImagePart,
    MediaSource,
    Message,
    Part,
    TextPart,
    ToolCall,
    VideoPart,
)

_INLINE_THINKING = (("<mm:think>", "</mm:think>"), ("<think>", "</think>"))
"""M3's own tags, and those that hosted APIs return instead, which M3 never saw."""
_DETAILS: dict[object, Literal["auto", "low", "high"]] = {"auto": "auto", "low": "low", "high": "high"}
_LOST = ("function_call", "audio")
"""Fields of a message that say something to the model in a form that M3 has no place for."""


def parse_messages(messages: object, name: str = "messages") -> tuple[Message, ...]:
    """The messages of a body. Raises ChatError with the first that is no message, named as the client sees it."""
    if not isinstance(messages, list) or not messages:
        raise ChatError(name, f"{name} must be a list with at least one message")
    return tuple(_parse_message(f"{name}[{place}]", message) for place, message in enumerate(messages))


def parse_arguments(where: str, arguments: object) -> dict[str, Any]:
    """A call's arguments: JSON text of an object, or the object itself. Raises ChatError."""
    if isinstance(arguments, str):
        try:
            arguments = from_json(arguments, allow_inf_nan=False) if arguments.strip() else {}
        except ValueError as error:
            raise ChatError(where, f"{where} is not valid JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ChatError(where, f"{where} must be the JSON text of an object")
    return arguments


def _parse_message(where: str, message: object) -> Message:
    if not isinstance(message, Mapping):
        raise ChatError(where, f"{where} must be an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ChatError(f"{where}.role", f"{where}.role is {role!r}: must be one of {', '.join(ROLES)}")
    for name in _LOST:
        if message.get(name):
            raise ChatError(f"{where}.{name}", f"{where}.{name}: M3's chat format has no place for it; leave it out")
    if role == "assistant":
        return _parse_assistant(where, message)
    content = _parse_content(f"{where}.content", message.get("content"))
    if role == "tool":
        return Message("tool", content, tool_call_id=_parse_id(f"{where}.tool_call_id", message), where=where)
    return Message(role, content, where=where)


def _parse_assistant(where: str, message: Mapping[str, Any]) -> Message:
    reasoning = _parse_reasoning(where, message)
    calls = _parse_tool_calls(f"{where}.tool_calls", message.get("tool_calls"))
    content: str | tuple[Part, ...] = ""
    given = message.get("content")
    if given is None:
        given = message.get("refusal")
    if given is not None or not (reasoning or calls):
        content = _parse_content(f"{where}.content", given)
    if not reasoning and isinstance(content, str):
        reasoning, content = _inline_reasoning(content)
    return Message("assistant", content, reasoning, calls, where=where)


def _parse_id(where: str, message: Mapping[str, Any]) -> str:
    found = message.get("tool_call_id")
    if not isinstance(found, str) or not found:
        raise ChatError(where, f"{where} must be a string: the id of the tool call that this message answers")
    return found


def _parse_reasoning(where: str, message: Mapping[str, Any]) -> str | None:
    """`reasoning_content`, `reasoning` as others name it, or the texts of `reasoning_details`."""
    for name in ("reasoning_content", "reasoning"):
        found = message.get(name)
        if found is not None and not isinstance(found, str):
            raise ChatError(f"{where}.{name}", f"{where}.{name} must be a string")
        if found:
            return found
    details = message.get("reasoning_details")
    if isinstance(details, list):
        texts = (detail.get("text") for detail in details if isinstance(detail, Mapping))
        return "".join(text for text in texts if isinstance(text, str)) or None
    return None


def _inline_reasoning(content: str) -> tuple[str | None, str]:
    """Thinking at the beginning of the content: (reasoning, the rest)."""
    for opening, closing in _INLINE_THINKING:
        if content.startswith(opening) and closing in content:
            inside, rest = content[len(opening) :].split(closing, 1)
            return inside, rest
    return None, content


def _parse_tool_calls(where: str, calls: object) -> tuple[ToolCall, ...]:
    if calls is None:
        return ()
    if not isinstance(calls, list):
        raise ChatError(where, f"{where} must be a list")
    return tuple(_parse_tool_call(f"{where}[{place}]", call) for place, call in enumerate(calls))


def _parse_tool_call(where: str, call: object) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or call.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise ChatError(where, f"{where} must be an object with id, type (function) and function")
    identity, name = call.get("id"), function.get("name")
    if not isinstance(identity, str) or not identity:
        raise ChatError(f"{where}.id", f"{where}.id must be a string that is not empty")
    if not isinstance(name, str) or not name:
        raise ChatError(f"{where}.function.name", f"{where}.function.name must be a string that is not empty")
    return ToolCall(identity, name, parse_arguments(f"{where}.function.arguments", function.get("arguments", "{}")))


def _parse_content(where: str, content: object) -> str | tuple[Part, ...]:
    """Content as one text, or as parts if there is more than text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ChatError(where, f"{where} must be a string or a list of parts")
    parts = tuple(_parse_part(f"{where}[{place}]", part) for place, part in enumerate(content))
    if all(isinstance(part, TextPart) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, TextPart))
    return parts


def _parse_part(where: str, part: object) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    parse = _PARTS.get(kind) if isinstance(kind, str) else None
    if isinstance(kind, str) and "audio" in kind:
        raise ChatError(where, f"{where} is of type {kind!r}: audio is not supported, this model does not hear")
    if not isinstance(part, Mapping) or parse is None:
        raise ChatError(where, f"{where} is of type {kind!r}: must be one of {', '.join(_PARTS)}")
    return parse(where, part)


def _parse_text(where: str, part: Mapping[str, Any]) -> TextPart:
    text = part.get(part["type"])
    if not isinstance(text, str):
        raise ChatError(f"{where}.{part['type']}", f"{where}.{part['type']} must be a string")
    return TextPart(text)


def _parse_image(where: str, part: Mapping[str, Any]) -> ImagePart:
    return ImagePart(_parse_source(f"{where}.image_url", part.get("image_url")))


def _parse_video(where: str, part: Mapping[str, Any]) -> VideoPart:
    return VideoPart(_parse_source(f"{where}.video_url", part.get("video_url")))


def _parse_source(where: str, given: object) -> MediaSource:
    source = given if isinstance(given, Mapping) else {"url": given}
    url, detail = source.get("url"), source.get("detail") or "auto"
    if not isinstance(url, str) or not url:
        raise ChatError(where, f"{where} must be an object with a url, a data: URL for instance")
    if not isinstance(detail, str) or detail not in _DETAILS:
        raise ChatError(f"{where}.detail", f"{where}.detail is {detail!r}: must be auto, low or high")
    return MediaSource(url, _DETAILS[detail], where)


_PARTS: dict[str, Callable[[str, Mapping[str, Any]], Part]] = {
    "text": _parse_text,
    "refusal": _parse_text,
    "image_url": _parse_image,
    "video_url": _parse_video,
}
