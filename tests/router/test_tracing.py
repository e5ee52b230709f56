"""Spans of requests: ids on the way in, spans on the way out, and a collector that is slow or away."""

import http.server
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from m3_router.config import TracingSettings
from m3_router.telemetry import tracing
from m3_router.telemetry.tracing import SpanSender, TracedRequest, Traces, otlp_sender, parse_traceparent, spans_of

TRACE, PARENT, OWN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{PARENT}-01".encode()
CAME = 1_795_262_400.0


def a_request(**fields: Any) -> TracedRequest:
    usual: dict[str, Any] = {
        "time": CAME,
        "request_id": "r-1",
        "path": "/v1/chat/completions",
        "duration_ms": 900.0,
        "queue_ms": 100.0,
        "first_byte_ms": 350.0,
        "status": 200,
        "outcome": "ok",
        "trace_id": TRACE,
        "span_id": OWN,
        "parent_span_id": PARENT,
        "tenant": "acme",
        "input_tokens": 1000,
    }
    return TracedRequest(**{**usual, **fields})


# ---- the way in


def test_a_clients_traceparent_is_continued_and_its_decision_holds() -> None:
    for flags, is_sampled in (("01", True), ("00", False), ("03", True)):
        context = Traces(1.0).begin(f"00-{TRACE}-{PARENT}-{flags}".encode())

        assert (context.trace_id, context.parent_span_id, context.is_sampled) == (TRACE, PARENT, is_sampled)
        assert context.span_id not in (PARENT, "0" * 16)


def test_the_worker_becomes_a_child_of_the_routers_span() -> None:
    context = Traces(1.0).begin(VALID)

    assert context.header() == f"traceparent: 00-{TRACE}-{context.span_id}-01\r\n".encode()
    parent = parse_traceparent(context.header().removeprefix(b"traceparent: ").strip())
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == (TRACE, context.span_id)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        b"00-0-0-01",
        f"ff-{TRACE}-{PARENT}-01".encode(),
        f"00-{TRACE.upper()}-{PARENT}-01".encode(),
        f"00-{'0' * 32}-{PARENT}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE}-{PARENT}-0g".encode(),
        f"00-{TRACE}-{PARENT}-01-more".encode(),
        f"00-{TRACE}-{PARENT}".encode(),
        f"00_{TRACE}_{PARENT}_01".encode(),
    ],
)
def test_a_traceparent_that_is_not_valid_begins_a_new_trace(value: bytes) -> None:
    assert parse_traceparent(value) is None
    context = Traces(1.0).begin(value)
    assert context.trace_id != TRACE
    assert context.parent_span_id == ""


def test_a_later_version_may_say_more() -> None:
    parent = parse_traceparent(f"01-{TRACE}-{PARENT}-01-more".encode())

    assert parent is not None
    assert parent.trace_id == TRACE


def test_new_traces_are_sampled_at_the_share_and_ids_do_not_repeat() -> None:
    traces = Traces(0.2)

    contexts = [traces.begin(None) for _ in range(20_000)]

    assert len({context.trace_id for context in contexts}) == len({context.span_id for context in contexts}) == 20_000
    assert sum(context.is_sampled for context in contexts) == pytest.approx(4000, abs=300)  # five sigma
    assert not any(Traces(0.0).begin(None).is_sampled for _ in range(100))
    assert all(Traces(1.0).begin(None).is_sampled for _ in range(100))


# ---- the spans


def test_a_request_is_a_span_with_its_phases_as_children() -> None:
    own, *phases = spans_of(a_request(), Resource.create(), lambda bits: 77)

    assert own.name == "POST /v1/chat/completions"
    assert own.parent is not None
    assert f"{own.parent.span_id:016x}" == PARENT
    assert (f"{own.context.trace_id:032x}", f"{own.context.span_id:016x}") == (TRACE, OWN)
    assert own.attributes is not None
    assert own.attributes["m3.tenant"] == "acme"
    assert own.attributes["gen_ai.usage.input_tokens"] == 1000
    assert "error.type" not in own.attributes
    assert all(phase.parent == own.context for phase in phases)
    assert [(phase.name, _milliseconds(phase.start_time), _milliseconds(phase.end_time)) for phase in phases] == [
        ("queue", 0, 100),
        ("first byte", 100, 350),
        ("stream", 350, 900),
    ]
    assert (_milliseconds(own.start_time), _milliseconds(own.end_time)) == (0, 900)


