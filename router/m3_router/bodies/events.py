"""The events of a streamed answer, as far as they say what was answered.

Owns the shapes and their decoders, and no rule; what is made of them is `transcript`'s. Not compiled, as `bodies`.
"""

from typing import Final

import msgspec

from m3_router.bodies.absent import ABSENT


class Delta(msgspec.Struct, gc=False):
    """`delta` of OpenAI's choices and of Anthropic's blocks, whose names do not collide."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: msgspec.Raw = ABSENT
    refusal: str | None = None
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    stop_reason: str | None = None


class Choice(msgspec.Struct, gc=False):
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Block(msgspec.Struct, gc=False):
    type: str = ""


class MessageStart(msgspec.Struct, gc=False):
    id: str = ""


class Event(msgspec.Struct, gc=False):
    """An event of chat, completions or messages, as far as it says what was answered."""

    id: str | None = None
    created: int | None = None
    choices: list[Choice] | None = None
    type: str | None = None
    message: MessageStart | None = None
    index: int = 0
    content_block: Block | None = None
    delta: Delta | None = None


NO_DELTA: Final = Delta()
decode_event = msgspec.json.Decoder(Event).decode
decode_events = msgspec.json.Decoder(list[Event]).decode
