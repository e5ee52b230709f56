"""OpenTelemetry spans of requests: the ids that go along with one, and the spans that are made when it is settled.

Owns the W3C `traceparent` (read, decided, written), the shape of the spans, and the thread that sends them. On the way
of a request there is one call, `Traces.begin`; a span is made from the settled bill, in a thread of its own, and where
the collector is slow or away, spans are dropped and counted, and nothing waits.

    POST /v1/chat/completions   |---------------------------------------|   the id that the worker got as its parent
      queue                     |------|
      first byte                       |-----------|
      stream                                       |--------------------|
"""

import logging
import queue
import random
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from m3_router.config import TracingSettings
from m3_router.money.bill import Bill

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

MAX_QUEUED: Final = 8192  # requests whose spans wait to be sent
MAX_BATCH: Final = 512
GATHER_SECONDS: Final = 0.5
EXPORT_SECONDS: Final = 5.0  # the longest that one batch may take, retries included

_ID_BITS: Final = 64
_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16
_SAMPLED: Final = 0x01

_log = logging.getLogger(__name__)


class TraceContext:
    """The place of one request in its trace. Ids are lower-case hexadecimal; `parent_span_id` is empty at a root."""

    __slots__ = ("is_sampled", "parent_span_id", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, parent_span_id: str, is_sampled: bool) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_span_id = parent_span_id
        self.is_sampled = is_sampled

    def header(self) -> bytes:
        """The header line for the worker, whose spans become children of this request's."""
        return f"traceparent: 00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}\r\n".encode()


class Traces:
    """Gives each request its place in a trace."""

    __slots__ = ("_random_bits", "_sampled_below")

    def __init__(self, sample_share: float, random_bits: Callable[[int], int] | None = None) -> None:
        # Ids have to differ, and need not be secret: a generator seeded by the system costs a tenth of asking it.
        self._random_bits = random_bits or random.Random().getrandbits  # noqa: S311
        self._sampled_below = int(sample_share * 2**_ID_BITS)

    def begin(self, traceparent: bytes | None) -> TraceContext:
        """A span for one request: a child of the client's where it sent a valid `traceparent`, else of a new trace.

        A client's decision to sample holds; a new trace is sampled by its id, so that every replica decides alike.
        """
        span_id = f"{self._random_bits(_ID_BITS) or 1:016x}"
        parent = None if traceparent is None else parse_traceparent(traceparent)
        if parent is not None:
            return TraceContext(parent.trace_id, span_id, parent.span_id, parent.is_sampled)
        low = self._random_bits(_ID_BITS)
        return TraceContext(
            f"{self._random_bits(_ID_BITS) or 1:016x}{low:016x}", span_id, "", low < self._sampled_below
        )


def parse_traceparent(value: bytes) -> TraceContext | None:
    """What a client sent; None if it is not valid, which W3C wants to be treated as absent.

    Source: W3C Trace Context, section 3.2. Of a version after 00, the parts that are known from 00 are used.
    """
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id.decode(), span_id.decode(), "", bool(int(flags, 16) & _SAMPLED))


class TracedRequest(msgspec.Struct, frozen=True, gc=False):
    """What spans are made of: the fields of a bill that has them. `span_id` is empty where nothing is to be sent."""

    time: float
    request_id: str
    path: str
    duration_ms: float
    queue_ms: float
    first_byte_ms: float | None
    status: int
    outcome: str | None
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    tenant: str = ""
    model: str = ""
    pool: str = ""
    service_tier: str | None = None
    context_tier: str | None = None
    worker: str = ""
    reason: str = ""
    runner_up: str = ""
    attempts: int = 0
    continuations: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    error: str | None = None


