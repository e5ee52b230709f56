"""A conversation as every dialect means it: messages, tools, and what is wanted of the next turn.

Owns the nouns that chat completions, responses and Anthropic's messages are translated into, and nothing of their
forms: a dialect parses its own body into these, `check` holds them against the rules of the format, `prompt` renders
them. All are frozen; all text is as the client sent it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from m3_worker.media.items import ProcessedMedia

Role = Literal["root", "system", "developer", "user", "assistant", "tool"]
Thinking = Literal["enabled", "disabled", "adaptive"]

ROLES: tuple[Role, ...] = ("root", "system", "developer", "user", "assistant", "tool")
OPENING_ROLES: tuple[Role, ...] = ("system", "developer")
"""Roles that can only open a conversation, after a root message if any: both are written as the developer turn."""
THINKING_MODES: tuple[Thinking, ...] = ("enabled", "disabled", "adaptive")


class ChatError(ValueError):
    """A conversation that cannot be served. `param` is the field as the client named it, the message is one line."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class MediaSource:
    """Where an image or a video comes from, not fetched yet."""

    url: str
    """A data: URL, or an http(s) one. A dialect that sends base64 by itself makes a data: URL of it."""
    detail: Literal["auto", "low", "high"] = "auto"
    where: str = ""
    """What the client calls it, for complaints: "messages[0].content[1]"."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text among images and videos."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One image."""

    source: MediaSource
    loaded: ProcessedMedia | None = None
    """None until the source was read, which `prompt.prepare` needs."""


@dataclass(frozen=True, slots=True)
class VideoPart:
    """One video."""

    source: MediaSource
    loaded: ProcessedMedia | None = None
    """As of an image."""


Part = TextPart | ImagePart | VideoPart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant made in an earlier turn."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Which fields a role may have is `check`'s to say."""

    role: Role
    content: str | tuple[Part, ...] = ""
    reasoning: str | None = None
    """What an assistant thought; "" and None both are no thinking."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """The call that a tool message answers."""
    where: str = "messages"
    """What the client calls it, for complaints: "messages[3]", "input[0]"."""

    @property
    def media(self) -> tuple[ImagePart | VideoPart, ...]:
        """Its images and videos, in order."""
        if isinstance(self.content, str):
            return ()
        return tuple(part for part in self.content if not isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    """JSON schema of its arguments, an object; the order of its keys is kept."""
    strict: bool = False
    """Whether a call is held to the schema while it is written, even if calling is left to the model."""
    definition: Mapping[str, Any] | None = None
    """The function object as the client wrote it, rendered word for word; None: made of the fields above."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools are called: "required" is at least one, "named" is exactly that one."""

    mode: Literal["none", "auto", "required", "named"] = "auto"
    name: str | None = None
    parallel: bool = True
    """Whether one turn may have several calls."""


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the answer, after any thinking, has to match."""

    kind: Literal["json_schema", "json_object", "regex", "lark"]
    text: str = ""
    """The schema as JSON, the expression or the grammar; "" for any JSON object."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the model is to continue, and how."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    thinking: Thinking = "adaptive"
    response_format: ResponseFormat | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """What else the checkpoint's template is given (`chat_template_kwargs`); thinking_mode is not among them."""
    continues: bool = False
    """Whether the last message is the beginning of the turn that is wanted, and not a turn before it."""

    @property
    def media(self) -> tuple[ImagePart | VideoPart, ...]:
        """All images and videos, in order."""
        return tuple(part for message in self.messages for part in message.media)

    def with_media(self, loaded: Iterable[ProcessedMedia]) -> "Conversation":
        """The same with what was read of each image and video, in the order of `media`."""
        remaining = iter(loaded)

        def filled(message: Message) -> Message:
            if isinstance(message.content, str):
                return message
            parts = (
                part if isinstance(part, TextPart) else replace(part, loaded=next(remaining))
                for part in message.content
            )
            return replace(message, content=tuple(parts))

        return replace(self, messages=tuple(map(filled, self.messages)))
