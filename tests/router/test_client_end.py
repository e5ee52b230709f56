"""The client's end on a fake transport and clock: framing, limits, time-outs, order of answers."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from m3_router.config import LimitSettings
from m3_router.errors import Refusal
from m3_router.http.client_end import LINGER_SECONDS, ClientConnection
from m3_router.http.connections import Connections
from m3_router.http.messages import Request, Start

LIMITS = LimitSettings(
    body_bytes=1024,
    head_bytes=1024,
    buffered_bytes=2**20,
    head_seconds=10,
    body_stall_seconds=30,
    keep_alive_seconds=75,
)
GET = b"GET /a HTTP/1.1\r\nHost: r\r\n\r\n"
POST = b"POST /a?q=1 HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\nX-Thing: v\r\n\r\nhello"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.is_closed = self.is_aborted = self.is_reading_paused = self.is_half_closed = False

    def write(self, data: bytes) -> None:
        self.written += data
        self.writes += 1

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True

    def pause_reading(self) -> None:
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        self.is_reading_paused = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_half_closed = True


class FakeLoop:
    """Runs what was put off when the test says so."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def run(self) -> None:
        while self.soon:
            self.soon.pop(0)()


class FakeExchange:
    def __init__(self) -> None:
        self.events: list[str] = []

    def client_lost(self) -> None:
        self.events.append("lost")

    def client_paused(self) -> None:
        self.events.append("paused")

    def client_resumed(self) -> None:
        self.events.append("resumed")

    def tick(self, now: float) -> None:
        self.events.append("tick")

    def interrupt(self) -> None:
        self.events.append("interrupt")


@dataclass
class FakeApplication:
    """Answers at once, unless `holds`: then the test answers by `connection.respond_json`."""

    holds: bool = False
    refusal: Refusal | None = None
    accepted: int = 0
    served: list[Request] = field(default_factory=list)
    refused_with: list[int] = field(default_factory=list)
    exchange: FakeExchange = field(default_factory=FakeExchange)
    bodies: list[bytes] = field(default_factory=list)

    def accept(self, start: Start) -> object:
        self.accepted += 1
        if self.refusal is not None:
            raise self.refusal
        return "context"

    def serve(self, request: Request, connection: ClientConnection) -> None:
        self.served.append(request)
        self.bodies.append(request.body)
        if self.holds:
            connection.exchange = self.exchange
        else:
            connection.respond_json(b"{}")

    def refused(self, request: Request | None, refusal: Refusal) -> bytes:
        self.refused_with.append(refusal.status)
        return b"x-request-id: 1\r\n"


@dataclass
class Bench:
    application: FakeApplication
    transport: FakeTransport
    loop: FakeLoop
    connections: Connections
    connection: ClientConnection
    now: list[float]

    def feed(self, *pieces: bytes) -> bytes:
        """Give the connection these reads; returns what it has written since."""
        before = len(self.transport.written)
        for piece in pieces:
            self.connection.data_received(piece)
        self.loop.run()
        return self.transport.written[before:]

    def tick(self, seconds: float) -> None:
        self.now[0] += seconds
        self.connections.tick(self.now[0])


def bench(application: FakeApplication | None = None, limits: LimitSettings = LIMITS) -> Bench:
    application = application or FakeApplication()
    now = [100.0]
    connections = Connections(limits, lambda: now[0])
    loop, transport = FakeLoop(), FakeTransport()
    connection = ClientConnection(application, connections, loop)
    connection.connection_made(transport)
    return Bench(application, transport, loop, connections, connection, now)