class SpanSender:
    """Makes spans and sends them, from a thread of its own. `dropped` and `failed` count requests, not spans."""

    def __init__(self, exporter: "SpanExporter", resource: "Resource") -> None:
        self._exporter = exporter
        self._resource = resource
        self._queue: queue.SimpleQueue[Bill | None] = queue.SimpleQueue()
        self._random_bits = random.Random().getrandbits  # noqa: S311 - as above
        self._is_failing = False
        self.dropped = 0  # because the queue was full
        self.failed = 0  # because the collector did not take them
        self.sent = 0
        self._thread = threading.Thread(target=self._run, name="tracing", daemon=True)
        self._thread.start()

    def read(self, bills: list[Bill]) -> None:
        """Take settled bills. Never waits."""
        for bill in bills:
            if not bill.span_id:
                continue
            if self._queue.qsize() >= MAX_QUEUED:
                self.dropped += 1
            else:
                self._queue.put(bill)

    def close(self, timeout_seconds: float = EXPORT_SECONDS + 1) -> None:
        """Send what is left, for at most so long, and end."""
        self._queue.put(None)
        self._thread.join(timeout_seconds)
        self._exporter.shutdown()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._gather()
            if batch:
                self._send(batch)

    def _gather(self) -> tuple[list[TracedRequest], bool]:
        """The next batch, and whether there will be another."""
        batch: list[TracedRequest] = []
        bill = self._queue.get()
        while bill is not None:
            batch.append(msgspec.convert(bill, TracedRequest, from_attributes=True))
            if len(batch) >= MAX_BATCH:
                return batch, True
            try:
                bill = self._queue.get(timeout=GATHER_SECONDS)
            except queue.Empty:
                return batch, True
        return batch, False

    def _send(self, batch: Sequence[TracedRequest]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        spans = [span for request in batch for span in spans_of(request, self._resource, self._random_bits)]
        try:
            is_sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # noqa: BLE001 - whatever an exporter raises, this thread goes on, and says so below
            _log.debug("the exporter of spans raised", exc_info=True)
            is_sent = False
        if is_sent:
            self.sent += len(batch)
        else:
            self.failed += len(batch)
        if is_sent == self._is_failing:
            self._is_failing = not is_sent
            _log.warning("the collector of spans %s", "takes them again" if is_sent else "does not take them")


def spans_of(request: TracedRequest, resource: "Resource", random_bits: Callable[[int], int]) -> "list[ReadableSpan]":
    """The spans of one request: its own, and one for each of its phases that happened."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    trace_id, flags = int(request.trace_id, 16), TraceFlags(TraceFlags.SAMPLED)

    def place(span_id: int, is_remote: bool = False) -> SpanContext:
        return SpanContext(trace_id, span_id, is_remote, flags)

    def at(milliseconds: float) -> int:
        return int(request.time * 1e9) + int(milliseconds * 1e6)

    own = place(int(request.span_id, 16))
    has_failed = request.status >= 500 or request.outcome in ("worker_error", "router_lost")
    spans = [
        ReadableSpan(
            f"POST {request.path}",
            context=own,
            parent=place(int(request.parent_span_id, 16), is_remote=True) if request.parent_span_id else None,
            resource=resource,
            attributes=_attributes(request),
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, request.error) if has_failed else Status(),
            start_time=at(0),
            end_time=at(request.duration_ms),
        )
    ]
    for name, begin, end in _phases(request):
        context = place(random_bits(_ID_BITS) or 1)
        span = ReadableSpan(name, context, own, resource, start_time=at(begin), end_time=at(end))
        spans.append(span)
    return spans


def _phases(request: TracedRequest) -> list[tuple[str, float, float]]:
    """(name, begin, end) in milliseconds since the request came."""
    phases = [("queue", 0.0, request.queue_ms)] if request.queue_ms > 0 else []
    if request.first_byte_ms is not None:
        phases.append(("first byte", request.queue_ms, request.first_byte_ms))
        phases.append(("stream", request.first_byte_ms, request.duration_ms))
    return phases


def _attributes(request: TracedRequest) -> dict[str, str | int]:
    """Names of OpenTelemetry's conventions where it has one, else ours. What is empty is left out."""
    attributes: dict[str, str | int | None] = {
        "http.request.method": "POST",
        "url.path": request.path,
        "http.response.status_code": request.status or None,
        "gen_ai.request.model": request.model,
        "gen_ai.usage.input_tokens": request.input_tokens,
        "gen_ai.usage.output_tokens": request.output_tokens,
        "error.type": request.outcome if request.outcome != "ok" else None,
        "m3.request_id": request.request_id,
        "m3.tenant": request.tenant,
        "m3.pool": request.pool,
        "m3.service_tier": request.service_tier,
        "m3.context_tier": request.context_tier,
        "m3.worker": request.worker,
        "m3.placement.reason": request.reason,
        "m3.placement.runner_up": request.runner_up,
        "m3.attempts": request.attempts,
        "m3.continuations": request.continuations or None,
        "m3.cached_tokens": request.cached_tokens,
        "m3.cost_nanousd": request.cost_nanousd,
    }
    return {name: value for name, value in attributes.items() if value is not None and value != ""}


def otlp_sender(settings: TracingSettings, *, name: str, version: str) -> SpanSender:
    """A sender to an OTLP/HTTP collector, at `endpoint`/v1/traces. OpenTelemetry is loaded here and not before."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource

    # It would log every batch that it cannot send; `_send` logs that it began to fail, and that it no longer does.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(f"{settings.endpoint}/v1/traces", timeout=EXPORT_SECONDS)
    resource = Resource.create({"service.name": "m3-router", "service.instance.id": name, "service.version": version})
    return SpanSender(exporter, resource)
