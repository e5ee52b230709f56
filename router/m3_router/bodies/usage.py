"""What a worker's answer says it used, found without delaying or changing the answer.

Owns the reading of `usage` in JSON bodies and event streams of every dialect, what is added to it (its cost, where the
client asked for that), the removal of the one event that a client did not ask for, and whether a stream came to its
end. `EventStream` relays whole events: an event that arrives in pieces waits for its end, all other bytes pass as they
came. A worker's own error event is held until the stream is over, so that another worker can still go on. Pure.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec
from mypy_extensions import mypyc_attr

from m3_router.bodies.bodies import (
    AnswerEvent,
    ReportedUsage,
    decode_answer,
    decode_event,
    decode_members,
    decode_usage,
)
from m3_router.bodies.dialects import Dialect
from m3_router.bodies.splice import with_member
from m3_router.money.bill import Usage

MAX_EVENT_BYTES: Final = 2**20  # an event longer than this passes unread, in pieces
_TAIL_BYTES: Final = 4096  # where the usage of a body that was too large to hold is looked for
_HEAD_BYTES: Final = 256  # where the type of an event that was too large to hold is looked for

_EVENT_END: Final = re.compile(rb"\n\r?\n")
_USAGE_OBJECT: Final = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}"]|"[^"\\]*"|\{(?:[^{}]|\{[^{}]*\})*\})*\})')
_ENDINGS: Final = frozenset({"message_stop", "response.completed", "response.incomplete"})
_FAILURES: Final = frozenset({"error", "response.failed"})
_NANO: Final = 1_000_000_000


def usage_of_body(dialect: Dialect, body: bytes) -> Usage | None:
    """The usage that a whole JSON answer reports; None if there is none to be read."""
    try:
        return read_usage(dialect, decode_answer(body).usage)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def usage_of_tail(dialect: Dialect, tail: bytes) -> Usage | None:
    """The usage in the last bytes of a JSON answer. Inside a JSON string its quotes would be escaped."""
    for match in reversed(list(_USAGE_OBJECT.finditer(tail))):
        usage = _usage_of_object(dialect, match[1])
        if usage is not None:
            return usage
    return None


def with_cost(dialect: Dialect, body: bytes, nanousd: int) -> bytes:
    """A whole JSON answer with `usage.cost` in USD, a number with nine decimals; as it is if it has no usage.

    Takes two passes over the body: for answers whose request asked for it.
    """
    try:
        usage = decode_members(body).get("usage")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return body
    if usage is None or _usage_of_object(dialect, bytes(memoryview(usage))) is None:
        return body
    return with_member(body, "usage", _priced(bytes(memoryview(usage)), nanousd), usage)


def read_usage(dialect: Dialect, usage: ReportedUsage | None, begun: ReportedUsage | None = None) -> Usage | None:
    """What a reported usage means. `begun`: what Anthropic's stream said at its beginning, for what its end leaves out.

    None if the input is not in it. Anthropic counts cached tokens beside the input, the others within it.
    """
    if usage is None:
        return None
    if dialect.is_anthropic:
        source = usage if begun is None or _input_of(usage) else begun
        if source.input_tokens is None and not _input_of(source):
            return None
        read, written = source.cache_read_input_tokens or 0, source.cache_creation_input_tokens or 0
        return Usage(_input_of(source), read, written, usage.output_tokens or 0)
    if usage.prompt_tokens is not None:
        tokens: int = usage.prompt_tokens
        answered, details = usage.completion_tokens, usage.prompt_tokens_details
    elif usage.input_tokens is not None:
        tokens = usage.input_tokens
        answered, details = usage.output_tokens, usage.input_tokens_details
    else:
        return None
    if details is None:
        return Usage(tokens, 0, 0, answered or 0)
    cached = min(details.cached_tokens or 0, tokens)
    return Usage(tokens, cached, min(details.cache_write_tokens or 0, tokens - cached), answered or 0)


@mypyc_attr(free_list_len=1)
class BodyTail:
    """The last bytes of a body that passes by."""

    __slots__ = ("_dialect", "_tail")

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they are relayed; returns them."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:] if len(data) < _TAIL_BYTES else data[-_TAIL_BYTES:]
        return data

    @property
    def usage(self) -> Usage | None:
        """What the body said it used, once all of it has passed."""
        return usage_of_tail(self._dialect, self._tail)


@mypyc_attr(free_list_len=1)
class EventStream:
    """One stream of server-sent events on its way from worker to client.

    is_usage_added: the usage event was asked for by the router, so it is taken out. include_cost: the usage gets what
    `cost` makes of it, in nano-dollars. `cost` and `rewrite` are set by whoever relays; `rewrite` is given each event
    before it is read, and returns those to read in its place: whole ones, or b"".

    usage: the last that was reported; begun: what Anthropic's first event says of the input. events: those that were
    relayed with output, a lower bound of the tokens. is_complete: the stream came to its own end. failure: the error
    event with which the worker gave up, b"" if it did not; `finish` gives it to the client, where nobody else goes on.
    """

    __slots__ = (
        "_begun",
        "_counted",
        "_dialect",
        "_head",
        "_include_cost",
        "_is_oversized",
        "_is_plain",
        "_is_usage_added",
        "_pending",
        "_rewrite",
        "_tail",
        "cost",
        "events",
        "failure",
        "is_complete",
        "usage",
    )

    def __init__(self, dialect: Dialect, is_usage_added: bool, include_cost: bool) -> None:
        self._dialect = dialect
        self._counted = dialect.counted
        self._is_usage_added = is_usage_added
        self._include_cost = include_cost
        self._pending = b""  # the beginning of an event whose end has not come
        self._is_oversized = False  # inside an event too long to hold
        self._head = b""  # of that event
        self._tail = b""  # its last bytes that have passed
        self._begun: ReportedUsage | None = None  # what Anthropic's message_start said
        self._is_plain = True  # nothing is held, nothing is to be changed, and the end is not near
        self._rewrite: Callable[[bytes], bytes] | None = None
        self.cost: Callable[[Usage], int] | None = None
        self.usage: Usage | None = None
        self.events = 0
        self.is_complete = False
        self.failure = b""

    @property
    def begun(self) -> Usage | None:
        """What is known of the input before the end: in Anthropic's dialect, from the first event on."""
        return read_usage(self._dialect, self._begun)

    @property
    def rewrite(self) -> Callable[[bytes], bytes] | None:
        """What is made of each event before it is read."""
        return self._rewrite

    @rewrite.setter
    def rewrite(self, rewrite: Callable[[bytes], bytes] | None) -> None:
        self._rewrite = rewrite
        self._is_plain = False

    def feed(self, data: bytes) -> bytes:
        """Take what the worker sent; returns what the client gets now."""
        # The usual case: whole events with an object each, so not [DONE] and no comments, and nothing to read in them.
        # Some servers say in each event that it has no usage. By `find`, since `in` first tries to take bytes for a
        # number, which costs as much as all else here.
        if (
            self._is_plain
            and data.endswith(b"}\n\n")
            and not data.startswith(b":")
            and data.find(b"\n:") < 0
            and data.find(b'"error"') < 0
            and (data.find(b'"usage"') < 0 or data.count(b'"usage":null') == data.count(b'"usage"'))
            and not (self._dialect.has_named_events and data.find(self._dialect.end) >= 0)
        ):
            self.events += data.count(self._counted)
            return data
        self._is_plain = False
        if not self._pending:
            relayed = self._relay_events(data, 0)
        else:
            searched = max(len(self._pending) - 2, 0)  # an event end may be cut in two, but not be found again
            relayed = self._relay_events(self._pending + data, searched)
        # Anthropic's last event has no usage, but the one before it has.
        self._is_plain = (
            not self._pending
            and not self.failure
            and self._rewrite is None
            and (self._begun is None or self.usage is None)
        )
        return relayed

    def finish(self) -> bytes:
        """The worker's stream has ended; returns what was held: an event that never ended, the worker's own error."""
        if self._pending.strip() == b"data: [DONE]":  # without the empty line that ends an event
            self.is_complete = not self.failure
        rest, self._pending = self.failure + self._pending, b""
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
                self._read_oversized(event)
                relayed.append(event)
            else:
                relayed.append(self._take(event))
        rest = data[at:]
        if self._is_oversized or len(rest) > MAX_EVENT_BYTES:
            if not self._is_oversized:
                self._is_oversized = True
                self._head = rest[:_HEAD_BYTES]
                relayed.append(self._release())
            # Its last bytes stay here, so that an event end that is cut in two is still seen.
            relayed.append(rest[:-3])
            self._tail = (self._tail + rest[:-3])[-_TAIL_BYTES:]
            rest = rest[-3:]
        self._pending = rest
        return relayed[0] if len(relayed) == 1 else b"".join(relayed)

    def _take(self, event: bytes) -> bytes:
        """One whole event; returns what the client gets of it."""
        if self._rewrite is None:
            return self._read(event)
        rewritten = self._rewrite(event)
        relayed = b""
        at = 0
        for end in _EVENT_END.finditer(rewritten):
            relayed += self._read(rewritten[at : end.end()])
            at = end.end()
        return relayed

    def _read(self, event: bytes) -> bytes:
        if event.startswith(b":"):  # a comment
            return b"" if self.failure else event
        is_late = self.failure and b"[DONE]" in event
        if not (b'"usage"' in event or b'"error"' in event or self._dialect.end in event or is_late):
            self.events += event.count(self._counted) if self._dialect.has_named_events else 1
            return self._release() + event
        data = _data_of(event)
        if data == b"[DONE]":
            if self.failure:
                return b""  # it would be a false one
            self.is_complete = True
            return event
        try:
            answer = decode_event(data)
            if answer.type == "message_start":
                self._begun = decode_answer(answer.message).usage
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            answer = AnswerEvent()
        return self._take_answer(event, answer)

    def _take_answer(self, event: bytes, answer: AnswerEvent) -> bytes:
        kind: str = answer.type or ""
        if kind in _FAILURES or bytes(memoryview(answer.error)) not in (b"", b"null"):
            released = self._release()
            self.failure = event
            return released
        self.is_complete = self.is_complete or kind in _ENDINGS
        reported: ReportedUsage | None = answer.usage
        if answer.response is not None:
            reported = answer.response.usage
        usage = read_usage(self._dialect, reported, self._begun)
        if usage is not None:
            self.usage = usage
            if self._is_usage_added and bytes(memoryview(answer.choices)).strip(b"[] \t\r\n") == b"":
                return self._release()
            event = self._with_cost(event, usage)
        if self._dialect.has_named_events:
            self.events += event.count(self._counted)
        else:
            self.events += 1
        return self._release() + event

    def _release(self) -> bytes:
        """An error event that was held, although the stream went on."""
        failure, self.failure = self.failure, b""
        return failure

    def _with_cost(self, event: bytes, usage: Usage) -> bytes:
        cost = self.cost
        if not self._include_cost or cost is None:
            return event
        for match in reversed(list(_USAGE_OBJECT.finditer(event))):
            if _usage_of_object(self._dialect, match[1], self._begun) is not None:
                return event[: match.start(1)] + _priced(match[1], cost(usage)) + event[match.end(1) :]
        return event

    def _read_oversized(self, last: bytes) -> None:
        """The end of an event that has passed in pieces: its usage is looked for in its tail, and has no cost."""
        tail, self._tail = self._tail + last, b""
        usage = usage_of_tail(self._dialect, tail)
        if usage is not None:
            self.usage = usage
        if b"response.completed" in self._head or b"response.incomplete" in self._head:
            self.is_complete = True


def _data_of(event: bytes) -> bytes:
    """The data of an event, its lines joined."""
    lines = event.replace(b"\r\n", b"\n").split(b"\n")
    return b"\n".join([line[5:].strip(b" ") for line in lines if line.startswith(b"data:")])


def _input_of(usage: ReportedUsage) -> int:
    """What Anthropic's usage says of the input; 0 where it says nothing."""
    read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    return (usage.input_tokens or 0) + read + written


def _usage_of_object(dialect: Dialect, usage: bytes, begun: ReportedUsage | None = None) -> Usage | None:
    try:
        return read_usage(dialect, decode_usage(usage), begun)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _priced(usage: bytes, nanousd: int) -> bytes:
    """The object of a usage with its cost."""
    return b'%b,"cost":%d.%09d}' % (usage.rstrip()[:-1].rstrip(), nanousd // _NANO, nanousd % _NANO)