def statuses(written: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", written)]


@pytest.mark.parametrize("message", [GET, POST, CHUNKED])
def test_a_message_may_be_cut_anywhere(message: bytes) -> None:
    for cut in range(1, len(message)):
        one = bench()
        assert statuses(one.feed(message[:cut], message[cut:])) == [200]
        assert one.application.bodies == [b"" if message is GET else b"hello"]
    byte_by_byte = bench()
    assert statuses(byte_by_byte.feed(*(message[i : i + 1] for i in range(len(message))))) == [200]
    assert byte_by_byte.connections.buffered_bytes == 0


def test_a_request_is_sorted_into_what_is_read_and_what_goes_on() -> None:
    one = bench()
    one.feed(POST)
    (request,) = one.application.served
    assert (request.method, request.path, request.query) == (b"POST", b"/a", b"q=1")
    assert request.head.forward == b"X-Thing: v\r\n"
    assert request.head.known == {b"host": b"r"}
    assert request.context == "context"


def test_an_answer_is_one_write() -> None:
    one = bench()
    one.feed(POST)
    assert one.transport.writes == 1


def test_pipelined_requests_are_served_one_at_a_time_and_in_order() -> None:
    one = bench(FakeApplication(holds=True))
    assert one.feed(POST + GET + GET) == b""
    assert len(one.application.served) == 1
    one.connection.respond_json(b'{"n":1}')
    one.loop.run()
    assert len(one.application.served) == 2
    one.connection.respond_json(b'{"n":2}')
    one.loop.run()
    one.connection.respond_json(b'{"n":3}')
    assert [part[:7] for part in one.transport.written.split(b"\r\n\r\n")[1:]] == [b'{"n":1}', b'{"n":2}', b'{"n":3}']


def test_a_request_does_not_overtake_one_that_has_its_turn_next() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(POST, POST.replace(b"hello", b"later"))
    one.connection.respond_json(b"1")  # the second request's turn comes with the next round of the loop
    one.connection.data_received(POST.replace(b"hello", b"third"))
    one.loop.run()
    one.connection.respond_json(b"2")
    one.loop.run()
    assert one.application.bodies == [b"hello", b"later", b"third"]


@pytest.mark.parametrize("message", [POST, GET, CHUNKED])
def test_a_request_like_the_last_may_be_cut_anywhere_and_followed_by_anything(message: bytes) -> None:
    for cut in range(1, len(message)):
        one = bench()
        one.feed(POST, POST, message[:cut], message[cut:], POST, message + POST, POST)
        body = b"" if message is GET else b"hello"
        assert one.application.bodies == [b"hello", b"hello", body, b"hello", body, b"hello", b"hello"]
        assert one.connections.buffered_bytes == 0


def test_a_client_that_sends_far_ahead_has_to_wait() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(POST)
    for _ in range(60):
        one.feed(GET)
    assert one.transport.is_reading_paused
    for _ in range(61):
        one.connection.respond_json(b"{}")
        one.loop.run()
    assert not one.transport.is_reading_paused
    assert statuses(one.transport.written) == [200] * 61


MALFORMED = [
    b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 5, 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: +5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 5 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nX: a\r\n b\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nX : a\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nX: a\nY: b\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nX: a\rb\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nX: a\0b\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nHost: s\r\n\r\n",
    b"GET /a HTTP/1.1\r\nX: y\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET /a HTTP/1.1\nHost: r\n\n",
    b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"CONNECT r:80 HTTP/1.1\r\nHost: r\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.mark.parametrize("data", MALFORMED)
def test_what_could_be_read_in_two_ways_is_400_and_the_end_of_the_connection(data: bytes) -> None:
    one = bench()
    written = one.feed(data + GET)
    assert statuses(written) == [400]
    assert b"connection: close" in written
    assert b'"code":"malformed_http"' in written
    assert one.application.served == []
    assert one.transport.is_half_closed
    assert one.feed(GET) == b""
    assert one.connections.buffered_bytes == 0


def test_another_version_of_http_is_505() -> None:
    assert statuses(bench().feed(b"GET /a HTTP/2.0\r\nHost: r\r\n\r\n")) == [505]


def test_a_target_in_absolute_form_is_its_path() -> None:
    one = bench()
    one.feed(b"GET http://other/a/b?c=d HTTP/1.1\r\nHost: r\r\n\r\n")
    assert (one.application.served[0].path, one.application.served[0].query) == (b"/a/b", b"c=d")


def test_a_head_over_the_limit_is_431_with_the_limit() -> None:
    one = bench()
    written = one.feed(b"GET /a HTTP/1.1\r\nHost: r\r\nX: " + b"y" * 2000)
    assert statuses(written) == [431]
    assert b"limit of 1024 bytes" in written
    whole = bench().feed(b"GET /a HTTP/1.1\r\nHost: r\r\nX: " + b"y" * 2000 + b"\r\n\r\n")
    assert statuses(whole) == [431]


def test_a_small_head_with_a_large_body_in_one_read_is_not_a_large_head() -> None:
    body = b"x" * 1024
    assert statuses(bench().feed(b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 1024\r\n\r\n" + body)) == [200]


def test_a_body_over_the_limit_is_dropped_answered_and_the_connection_goes_on() -> None:
    for framing in (
        b"Content-Length: 2000\r\n\r\n" + b"x" * 2000,
        b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n",
    ):
        one = bench()
        written = one.feed(b"POST /a HTTP/1.1\r\nHost: r\r\n" + framing, GET)
        assert statuses(written) == [413, 200]
        assert b"limit of 1024 bytes" in written
        assert one.connections.buffered_bytes == 0


def test_a_body_far_over_the_limit_ends_the_connection() -> None:
    one = bench()
    written = one.feed(b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 99999\r\n\r\n", *[b"x" * 1000] * 6)
    assert statuses(written) == [413]
    assert b"connection: close" in written
    assert one.transport.is_half_closed


def test_bodies_of_all_clients_together_are_bounded() -> None:
    limits = LIMITS.model_copy(update={"buffered_bytes": 1500})
    application = FakeApplication(holds=True)
    one = bench(application, limits)
    body = b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
    one.feed(body)
    other, transport = ClientConnection(application, one.connections, one.loop), FakeTransport()
    other.connection_made(transport)
    other.data_received(body)
    assert statuses(transport.written) == [503]
    assert b"retry-after: 1" in transport.written
    one.connection.respond_json(b"{}")
    assert one.connections.buffered_bytes == 0
    other.data_received(GET)
    assert len(application.served) == 2


def test_a_refused_head_gets_its_answer_after_its_body_which_is_not_kept() -> None:
    one = bench(FakeApplication(refusal=Refusal(401, "no")))
    assert one.feed(POST[:-2]) == b""
    assert one.connections.buffered_bytes == 0
    assert statuses(one.feed(POST[-2:])) == [401]
    one.application.refusal = None
    assert statuses(one.feed(GET)) == [200]


def test_a_client_that_waits_for_leave_to_send_gets_it_or_the_refusal() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: r\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    one = bench()
    assert one.feed(head) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert statuses(one.feed(b"hello")) == [200]
    refused = bench(FakeApplication(refusal=Refusal(401, "no")))
    written = refused.feed(head)
    assert statuses(written) == [401]
    assert b"connection: close" in written


def test_connection_close_is_obeyed_and_what_follows_it_is_ignored() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(b"GET /a HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n" + GET)
    one.connection.respond_json(b"{}")
    assert statuses(one.transport.written) == [200]
    assert b"connection: close" in one.transport.written
    assert one.transport.is_closed
    assert one.application.refused_with == []


def test_http_1_0_gets_no_chunks_and_stays_only_if_it_asks() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    one.connection.start_response(b"HTTP/1.1 200 OK\r\n", b"a")
    one.connection.write(b"b")
    one.connection.end(b"c")
    assert one.transport.written == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"
    assert one.transport.is_closed
    kept = bench()
    assert b"connection: keep-alive" in kept.feed(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert not kept.transport.is_closed
    closed = bench()
    closed.feed(b"GET /a HTTP/1.0\r\n\r\n")
    assert closed.transport.is_closed


def test_an_answer_of_unknown_length_is_chunked() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(GET)
    one.connection.start_response(b"HTTP/1.1 200 OK\r\n", b"a" * 17)
    one.connection.write(b"")
    one.connection.end()
    assert one.transport.written == (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n11\r\n" + b"a" * 17 + b"\r\n0\r\n\r\n"
    )


def test_an_answer_that_is_cut_has_no_last_chunk_and_closes() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(GET)
    one.connection.start_response(b"HTTP/1.1 200 OK\r\n", b"")
    one.connection.cut(b"oh")
    assert one.transport.written.endswith(b"2\r\noh\r\n")
    assert one.transport.is_closed


def test_head_gets_the_length_and_no_body() -> None:
    one = bench()
    written = one.feed(b"HEAD /a HTTP/1.1\r\nHost: r\r\n\r\n")
    assert b"content-length: 2" in written
    assert written.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("holds", [True, False])
def test_a_client_that_goes_is_told_to_the_exchange_once(holds: bool) -> None:
    one = bench(FakeApplication(holds=holds))
    one.feed(POST)
    one.connection.connection_lost(None)
    assert one.application.exchange.events == (["lost"] if holds else [])
    assert one.connections.all == set()
    assert one.connections.buffered_bytes == 0
    one.connection.respond_json(b"late")
    one.connection.write(b"late")
    one.connection.end(b"late")
    assert b"late" not in one.transport.written


def test_a_half_closed_client_with_a_request_running_is_gone() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(POST)
    one.connection.eof_received()
    assert one.transport.is_aborted


def test_a_client_that_is_lost_while_it_sends_leaves_nothing_behind() -> None:
    one = bench()
    one.feed(POST[:-2])
    assert one.connections.buffered_bytes == 3
    one.connection.connection_lost(None)
    assert one.connections.buffered_bytes == 0


def test_back_pressure_reaches_the_exchange() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(POST)
    one.connection.pause_writing()
    assert one.connection.is_write_paused
    one.connection.resume_writing()
    assert one.application.exchange.events == ["paused", "resumed"]


def test_an_idle_connection_is_closed_without_a_word_and_a_slow_request_with_408() -> None:
    new = bench()
    new.tick(9.9)
    assert not new.transport.is_closed
    new.tick(0.2)
    assert new.transport.is_closed
    assert new.transport.written == b""
    idle = bench()
    idle.feed(GET)
    idle.tick(74)
    assert not idle.transport.is_closed
    idle.tick(2)
    assert idle.transport.is_closed
    for start, seconds, what in ((GET[:10], 10, b"headers"), (POST[:-2], 30, b"body")):
        slow = bench()
        slow.feed(start)
        slow.tick(seconds - 1)
        assert slow.transport.written == b""
        slow.tick(2)
        assert statuses(slow.transport.written) == [408]
        assert what in slow.transport.written
        slow.tick(LINGER_SECONDS + 1)
        assert slow.transport.is_aborted


def test_a_body_that_trickles_is_not_stalled() -> None:
    one = bench()
    one.feed(POST[:-5])
    for byte in b"hell":
        one.tick(29)
        one.feed(bytes([byte]))
    assert statuses(one.feed(b"o")) == [200]


def test_time_belongs_to_the_exchange_while_it_lasts() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(POST)
    one.tick(10_000)
    assert one.application.exchange.events == ["tick"]
    assert not one.transport.is_closed


def test_draining_closes_idle_connections_and_the_others_after_their_answer() -> None:
    idle, busy = bench(), bench(FakeApplication(holds=True))
    idle.feed(GET)
    busy.feed(GET)
    idle.connections.drain()
    busy.connections.drain()
    assert idle.transport.is_closed
    assert not busy.transport.is_closed
    busy.connection.respond_json(b"{}")
    assert b"connection: close" in busy.transport.written
    assert busy.transport.is_closed


def test_one_connection_too_many_is_told_so() -> None:
    one = bench(limits=LIMITS.model_copy(update={"connections": 1}))
    other, transport = ClientConnection(one.application, one.connections, one.loop), FakeTransport()
    other.connection_made(transport)
    assert statuses(transport.written) == [503]
    assert json.loads(transport.written.split(b"\r\n\r\n")[1])["error"]["message"].startswith("The router serves 1")


def test_a_start_like_the_last_one_is_not_judged_again_and_another_one_is() -> None:
    one = bench()
    one.feed(POST, POST.replace(b"Content-Length: 5", b"Content-Length: 2").replace(b"hello", b"no"), POST)
    assert one.application.accepted == 1
    assert one.application.bodies == [b"hello", b"no", b"hello"]
    for other in (
        POST.replace(b"X-Thing: v", b"X-Thing: w"),
        POST.replace(b"/a?", b"/b?"),
        POST.replace(b"POST", b"PUT"),
        POST.replace(b"X-Thing: v", b"X-Thing: v\r\nConnection: keep-alive"),
    ):
        before = one.application.accepted
        one.feed(other)
        assert one.application.accepted == before + 1
    assert [request.method for request in one.application.served[-2:]] == [b"PUT", b"POST"]


def test_what_was_refused_is_judged_again() -> None:
    one = bench(FakeApplication(refusal=Refusal(401, "no")))
    one.feed(POST, POST)
    assert one.application.accepted == 2


def test_a_length_over_the_limit_is_seen_also_behind_an_accepted_start() -> None:
    one = bench()
    large = POST.replace(b"Content-Length: 5", b"Content-Length: 2000").replace(b"hello", b"x" * 2000)
    assert statuses(one.feed(POST, large, POST)) == [200, 413, 200]


def test_the_same_headers_in_http_1_0_are_another_start() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(GET)
    one.connection.respond_json(b"{}")
    one.feed(GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert one.application.served[1].is_http_1_0
