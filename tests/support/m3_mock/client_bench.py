"""The client's end of a connection on a fake transport, loop and clock."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from m3_router.config import LimitSettings
from m3_router.errors import Refusal
from m3_router.http.client_end import ClientConnection
from m3_router.http.connections import Connections
from m3_router.http.messages import Application, Exchange, Request, Start

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

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

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


class FakeExchange(Exchange):
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
class FakeApplication(Application):
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
