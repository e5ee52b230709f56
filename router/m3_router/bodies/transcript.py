"""What a client has been sent of a streamed answer, kept so that another worker can go on with it.

Owns the relayed bytes until they are read, and then the text that they held: a stream costs its text and a few KiB.
Most streams end well and are never read: noting one event is an append. What may be gone on with, and how, is
continuation's. Pure.
"""

from typing import Final

import msgspec

from m3_router.bodies.dialects import Dialect
from m3_router.bodies.events import NO_DELTA, Event, decode_event, decode_events

_UNREAD_BYTES: Final = 64 * 1024  # some 300 events: shorter answers are never read unless they break off
_NO_CALLS: Final = frozenset({b"", b"null", b"[]"})


class Transcript:
    """One stream as its client got it.

    max_bytes: of text, beyond which it is given up. After `read`: reasoning and content are what was sent; events how
    many brought some of it; head the id and time of the answer; open_block the index of Anthropic's block that was not
    closed, next_block that of the next. is_resumable: it is text that was sent, its end is not known, and all was kept.
    """

    __slots__ = (
        "_bytes",
        "_content",
        "_dialect",
        "_max_bytes",
        "_parts",
        "_reasoning",
        "_text_bytes",
        "created",
        "events",
        "id",
        "is_resumable",
        "next_block",
        "open_block",
        "open_kind",
    )

    def __init__(self, dialect: Dialect, max_bytes: int) -> None:
        self._dialect = dialect
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []  # whole events, not read yet
        self._bytes = 0
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._text_bytes = 0
        self.is_resumable = dialect.can_continue
        self.events = 0
        self.id = ""
        self.created = 0
        self.next_block = 0
        self.open_block: int | None = None
        self.open_kind = ""

    def note(self, data: bytes) -> None:
        """Whole events go to the client."""
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes > _UNREAD_BYTES:
            self.read()

    def read(self) -> None:
        """Make text of the bytes."""
        data = b"".join(self._parts)
        self._parts.clear()
        self._bytes = 0
        if not (data and self.is_resumable):
            return
        try:
            for event in _events(data, has_names=self._dialect.has_named_events):
                self._add(event)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            self.is_resumable = False  # an answer that cannot be read cannot be gone on with
        if self._text_bytes > self._max_bytes:
            self.is_resumable = False
        if not self.is_resumable:
            self._reasoning.clear()
            self._content.clear()

    @property
    def is_named(self) -> bool:
        """Whether its events have names."""
        return self._dialect.has_named_events

    @property
    def reasoning(self) -> str:
        """What the model thought, as far as it was sent."""
        return "".join(self._reasoning)

    @property
    def content(self) -> str:
        """What it answered, as far as it was sent."""
        return "".join(self._content)

    def _add(self, event: Event) -> None:
        if self._dialect.has_named_events:
            self._add_block_event(event)
            return
        if event.id is not None and not self.id:
            self.id, self.created = event.id, event.created or 0
        for choice in event.choices or ():
            delta = choice.delta or NO_DELTA
            calls = bytes(memoryview(delta.tool_calls))
            if choice.finish_reason is not None or delta.refusal or calls not in _NO_CALLS:
                self.is_resumable = False
            self._text(self._reasoning, delta.reasoning_content or delta.reasoning)
            self._text(self._content, delta.content or choice.text)

    def _add_block_event(self, event: Event) -> None:
        match event.type:
            case "message_start" if event.message is not None:
                self.id = event.message.id
            case "content_block_start" if event.content_block is not None:
                self.open_block, self.open_kind = event.index, event.content_block.type
                self.next_block = event.index + 1
                # Thinking after text cannot be written into a message; neither can a call that is cut off.
                is_late = self.open_kind == "thinking" and bool(self._content)
                if self.open_kind not in ("thinking", "text") or is_late:
                    self.is_resumable = False
            case "content_block_delta" if event.delta is not None:
                self._text(self._reasoning, event.delta.thinking)
                self._text(self._content, event.delta.text)
            case "content_block_stop":
                self.open_block = None
            case "message_delta" | "message_stop":
                self.is_resumable = False
            case _:
                pass

    def _text(self, texts: list[str], text: str | None) -> None:
        if text:
            texts.append(text)
            self._text_bytes += len(text)
            self.events += 1


def _events(data: bytes, *, has_names: bool) -> list[Event]:
    """The events in whole events' bytes, without comments and `[DONE]`. Raises msgspec.DecodeError."""
    if not has_names and data.startswith(b"data: {") and data.endswith(b"}\n\n"):
        # As nearly every server writes them: one array of all is read three times as fast as each by itself.
        try:
            return decode_events(b"[%b]" % data[6:-2].replace(b"\n\ndata: ", b","))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            pass  # there is something else among them
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    values = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    return [decode_event(value) for value in values if value not in (b"", b"[DONE]")]