def test_phases_that_did_not_happen_have_no_span() -> None:
    refused = a_request(queue_ms=0.0, first_byte_ms=None, outcome="rejected", status=429, parent_span_id="")

    (own,) = spans_of(refused, Resource.create(), lambda bits: 77)

    assert own.parent is None
    assert own.status.is_unset  # a refusal is the client's error, and not the server's
    assert own.attributes is not None
    assert own.attributes["error.type"] == "rejected"


def test_what_failed_is_an_error_with_its_reason() -> None:
    own = spans_of(a_request(outcome="worker_error", status=502, error="it fell over"), Resource.create(), lambda b: 7)[
        0
    ]

    assert not own.status.is_ok
    assert own.status.description == "it fell over"


def _milliseconds(nanoseconds: int | None) -> int:
    assert nanoseconds is not None
    return (nanoseconds - int(CAME * 1e9)) // 1_000_000


# ---- sending


class HeldExporter(SpanExporter):
    """Exports when it is let, and as it is told."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.result = SpanExportResult.SUCCESS
        self.spans: queue.SimpleQueue[ReadableSpan] = queue.SimpleQueue()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.let.wait(10)
        for span in spans:
            self.spans.put(span)
        if self.result is SpanExportResult.FAILURE:
            raise OSError("the collector is away")
        return self.result


class TracedBill:
    """A bill of a router that traces: what is asked of one, and no more."""

    def __init__(self, **fields: Any) -> None:
        for name, value in {**_fields(a_request()), **fields}.items():
            setattr(self, name, value)


def _fields(request: TracedRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__struct_fields__}


@pytest.fixture
def exporter() -> Iterator[HeldExporter]:
    held = HeldExporter()
    yield held
    held.let.set()


def test_a_request_that_is_not_sampled_sends_nothing(exporter: HeldExporter) -> None:
    exporter.let.set()
    sender = SpanSender(exporter, Resource.create())

    sender.read([TracedBill(span_id=""), TracedBill()])  # type: ignore[list-item]
    sender.close()

    assert (sender.sent, exporter.spans.qsize()) == (1, 4)


def test_a_collector_that_is_slow_costs_spans_and_never_time(
    exporter: HeldExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MAX_QUEUED", 10)
    sender = SpanSender(exporter, Resource.create())

    began = time.monotonic()
    for _ in range(100):
        sender.read([TracedBill() for _ in range(8)])  # type: ignore[misc]
    assert time.monotonic() - began < 20

    assert sender.dropped > 0
    exporter.let.set()
    sender.close()
    assert sender.sent + sender.dropped == 800


def test_a_collector_that_is_away_is_counted_and_logged_once(
    exporter: HeldExporter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MAX_BATCH", 1)
    exporter.result = SpanExportResult.FAILURE
    exporter.let.set()
    sender = SpanSender(exporter, Resource.create())

    sender.read([TracedBill(), TracedBill(), TracedBill()])  # type: ignore[list-item]
    sender.close()

    assert (sender.sent, sender.failed) == (0, 3)
    assert [record.message for record in caplog.records] == ["the collector of spans does not take them"]


class Collector(http.server.BaseHTTPRequestHandler):
    received: queue.SimpleQueue[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.received.put((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_spans_arrive_at_a_collector_by_otlp_over_http() -> None:
    received: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    handler = type("Handler", (Collector,), {"received": received})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            settings = TracingSettings(endpoint=f"http://127.0.0.1:{server.server_port}")
            sender = otlp_sender(settings, name="replica-1", version="1.2.3")
            sender.read([TracedBill()])  # type: ignore[list-item]
            sender.close()
        finally:
            server.shutdown()
            serving.join()

    path, body = received.get_nowait()
    request = ExportTraceServiceRequest.FromString(body)
    resource = {one.key: one.value.string_value for one in request.resource_spans[0].resource.attributes}
    spans = request.resource_spans[0].scope_spans[0].spans
    assert path == "/v1/traces"
    assert (resource["service.name"], resource["service.instance.id"]) == ("m3-router", "replica-1")
    assert [span.name for span in spans] == ["POST /v1/chat/completions", "queue", "first byte", "stream"]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert {span.parent_span_id.hex() for span in spans[1:]} == {OWN}
