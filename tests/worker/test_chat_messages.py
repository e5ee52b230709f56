"""OpenAI's chat messages and tools, read: what of them is accepted, and how the rest is refused by name."""

from typing import Any

import pytest

from m3_worker.chat.conversation import (
    ChatError,
    ImagePart,
    MediaSource,
    Message,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    VideoPart,
)
from m3_worker.chat.messages import parse_messages
from m3_worker.chat.tools import parse_tool_choice, parse_tools

USER = {"role": "user", "content": "hi"}


def call(arguments: Any = "{}", **fields: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}, **fields}


def assistant(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def test_messages_of_every_role_are_read() -> None:
    assert parse_messages(
        [
            {"role": "root", "content": "r"},
            {"role": "system", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
            {"role": "user", "content": "hi", "name": "eve", "unknown": 1},
            {"role": "assistant", "content": "yes", "reasoning_content": "why", "tool_calls": None, "refusal": None},
            assistant(call('{"a": [1, "é"]}')),
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "done"}]},
        ]
    ) == (
        Message("root", "r", where="messages[0]"),
        Message("system", "be brief", where="messages[1]"),
        Message("user", "hi", where="messages[2]"),
        Message("assistant", "yes", "why", where="messages[3]"),
        Message("assistant", "", tool_calls=(ToolCall("c1", "f", {"a": [1, "é"]}),), where="messages[4]"),
        Message("tool", "done", tool_call_id="c1", where="messages[5]"),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "yes", "reasoning_content": "why"},
        {"content": "yes", "reasoning": "why"},
        {"content": "yes", "reasoning_details": [{"type": "reasoning.text", "text": "w"}, {"text": "hy"}]},
        {"content": "<think>why</think>yes"},
        {"content": "<mm:think>why</mm:think>yes"},
    ],
)
def test_thinking_comes_back_in_each_form_that_apis_return_it_in(fields: dict[str, Any]) -> None:
    (message,) = parse_messages([{"role": "assistant", **fields}])
    assert (message.reasoning, message.content) == ("why", "yes")


def test_what_an_assistant_refused_to_say_is_what_it_said() -> None:
    (message,) = parse_messages([{"role": "assistant", "content": None, "refusal": "no"}])
    assert message.content == "no"


@pytest.mark.parametrize("arguments", ["", " ", "{}", {}])
def test_a_call_without_arguments_has_none(arguments: Any) -> None:
    (message,) = parse_messages([assistant(call(arguments))])
    assert message.tool_calls[0].arguments == {}


def test_images_and_videos_stand_among_text() -> None:
    parts = [
        {"type": "text", "text": "see "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "image_url", "image_url": "https://example.org/a.png"},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}},
    ]
    (message,) = parse_messages([{"role": "user", "content": parts}])
    assert message.content == (
        TextPart("see "),
        ImagePart(MediaSource("data:image/png;base64,AA==", "low", "messages[0].content[1].image_url")),
        ImagePart(MediaSource("https://example.org/a.png", "auto", "messages[0].content[2].image_url")),
        VideoPart(MediaSource("data:video/mp4;base64,AA==", "auto", "messages[0].content[3].video_url")),
    )


