"""Tools and the choice between them as `POST /v1/chat/completions` has them.

Owns OpenAI's forms of `tools` and `tool_choice`. A tool's function object is kept word for word: the template shows it
to the model as the client wrote it, key order included.
"""

from collections.abc import Mapping
from typing import Literal

from m3_worker.chat.conversation import ChatError, Tool, ToolChoice

_MODES: dict[object, Literal["none", "auto", "required"]] = {"none": "none", "auto": "auto", "required": "required"}


def parse_tools(tools: object) -> tuple[Tool, ...]:
    """The functions that may be called. Raises ChatError."""
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise ChatError("tools", "tools must be a list of objects with type (function) and function")
    return tuple(_parse_tool(f"tools[{place}]", tool) for place, tool in enumerate(tools))


def parse_tool_choice(choice: object, *, parallel: bool, has_tools: bool) -> ToolChoice:
    """`tool_choice` with `parallel_tool_calls`; without it, auto if there are tools. Raises ChatError."""
    if choice is None:
        return ToolChoice("auto" if has_tools else "none", parallel=parallel)
    if isinstance(choice, str) and choice in _MODES:
        return ToolChoice(_MODES[choice], parallel=parallel)
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ChatError(
            "tool_choice",
            f"tool_choice is {choice!r}: must be one of none, auto, required, or an object that names a function: "
            '{"type": "function", "function": {"name": ...}}',
        )
    return ToolChoice("named", name, parallel=parallel)


def _parse_tool(where: str, tool: object) -> Tool:
    if not isinstance(tool, Mapping):
        raise ChatError(where, f"{where} must be an object with type (function) and function")
    if tool.get("type", "function") != "function":
        raise ChatError(f"{where}.type", f"{where}.type is {tool['type']!r}: only function is supported")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise ChatError(f"{where}.function", f"{where}.function must be an object with a name")
    name, description = function.get("name"), function.get("description")
    parameters, strict = function.get("parameters"), function.get("strict")
    if not isinstance(name, str):
        raise ChatError(f"{where}.function.name", f"{where}.function.name must be a string")
    if description is not None and not isinstance(description, str):
        raise ChatError(f"{where}.function.description", f"{where}.function.description must be a string")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ChatError(f"{where}.function.parameters", f"{where}.function.parameters must be a JSON schema, an object")
    if strict is not None and not isinstance(strict, bool):
        raise ChatError(f"{where}.function.strict", f"{where}.function.strict must be true or false")
    schema = {"type": "object", "properties": {}} if parameters is None else parameters
    return Tool(name, description, schema, bool(strict), definition=function)
