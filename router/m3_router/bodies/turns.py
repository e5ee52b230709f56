"""The shapes of what a conversation is made of, in all dialects at once: messages and items, parts, calls and tools.

Owns the structs and their decoders, and no rule; `prefix` reads them. Content stays raw JSON: a prompt of two megabytes
is walked over once and never built. What is not named here is skipped.
"""

import msgspec

from m3_router.bodies.absent import ABSENT


class Turn(msgspec.Struct, gc=False):
    """An input item of responses."""

    role: str = ""
    type: str = ""
    content: msgspec.Raw = ABSENT
    name: msgspec.Raw = ABSENT
    arguments: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    summary: msgspec.Raw = ABSENT


class Part(msgspec.Struct, gc=False):
    """One part of a content list, of any kind; Anthropic's tool calls and their results are parts too."""

    type: str = ""
    text: msgspec.Raw = ABSENT
    thinking: msgspec.Raw = ABSENT
    name: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT
    source: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT
    video_url: msgspec.Raw = ABSENT


class Source(msgspec.Struct, gc=False):
    """Where the bytes of an image or a video are: a URL (`data:` too), or base64."""

    url: msgspec.Raw = ABSENT
    data: msgspec.Raw = ABSENT


class Function(msgspec.Struct, gc=False):
    """What a tool is, or what is called and with what."""

    name: msgspec.Raw = ABSENT
    description: msgspec.Raw = ABSENT
    parameters: msgspec.Raw = ABSENT
    arguments: msgspec.Raw = ABSENT


class ToolCall(msgspec.Struct, gc=False):
    """One of a chat message's `tool_calls`."""

    function: Function | None = None


class Tool(msgspec.Struct, gc=False):
    """A tool: chat nests it under `function`, responses and messages do not."""

    type: str = ""
    function: Function | None = None
    name: msgspec.Raw = ABSENT
    description: msgspec.Raw = ABSENT
    parameters: msgspec.Raw = ABSENT
    input_schema: msgspec.Raw = ABSENT


decode_turns = msgspec.json.Decoder(list[Turn]).decode
decode_parts = msgspec.json.Decoder(list[Part]).decode
decode_source = msgspec.json.Decoder(Source).decode
decode_calls = msgspec.json.Decoder(list[ToolCall] | None).decode
decode_tools = msgspec.json.Decoder(list[Tool] | None).decode
decode_text = msgspec.json.Decoder(str).decode
decode_value = msgspec.json.Decoder().decode
encode_value = msgspec.json.Encoder().encode
