"""The lines of a worker's `GET /internal/kv-events`, checked as they come in. Pure.

Owns their form, and the cutting of a stream of bytes into them. What nobody here reads (parents, times) is not kept.
A page's name is a hash of 32 bytes; the first 8 of them, as a number, are enough to tell the pages of a worker apart.
"""

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

MAX_LINE_BYTES: Final = 16 * 2**20
Medium = Literal["device", "host"]


class EventsError(ValueError):
    """A stream that cannot be followed: what came is not the form, or out of order."""


class Stored(msgspec.Struct, tag_field="event", tag="stored"):
    """Pages can be found from now on. `request` filled them, from its page `first_page` on, if it is named."""

    names: list[str]
    medium: Medium
    request: str | None = None
    first_page: int = 0


class Removed(msgspec.Struct, tag_field="event", tag="removed"):
    """Pages can no longer be found in this medium."""

    names: list[str]
    medium: Medium


class Cleared(msgspec.Struct, tag_field="event", tag="cleared"):
    """No page can be found."""


class Start(msgspec.Struct, tag_field="kind", tag="start"):
    """The first line: whose numbers follow."""

    epoch: str
    page_tokens: int
    number: int


class Snapshot(msgspec.Struct, tag_field="kind", tag="snapshot"):
    """All pages after batch `number`, in several lines while there are `more`."""

    number: int
    events: list[Stored]
    more: bool
    cleared: int = 0  # number of the newest batch in which everything was cleared


class Batch(msgspec.Struct, tag_field="kind", tag="batch"):
    """What happened in one step."""

    number: int
    events: list[Stored | Removed | Cleared]


class Alive(msgspec.Struct, tag_field="kind", tag="alive"):
    """Nothing happened for a while."""

    number: int


Line = Start | Snapshot | Batch | Alive

_decoder: Final = msgspec.json.Decoder(Line)


def page_key(name: str) -> int:
    """The number of a page, from its name in hexadecimal digits. Raises EventsError."""
    try:
        return int(name[:16], 16)
    except ValueError:
        raise EventsError(f"{name[:16]!r} is not the name of a page") from None


class LineReader:
    """Cuts a stream into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Line]:
        """The lines that end in `data`. Raises EventsError."""
        self._rest += data
        while (end := self._rest.find(b"\n")) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            try:
                yield _decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise EventsError(str(error)) from None
        if len(self._rest) > MAX_LINE_BYTES:
            raise EventsError(f"a line exceeds {MAX_LINE_BYTES} bytes")