@pytest.mark.parametrize(
    ("messages", "param", "message"),
    [
        (None, "messages", "messages must be a list with at least one message"),
        ([], "messages", "messages must be a list with at least one message"),
        ({}, "messages", "messages must be a list with at least one message"),
        (["hi"], "messages[0]", "messages[0] must be an object with role and content"),
        ([{"role": "robot", "content": "x"}], "messages[0].role", "is 'robot': must be one of root, system"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role", "must be one of root, system"),
        ([{"role": "user"}], "messages[0].content", "messages[0].content must be a string or a list of parts"),
        ([{"role": "user", "content": 5}], "messages[0].content", "must be a string or a list of parts"),
        ([{"role": "user", "content": {"a": 1}}], "messages[0].content", "must be a string or a list of parts"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "is of type None: must be one of text"),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
            "messages[0].content[0]",
            "messages[0].content[0] is of type 'input_audio': audio is not supported, this model does not hear",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "must be a string"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].image_url",
            "must be an object with a url",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": 5}}]}],
            "messages[0].content[0].image_url.detail",
            "must be auto, low or high",
        ),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id", "must be a string: the id of the tool call"),
        (
            [{"role": "tool", "tool_call_id": "c1", "content": {"a": 1}}],
            "messages[0].content",
            "must be a string or a list of parts",
        ),
        ([{"role": "assistant"}], "messages[0].content", "must be a string or a list of parts"),
        (
            [{"role": "assistant", "content": "x", "reasoning_content": 1}],
            "messages[0].reasoning_content",
            "must be a string",
        ),
        (
            [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}],
            "messages[0].function_call",
            "M3's chat format has no place for it",
        ),
        ([{**assistant(), "tool_calls": {}}], "messages[0].tool_calls", "messages[0].tool_calls must be a list"),
        ([assistant(5)], "messages[0].tool_calls[0]", "must be an object with id, type (function) and function"),
        ([assistant(call(type="custom"))], "messages[0].tool_calls[0]", "must be an object with id, type (function)"),
        ([assistant(call(id=""))], "messages[0].tool_calls[0].id", "must be a string that is not empty"),
        (
            [assistant({"id": "c1", "function": {"arguments": "{}"}})],
            "messages[0].tool_calls[0].function.name",
            "must be a string that is not empty",
        ),
        (
            [USER, assistant(call("{"))],
            "messages[1].tool_calls[0].function.arguments",
            "messages[1].tool_calls[0].function.arguments is not valid JSON: EOF while parsing",
        ),
        (
            [assistant(call("[1]"))],
            "messages[0].tool_calls[0].function.arguments",
            "must be the JSON text of an object",
        ),
        ([assistant(call(None))], "messages[0].tool_calls[0].function.arguments", "must be the JSON text of an object"),
    ],
)
def test_what_is_no_message_is_refused_by_name(messages: Any, param: str, message: str) -> None:
    with pytest.raises(ChatError) as refusal:
        parse_messages(messages)
    assert refusal.value.param == param
    assert message in str(refusal.value)


def test_a_tool_keeps_its_definition_word_for_word() -> None:
    function = {"strict": True, "name": "f", "x": 1, "parameters": {"properties": {}, "type": "object"}}
    (tool,) = parse_tools([{"type": "function", "function": function}])
    assert tool == Tool("f", None, function["parameters"], strict=True, definition=function)
    assert list(tool.definition or ()) == ["strict", "name", "x", "parameters"]


def test_a_tool_without_parameters_takes_none() -> None:
    (tool,) = parse_tools([{"function": {"name": "f", "description": "d"}}])
    assert (tool.description, tool.parameters) == ("d", {"type": "object", "properties": {}})


@pytest.mark.parametrize(
    ("choice", "has_tools", "expected"),
    [
        (None, True, ToolChoice("auto")),
        (None, False, ToolChoice("none")),
        ("none", True, ToolChoice("none")),
        ("required", True, ToolChoice("required")),
        ({"type": "function", "function": {"name": "f"}}, True, ToolChoice("named", "f")),
    ],
)
def test_the_choice_of_tools_has_four_modes(choice: Any, has_tools: bool, expected: ToolChoice) -> None:
    assert parse_tool_choice(choice, parallel=True, has_tools=has_tools) == expected


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ("f", "tools"),
        (["f"], "tools[0]"),
        ([{"type": "web_search"}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([{"function": {}}], "tools[0].function.name"),
        ([{"function": {"name": "f", "description": 1}}], "tools[0].function.description"),
        ([{"function": {"name": "f", "parameters": "{}"}}], "tools[0].function.parameters"),
        ([{"function": {"name": "f", "strict": "yes"}}], "tools[0].function.strict"),
    ],
)
def test_what_is_no_tool_is_refused_by_name(tools: Any, param: str) -> None:
    with pytest.raises(ChatError) as refusal:
        parse_tools(tools)
    assert refusal.value.param == param
    assert str(refusal.value).startswith(param)


@pytest.mark.parametrize("choice", ["any", 5, {}, {"type": "function"}, {"function": {"name": 5}}])
def test_what_is_no_choice_of_tools_is_refused(choice: Any) -> None:
    with pytest.raises(ChatError, match="must be one of none, auto, required, or an object that names a function"):
        parse_tool_choice(choice, parallel=True, has_tools=True)
