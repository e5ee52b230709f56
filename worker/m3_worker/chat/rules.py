"""The rules that a conversation of any dialect must keep before it is rendered.

Owns the refusal of what the chat format would drop in silence, mix up or fail on: the format has one place for opening
messages, and tool results in it have an order but no ids. What is accepted here can be rendered whole.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from m3_worker.chat.conversation import OPENING_ROLES, ChatError, Conversation, Message, Tool, ToolChoice

MAX_TOOLS = 1024
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_PARAMETER_NAME = re.compile(r"[^<>\s/][^<>\n]*")
_MAX_SCHEMA_DEPTH = 64


def check(conversation: Conversation) -> None:
    """Raises ChatError with the first rule that the conversation breaks."""
    if not conversation.messages:
        raise ChatError("messages", "messages must be a list with at least one message")
    _check_openings(conversation.messages)
    for message in conversation.messages:
        _check_fields(message)
    _check_tool_turns(conversation.messages)
    if conversation.continues:
        _check_beginning(conversation)
    _check_tools(conversation.tools)
    _check_choice(conversation.tool_choice, conversation.tools)
    if conversation.response_format is not None and conversation.tool_choice.mode in ("required", "named"):
        raise ChatError(
            "response_format",
            f"response_format and a tool_choice that is {conversation.tool_choice.mode} exclude each other: "
            "the answer is either of that format or a tool call",
        )


def _check_openings(messages: Sequence[Message]) -> None:
    is_open = True
    for place, message in enumerate(messages):
        where, role = message.where, message.role
        if role == "root" and place > 0:
            raise ChatError(f"{where}.role", f"{where}: a root message can only be the first")
        if role in OPENING_ROLES and not is_open:
            raise ChatError(
                f"{where}.role",
                f"{where}: a {role} message can only open the conversation, after a root message if any: "
                "the model's chat format has no place for a later one; make it part of a user message",
            )
        is_open = is_open and role in ("root", *OPENING_ROLES)


def _check_fields(message: Message) -> None:
    where, role = message.where, message.role
    if message.media and role not in ("user", "tool"):
        raise ChatError(f"{where}.content", f"{where}.content: a message of {role} can only have text")
    if message.tool_calls and role != "assistant":
        raise ChatError(f"{where}.tool_calls", f"{where}.tool_calls: only an assistant calls tools")
    identities = set[str]()
    for place, call in enumerate(message.tool_calls):
        if call.id in identities:
            raise ChatError(f"{where}.tool_calls", f"{where}.tool_calls: the id {call.id!r} is there twice")
        identities.add(call.id)
        _check_tool_name(f"{where}.tool_calls[{place}].function.name", call.name)


def _check_tool_turns(messages: Sequence[Message]) -> None:
    """After an assistant's calls, each is answered exactly once before anything else is said."""
    caller, unanswered, answered = None, set[str](), set[str]()
    for message in messages:
        where = message.where
        if message.role == "tool":
            identity = message.tool_call_id or ""
            if caller is None:
                raise ChatError(where, f"{where}: a tool message must follow an assistant message with tool_calls")
            if identity in answered:
                raise ChatError(f"{where}.tool_call_id", f"{where}.tool_call_id {identity!r} was answered already")
            if identity not in unanswered:
                raise ChatError(
                    f"{where}.tool_call_id",
                    f"{where}.tool_call_id is {identity!r}: {caller.where} has no tool call of this id; "
                    f"those without an answer are {', '.join(sorted(unanswered)) or 'none'}",
                )
            unanswered.discard(identity)
            answered.add(identity)
            continue
        _check_all_answered(caller, unanswered)
        caller = message if message.tool_calls else None
        unanswered, answered = {call.id for call in message.tool_calls}, set()
    _check_all_answered(caller, unanswered)


def _check_all_answered(caller: Message | None, unanswered: set[str]) -> None:
    if caller is not None and unanswered:
        raise ChatError(
            f"{caller.where}.tool_calls",
            f"{caller.where}.tool_calls: no tool message right after it answers {', '.join(sorted(unanswered))}; "
            "every call needs one",
        )


def _check_beginning(conversation: Conversation) -> None:
    """Of a turn that is gone on with: the assistant's, and of a text that can go on."""
    last = conversation.messages[-1]
    if last.role != "assistant" or last.tool_calls or not (last.content or last.reasoning):
        raise ChatError(
            last.where,
            f"{last.where}: with continue_final_message the last message must be the assistant's, with text and "
            "without tool_calls",
        )
    if last.reasoning and conversation.thinking == "disabled":
        raise ChatError(last.where, f"{last.where}: it begins with thinking, but thinking is disabled")


def _check_tools(tools: Sequence[Tool]) -> None:
    if len(tools) > MAX_TOOLS:
        raise ChatError("tools", f"tools has {len(tools)} functions: at most {MAX_TOOLS} are possible")
    names = set[str]()
    for place, tool in enumerate(tools):
        where = f"tools[{place}].function"
        _check_tool_name(f"{where}.name", tool.name)
        if tool.name in names:
            raise ChatError(f"{where}.name", f"{where}.name: there are two functions of the name {tool.name!r}")
        names.add(tool.name)
        if tool.parameters.get("type", "object") != "object":
            raise ChatError(f"{where}.parameters", f"{where}.parameters must be the schema of an object")
        for name in _property_names(f"{where}.parameters", tool.parameters, 0):
            if not _PARAMETER_NAME.fullmatch(name):
                raise ChatError(
                    f"{where}.parameters",
                    f"{where}.parameters: the property {name!r} cannot be written in M3's tool calls: a name must not "
                    "be empty, start with / or white space, or contain <, > or a line break",
                )


def _check_tool_name(where: str, name: str) -> None:
    if not _TOOL_NAME.fullmatch(name):
        raise ChatError(where, f"{where} is {name!r}: must be 1 to 128 letters, digits or _ . : / -")


def _property_names(where: str, schema: object, depth: int) -> Iterator[str]:
    """The names of all properties in a schema, however deep."""
    if depth > _MAX_SCHEMA_DEPTH:
        raise ChatError(where, f"{where} is nested deeper than {_MAX_SCHEMA_DEPTH} levels")
    if isinstance(schema, Mapping):
        properties: Any = schema.get("properties")
        if isinstance(properties, Mapping):
            yield from properties
        for value in schema.values():
            yield from _property_names(where, value, depth + 1)
    elif isinstance(schema, list):
        for value in schema:
            yield from _property_names(where, value, depth + 1)


def _check_choice(choice: ToolChoice, tools: Sequence[Tool]) -> None:
    if choice.mode in ("required", "named") and not tools:
        raise ChatError("tool_choice", "tool_choice demands a tool call, but there are no tools")
    if choice.mode == "named" and choice.name not in {tool.name for tool in tools}:
        names = ", ".join(tool.name for tool in tools)
        raise ChatError("tool_choice", f"tool_choice names {choice.name!r}, which is not among the tools: {names}")
