"""What a worker's answer says it used, found without delaying or changing the answer.

Owns the reading of `usage` in JSON bodies and in event streams, and the removal of the one event that a client did not
ask for. `EventStream` relays whole events: an event that arrives in pieces waits for its end, all other bytes pass as
they came. Pure.
"""

import re
from typing import Final

import msgspec

from m3_router.bill import Usage
from m3_router.bodies import AnswerEvent, ReportedUsage, decode_answer, decode_event, decode_usage

MAX_EVENT_BYTES: Final = 2**20  # an event longer than this passes unread, in pieces
_TAIL_BYTES: Final = 4096  # where the usage of a body that was too large to hold is looked for

_EVENT_END: Final = re.compile(rb"\n\r?\n")
_USAGE_OBJECT: Final = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}"]|"[^"\\]*"|\{[^{}]*\})*\})')


def usage_of_body(body: bytes) -> Usage | None:
    """The usage that a whole JSON answer reports; None if there is none to be read."""
    try:
        return _read(decode_answer(body).usage)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def usage_of_tail(tail: bytes) -> Usage | None:
    """The usage in the last bytes of a JSON answer. Inside a JSON string its quotes would be escaped."""
    for match in reversed(list(_USAGE_OBJECT.finditer(tail))):
        try:
            return _read(decode_usage(match[1]))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return None


class BodyTail:
    """The last bytes of a body that passes by."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they are relayed; returns them."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:] if len(data) < _TAIL_BYTES else data[-_TAIL_BYTES:]
        return data

    @property
    def usage(self) -> Usage | None:
        """What the body said it used, once all of it has passed."""
        return usage_of_tail(self._tail)


class EventStream:
    """One stream of server-sent events on its way from worker to client.

    is_usage_added: the usage event was asked for by the router, so it is taken out. usage: the last that was reported;
    events: data events that were relayed, without `[DONE]`.
    """

    __slots__ = ("_is_oversized", "_is_usage_added", "_pending", "events", "usage")

    def __init__(self, is_usage_added: bool) -> None:
        self._is_usage_added = is_usage_added
        self._pending = b""  # the beginning of an event whose end has not come
        self._is_oversized = False  # inside an event too long to hold
        self.usage: Usage | None = None
        self.events = 0

    def feed(self, data: bytes) -> bytes:
        """Take what the worker sent; returns what the client gets now."""
        if (
            not self._pending and data.endswith(b"\n\n") and b'"usage"' not in data and b"[DONE]" not in data
        ):  # the usual case: whole events, nothing to cut and nothing to read
            self.events += data.count(b"\n\n")
            return data
        if not self._pending:
            return self._relay_events(data, 0)
        searched = max(len(self._pending) - 2, 0)  # an event end may be cut in two, but not be found again
        return self._relay_events(self._pending + data, searched)

    def finish(self) -> bytes:
        """The worker's stream has ended; returns what was held of an event that never ended."""
        rest, self._pending = self._pending, b""
        return rest

    def boundary(self) -> bytes:
        """What has to come before an event of our own, in place of what is still held."""
        return b"\n\n" if self._is_oversized else b""

    def _relay_events(self, data: bytes, searched: int) -> bytes:
        """What the client gets of `data`, of which the first `searched` bytes hold no end of an event."""
        relayed = []
        at = 0
        for end in _EVENT_END.finditer(data, searched):
            event = data[at : end.end()]
            at = end.end()
            if self._is_oversized:
                self._is_oversized = False
                relayed.append(event)
            elif self._is_for_client(event):
                relayed.append(event)
        rest = data[at:]
        if self._is_oversized or len(rest) > MAX_EVENT_BYTES:
            # Its last bytes stay here, so that an event end that is cut in two is still seen.
            self._is_oversized = True
            relayed.append(rest[:-3])
            rest = rest[-3:]
        self._pending = rest
        return relayed[0] if len(relayed) == 1 else b"".join(relayed)

    def _is_for_client(self, event: bytes) -> bool:
        """Read one whole event. False: it is the usage event that only the router asked for."""
        if b"[DONE]" in event and event.partition(b":")[2].strip() == b"[DONE]":
            return True
        if b'"usage"' in event:
            data = b"\n".join(
                line[5:].lstrip(b" ")
                for line in event.replace(b"\r\n", b"\n").split(b"\n")
                if line.startswith(b"data:")
            )
            try:
                answer = decode_event(data)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                answer = AnswerEvent()
            usage = _read(answer.usage)
            if usage is not None:
                self.usage = usage
                if bytes(answer.choices).strip(b"[] \t\r\n") == b"":
                    return not self._is_usage_added
        if not event.startswith(b":"):
            self.events += 1
        return True


def _read(usage: ReportedUsage | None) -> Usage | None:
    if usage is None:
        return None
    details, input_tokens = usage.prompt_tokens_details, usage.prompt_tokens
    cached_tokens = (details.cached_tokens or 0) if details is not None else 0
    cached_tokens = min(cached_tokens, input_tokens)
    return Usage(input_tokens, cached_tokens, usage.completion_tokens)
