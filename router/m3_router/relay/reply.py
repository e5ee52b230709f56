"""What goes back to one client: the worker's answer, byte for byte, under our own head.

Owns the form of the answer: whole (held until its usage is known, so that its cost goes into the head) or streamed
(whole events as they come), comments while a stream waits for its first event, and how an answer is broken off. What
the worker said it used is in `usage`; whether the answer is good enough is the exchange's business.
"""

from typing import Final

import msgspec
from mypy_extensions import mypyc_attr

from m3_router.bodies.bodies import decode_failure
from m3_router.bodies.request import RequestView
from m3_router.bodies.transcript import Transcript
from m3_router.bodies.usage import BodyTail, EventStream, with_cost
from m3_router.errors import Refusal
from m3_router.http import wire
from m3_router.http.messages import Answer, Client
from m3_router.money.bill import Bill, Usage
from m3_router.money.prices import PriceTable, format_usd
from m3_router.relay.continuation import Resumption, resume
from m3_router.tenants.rate_limits import retry_headers

MAX_HELD_BYTES: Final = 8 * 2**20  # of an answer whose cost goes into its head; a longer one goes without
MAX_TRANSCRIPT_BYTES: Final = 2**20  # of a stream that somebody else could go on with: a quarter of a million tokens
_EVENT_STREAM: Final = b"text/event-stream"
_SIGNS_OF_LIFE: Final = (b":", b"event: ping\n")
_TIERS: Final = {
    (context, service): f"x-m3-context-tier: {context}\r\nx-m3-service-tier: {service}\r\n".encode()
    for context in ("standard", "long")
    for service in ("standard", "priority", "batch")
}
_Scanner = EventStream | BodyTail


