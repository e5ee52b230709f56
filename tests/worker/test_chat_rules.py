"""The rules of a conversation: what M3's chat format would drop, mix up or fail on is refused by name."""

from typing import Any

import pytest

from m3_worker.chat.conversation import (
    ChatError,
    Conversation,
    ImagePart,
    MediaSource,
    Message,
    ResponseFormat,
    Role,
    Tool,
    ToolCall,
    ToolChoice,
)
from m3_worker.chat.rules import MAX_TOOLS, check

TOOL = Tool("f")


def says(*messages: Message, **fields: Any) -> Conversation:
    placed = tuple(
        Message(one.role, one.content, one.reasoning, one.tool_calls, one.tool_call_id, f"messages[{place}]")
        for place, one in enumerate(messages)
    )
    return Conversation(placed, **fields)


def said(role: Role, content: Any = "x") -> Message:
    return Message(role, content)


def calling(*ids: str, name: str = "f") -> Message:
    return Message("assistant", tool_calls=tuple(ToolCall(one, name, {}) for one in ids))


def result(identity: str) -> Message:
    return Message("tool", "done", tool_call_id=identity)


def with_property(name: str) -> Tool:
    nested = {"type": "array", "items": {"anyOf": [{"type": "object", "properties": {name: {}}}]}}
    return Tool("f", parameters={"type": "object", "properties": {"a": nested}})


IMAGE = (ImagePart(MediaSource("data:,")),)
USER = said("user")


@pytest.mark.parametrize(
    "conversation",
    [
        says(said("root"), said("system"), said("developer"), USER, said("assistant"), USER),
        says(said("developer")),
        says(USER, calling("a", "b"), result("b"), result("a"), USER),
        says(USER, calling("a"), result("a"), calling("a"), result("a")),
        says(said("user", IMAGE), calling("a"), Message("tool", IMAGE, tool_call_id="a")),
        says(USER, tools=(TOOL, Tool("g.h/i:j-2")), tool_choice=ToolChoice("named", "f")),
        says(USER, tools=(with_property("größe in m²"),), response_format=ResponseFormat("json_object")),
    ],
)
def test_what_the_format_can_say_is_accepted(conversation: Conversation) -> None:
    check(conversation)


@pytest.mark.parametrize(
    ("conversation", "param", "message"),
    [
        (Conversation(()), "messages", "messages must be a list with at least one message"),
        (says(USER, said("root")), "messages[1].role", "messages[1]: a root message can only be the first"),
        (
            says(USER, said("system")),
            "messages[1].role",
            "messages[1]: a system message can only open the conversation",
        ),
        (says(said("system"), USER, said("developer")), "messages[2].role", "a developer message can only open"),
        (says(said("system", IMAGE), USER), "messages[0].content", "a message of system can only have text"),
        (says(said("assistant", IMAGE)), "messages[0].content", "a message of assistant can only have text"),
        (
            says(Message("user", tool_calls=calling("a").tool_calls)),
            "messages[0].tool_calls",
            "only an assistant calls",
        ),
        (says(USER, calling("a", "a"), result("a")), "messages[1].tool_calls", "the id 'a' is there twice"),
        (says(USER, calling("a", name='f"'), result("a")), "messages[1].tool_calls[0].function.name", "is 'f\"': must"),
        (says(USER, result("a")), "messages[1]", "must follow an assistant message with tool_calls"),
        (says(USER, said("assistant"), result("a")), "messages[2]", "must follow an assistant message with tool_calls"),
        (says(USER, calling("a"), result("a"), USER, result("a")), "messages[4]", "must follow an assistant message"),
        (
            says(USER, calling("a"), result("b")),
            "messages[2].tool_call_id",
            "messages[2].tool_call_id is 'b': messages[1] has no tool call of this id; those without an answer are a",
        ),
        (says(USER, calling("a"), result("a"), result("a")), "messages[3].tool_call_id", "'a' was answered already"),
        (
            says(USER, calling("a", "b", "c"), result("b"), USER),
            "messages[1].tool_calls",
            "messages[1].tool_calls: no tool message right after it answers a, c; every call needs one",
        ),
        (says(USER, calling("a")), "messages[1].tool_calls", "no tool message right after it answers a"),
        (says(USER, calling("a"), calling("b"), result("b")), "messages[1].tool_calls", "answers a"),
        (says(USER, tools=(Tool(""),)), "tools[0].function.name", "is '': must be 1 to 128 letters"),
        (says(USER, tools=(Tool("a b"),)), "tools[0].function.name", "is 'a b': must be 1 to 128 letters"),
        (says(USER, tools=(TOOL, TOOL)), "tools[1].function.name", "there are two functions of the name 'f'"),
        (
            says(USER, tools=(Tool("f", parameters={"type": "array"}),)),
            "tools[0].function.parameters",
            "must be the schema of an object",
        ),
        (says(USER, tools=(with_property("a>b"),)), "tools[0].function.parameters", "the property 'a>b' cannot be"),
        (says(USER, tools=(with_property("/a"),)), "tools[0].function.parameters", "the property '/a' cannot be"),
        (says(USER, tools=(TOOL,) * (MAX_TOOLS + 1)), "tools", f"has {MAX_TOOLS + 1} functions: at most {MAX_TOOLS}"),
        (says(USER, tool_choice=ToolChoice("required")), "tool_choice", "demands a tool call, but there are no tools"),
        (
            says(USER, tools=(TOOL,), tool_choice=ToolChoice("named", "g")),
            "tool_choice",
            "tool_choice names 'g', which is not among the tools: f",
        ),
        (
            says(
                USER, tools=(TOOL,), tool_choice=ToolChoice("required"), response_format=ResponseFormat("json_object")
            ),
            "response_format",
            "exclude each other",
        ),
    ],
)
def test_what_would_be_lost_is_refused_by_name(conversation: Conversation, param: str, message: str) -> None:
    with pytest.raises(ChatError) as refusal:
        check(conversation)
    assert refusal.value.param == param
    assert message in str(refusal.value)


def test_a_schema_that_is_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(ChatError, match="is nested deeper than 64 levels"):
        check(says(USER, tools=(Tool("f", parameters=schema),)))