@mypyc_attr(free_list_len=1)
class Reply:
    """The answer to one request, while it is written.

    is_streaming: what comes is passed on. is_head_out: the client has got a status, so that all else can only be told
    as an event. has_content: it has got a first byte of the answer itself, so that nobody else can begin it anew.
    input_tokens: of the first prompt, as the head of its answer counts them; None where it does not.
    """

    __slots__ = (
        "_answer",
        "_bill",
        "_client",
        "_events_before",
        "_held",
        "_held_bytes",
        "_limit_headers",
        "_prices",
        "_scanner",
        "_transcript",
        "_view",
        "has_content",
        "input_tokens",
        "is_head_out",
        "is_streaming",
    )

    def __init__(
        self, client: Client, bill: Bill, view: RequestView, prices: PriceTable, *, is_resumable: bool
    ) -> None:
        self._client = client
        self._bill = bill
        self._view = view
        self._prices = prices
        self._transcript: Transcript | None = None
        if is_resumable and view.is_stream and view.dialect.can_continue:
            self._transcript = Transcript(view.dialect, MAX_TRANSCRIPT_BYTES)
        self._answer: Answer | None = None
        self._limit_headers = b""
        self._scanner: _Scanner | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.input_tokens: int | None = None
        self._events_before = 0  # of workers that broke off
        self.is_head_out = self.is_streaming = self.has_content = False

    @property
    def usage(self) -> Usage | None:
        """What the worker said it used, of a stream that has passed."""
        return None if self._scanner is None else self._scanner.usage

    @property
    def events(self) -> int:
        """Events with output that were passed on: the bound of what was generated."""
        return self._events_before + (self._scanner.events if isinstance(self._scanner, EventStream) else 0)

    @property
    def begun(self) -> Usage | None:
        """What the worker said of its input when a stream began; None where the dialect does not."""
        return self._scanner.begun if isinstance(self._scanner, EventStream) else None

    @property
    def is_at_end(self) -> bool:
        """Whether the end of a stream has come."""
        return not isinstance(self._scanner, EventStream) or self._scanner.is_complete

    @property
    def is_whole(self) -> bool:
        """Whether a stream that has ended is all of the answer: its end has come, and no word of giving up."""
        scanner = self._scanner
        return not isinstance(scanner, EventStream) or (scanner.is_complete and not scanner.failure)

    @property
    def why_not_whole(self) -> str:
        """What the worker has done wrong, of a stream that is not."""
        scanner = self._scanner
        if isinstance(scanner, EventStream) and scanner.failure:
            return f"it gave up during its answer: {_message_of(scanner.failure.rpartition(b'data:')[2])}"
        return "it stopped before its answer was complete"

    def can_go_on_with(self, answer: Answer) -> bool:
        """Whether an answer can be the rest of a stream of which the client has a part."""
        return answer.status == 200 and _is_event_stream(answer)

    def take_head(self, answer: Answer, limit_headers: bytes) -> None:
        """The worker's answer begins. limit_headers: lines that tell the client what its limits have left."""
        self._answer = answer
        self._limit_headers = limit_headers
        self._held, self._held_bytes = [], 0
        self.is_streaming = answer.status == 200 and _is_event_stream(answer)
        if not self.has_content:  # else the scanner knows how the two parts are joined
            counted = answer.head.known.get(b"x-m3-input-tokens", b"")
            self.input_tokens = int(counted) if counted.isdigit() and len(counted) < 12 else None
            if self.is_streaming:
                self._scanner = self._new_scanner()

    # ---- streamed

    def scan(self, body: bytes, is_complete: bool) -> bytes:
        """More of a stream; returns what the client gets of it."""
        scanner = self._scanner
        assert scanner is not None  # noqa: S101 - it is streaming
        data = scanner.feed(body) if body else b""
        if is_complete and isinstance(scanner, EventStream) and not scanner.failure:
            rest = scanner.finish()
            if scanner.is_complete:
                data += rest
        return data

    def pass_sign_of_life(self, data: bytes) -> bool:
        """Whether this is nothing but comments and pings of a worker that has not begun; if so, it is passed on."""
        events = data.replace(b"\r\n", b"\n").split(b"\n\n")
        if not all(event.startswith(_SIGNS_OF_LIFE) for event in events if event):
            return False
        self._pass(data)
        return True

    def write(self, data: bytes) -> None:
        """Pass on a part that `scan` has returned."""
        self.has_content = True
        if self._transcript is not None:
            self._transcript.note(data)
        self._pass(data)

    def end(self, data: bytes) -> None:
        """Pass on the last part."""
        if not self.is_head_out:
            self._start(data)
            data = b""
        self.has_content = True
        self._client.end(data)

    def comment(self) -> None:
        """Tell a client that waits for its stream that somebody is there, so that nothing on the way gives up on it."""
        comment = self._view.dialect.keep_alive
        if self.is_head_out:
            self._client.write(comment)
        elif self.is_streaming:
            self._start(comment)
        else:
            self.is_head_out = True
            self._client.start_response(self._head(200, _EVENT_STREAM, b""), comment)

    # ---- whole

    def hold(self, body: bytes) -> None:
        """Wait for the rest of the answer, whose usage goes into its head, unless it grows too long for that."""
        self._held.append(body)
        self._held_bytes += len(body)
        if self._held_bytes > MAX_HELD_BYTES and not self.is_head_out:
            tail = self._scanner = BodyTail(self._view.dialect)
            self.is_streaming = True
            held, self._held = b"".join(self._held), []
            self.write(tail.feed(held))

    def whole(self, body: bytes) -> bytes:
        """The whole body, of which this is the last part."""
        return b"".join((*self._held, body)) if self._held else body

    def respond(self, body: bytes, *, has_cost: bool) -> None:
        """Answer with a whole body. has_cost: the bill is settled, and its cost can be told."""
        answer, bill = self._answer, self._bill
        assert answer is not None  # noqa: S101 - there is an answer to give
        self.has_content = True
        if self.is_head_out:  # as an event stream, with comments: what comes instead can only be a failure
            self._cut(_refusal_of(answer.status, body))
            return
        cost_usd = b""
        if has_cost:
            cost_usd = format_usd(bill.cost_nanousd)
            if self._view.include_cost:
                body = with_cost(self._view.dialect, body, bill.cost_nanousd)
        self._client.respond(self._head(answer.status, _content_type(answer), answer.head.forward, cost_usd), body)

    # ---- broken off

    def refuse(self, refusal: Refusal, limit_headers: bytes) -> None:
        """Say no, or that it cannot be completed: as a whole answer, or in the stream, and never `[DONE]`."""
        if self.is_head_out:
            self._cut(refusal)
        else:
            refusal.answer_to(self._bill.request_id, is_anthropic=self._view.dialect.is_anthropic)
            self._client.refuse(refusal, self._request_id() + limit_headers + retry_headers(refusal))

    def _cut(self, refusal: Refusal) -> None:
        scanner, event = self._scanner, b""
        if isinstance(scanner, EventStream):
            if scanner.failure:  # what the worker itself said of its failure is better than what we could say
                self._client.end(scanner.failure)
                return
            event = scanner.boundary() + self._view.dialect.error_event(refusal, self._bill.request_id)
        elif scanner is None:
            event = self._view.dialect.error_event(refusal, self._bill.request_id)
        self._client.cut(event)

    # ---- gone on with by another worker

    def resumption(self, engine: str) -> Resumption | None:
        """How another worker of this engine can go on with what the client has; None where it cannot."""
        scanner, transcript = self._scanner, self._transcript
        if transcript is None or not isinstance(scanner, EventStream):
            return None
        return resume(transcript, self._view, engine, self.input_tokens, scanner.begun)

    def note_delivered(self) -> None:
        """Into the bill: what the client has got until now, to which the next worker's part is added."""
        bill, begun = self._bill, self.begun
        if begun is not None and not bill.continuations:
            bill.cached_tokens, bill.cache_write_tokens = begun.cached_tokens, begun.cache_write_tokens
        bill.output_tokens = self.events

    def estimate(self) -> Usage:
        """What is known of an answer whose usage did not come: its input, and an output token for each event."""
        bill = self._bill
        bill.estimated = True
        return Usage(bill.input_tokens, bill.cached_tokens, bill.cache_write_tokens, self.events)

    def go_on(self, resumption: Resumption) -> None:
        """From now on what comes is the rest of the answer, from another worker."""
        self._events_before = self.events
        scanner = self._scanner = self._new_scanner()
        scanner.rewrite = resumption.rewrite

    # ---- inside

    def _new_scanner(self) -> EventStream:
        scanner = EventStream(self._view.dialect, self._view.is_usage_added, self._view.include_cost)
        if self._view.include_cost:
            scanner.cost = self._cost
        return scanner

    def _cost(self, usage: Usage) -> int:
        """What a usage of this request comes to, in nano-dollars."""
        bill = self._bill
        return self._prices.cost(bill.model, bill.service_tier or "standard", usage, bill.time)[1]

    def _pass(self, data: bytes) -> None:
        if self.is_head_out:
            self._client.write(data)
        else:
            self._start(data)

    def _start(self, data: bytes) -> None:
        answer = self._answer
        assert answer is not None  # noqa: S101 - there is a head to relay
        self.is_head_out = True
        self._client.start_response(self._head(answer.status, _content_type(answer), answer.head.forward), data)

    def _head(self, status: int, content_type: bytes, forward: bytes, cost_usd: bytes = b"") -> bytes:
        """Status and headers of the answer, without its framing."""
        bill = self._bill
        context_tier, service_tier = bill.context_tier, bill.service_tier
        return b"".join(
            (
                wire.status_line(status),
                b"content-type: ",
                content_type,
                b"\r\n",
                forward,
                self._request_id(),
                b"x-m3-worker: ",
                bill.worker.encode(),
                b"\r\nx-m3-queue-ms: %d\r\n" % bill.queue_ms if bill.queue_ms else b"\r\nx-m3-queue-ms: 0\r\n",
                b"" if context_tier is None or service_tier is None else _TIERS[context_tier, service_tier],
                self._limit_headers,
                b"x-m3-cost-usd: " + cost_usd + b"\r\n" if cost_usd else b"",
            )
        )

    def _request_id(self) -> bytes:
        return wire.request_id_lines(self._bill.request_id, is_anthropic=self._view.dialect.is_anthropic)


def _content_type(answer: Answer) -> bytes:
    return answer.head.known.get(b"content-type", b"application/json")


def _is_event_stream(answer: Answer) -> bool:
    return answer.head.known.get(b"content-type", b"").startswith(_EVENT_STREAM)


def _refusal_of(status: int, body: bytes) -> Refusal:
    """A worker's error, for a client whose stream has begun."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return Refusal(status, _message_of(body) or f"The worker answered {status}.", kind=kind, code="worker_error")


def _message_of(failure: bytes) -> str:
    """What a worker's error says, in any dialect; nothing if it cannot be read."""
    try:
        told = decode_failure(failure)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    message: str = told.message if told.error is None else told.error.message
    return message
