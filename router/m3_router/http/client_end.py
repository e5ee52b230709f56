"""The client's end of a connection: bytes into requests, one at a time, and answers into bytes.

Owns the life of one accepted connection: time-outs while a request is read (by `request_reader`), pipelined requests
(which wait for their turn), and the framing of answers. What a request means is the application's business. An
exchange lives shorter than the connection; it is told when its client leaves, stops reading, or goes on.

Called by the event loop (`asyncio.Protocol`), by the exchange (`start_response`, `write`, `end`, `respond`), and by
`Connections.tick` a few times a second, which is how time-outs cost nothing per request.
"""

import asyncio
from collections import deque
from typing import Final, cast

from m3_router.errors import Refusal
from m3_router.http import wire
from m3_router.http.connections import Connections
from m3_router.http.messages import Application, Client, Exchange, Request
from m3_router.http.request_reader import RequestReader, RequestSink

_JSON_OK: Final = wire.status_line(200) + b"content-type: application/json\r\n"
LINGER_SECONDS: Final = 2.0  # how long a refused client may go on sending before the connection is closed under it


class ClientConnection(asyncio.Protocol, Client, RequestSink):
    """One client's connection."""

    def __init__(self, application: Application, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        # fixed
        self._application = application
        self._connections = connections
        self._limits = connections.limits
        self._loop = loop
        self._reader = RequestReader(application, connections, self)
        # the connection
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # set by connection_made, before all else
        self._deadline = 0.0
        self._is_lost = False
        self._is_closing = False  # nothing more is read from the client
        self._is_write_paused = False
        self._is_read_paused = False
        self._is_in_head = False  # the deadline is that of a head, which has begun
        # the request being answered, and those that came before it was
        self.exchange: Exchange | None = None
        self._answering: Request | None = None
        self._ahead: deque[Request] = deque()
        self._ahead_bytes = 0
        self._is_chunked = False

    # ---- event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)  # write at once, not when all that can be read was answered
        self._deadline = self._connections.clock() + self._limits.head_seconds
        connections = self._connections
        connections.all.add(self)
        if len(connections.all) > self._limits.connections:
            message = f"The router serves {self._limits.connections} connections already."
            self._refuse(Refusal(503, message, kind="server_error", retry_after_seconds=1, closes=True))

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = self._is_closing = True
        self._connections.discard(self)
        self._reader.close()
        for request in self._ahead:
            self._connections.release(request)
        self._ahead.clear()
        exchange = self.exchange
        self._finish_answer()
        if exchange is not None:
            exchange.client_lost()

    def eof_received(self) -> bool:
        if self._answering is not None:
            self._transport.abort()  # a client that stops sending is gone; what it would not read is not flushed first
        return False  # closes the connection

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        reader = self._reader
        try:
            reader.feed(data, is_alone=self._answering is None and not self._ahead)
        except Refusal as refusal:
            self._stop_reading(refusal)
            return
        if self._answering is None:
            self._touch()
        elif self._ahead or reader.is_in_body:
            self._hold_ahead(len(data))

    def pause_writing(self) -> None:
        self._is_write_paused = True
        if self.exchange is not None:
            self.exchange.client_paused()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self.exchange is not None:
            self.exchange.client_resumed()

    # ---- reader

    def take(self, request: Request) -> None:
        """A whole request: its turn has come, or it waits for the answers of those before it."""
        if self._is_closing:
            self._connections.release(request)
        elif self._answering is None and not self._ahead:
            self._serve(request)
        else:
            self._ahead.append(request)

    def expects_continue(self, request: Request) -> None:
        """Let the client send its body."""
        if self._answering is None and not request.is_http_1_0:
            self._transport.write(wire.CONTINUE)

    # ---- exchange

    @property
    def is_write_paused(self) -> bool:
        """Whether the client reads more slowly than we write."""
        return self._is_write_paused

    def respond(self, head: bytes, body: bytes) -> None:
        """Write a whole answer: status and header lines (none of them about framing), and the body."""
        request = self._answering
        if request is None or self._is_lost:
            return
        closes = self._is_last_answer(request)
        length = len(body)
        if request.method == b"HEAD":
            body = b""
        if closes or request.is_http_1_0:
            head += _connection_header(request, closes)
        self._transport.write(b"".join((head, b"content-length: ", str(length).encode(), b"\r\n\r\n", body)))
        self._next(closes)

    def start_response(self, head: bytes, body: bytes = b"") -> None:
        """Write status and header lines, and the beginning of a body; `write` and `end` follow."""
        request = self._answering
        if request is None or self._is_lost:
            return
        if request.is_http_1_0:
            request.keep_alive = False  # the end of the connection is the end of the body
        else:
            head += b"transfer-encoding: chunked\r\n"
            self._is_chunked = True
            body = wire.chunk(body)
        closes = self._is_last_answer(request)
        self._transport.write(head + _connection_header(request, closes) + b"\r\n" + body)

    def write(self, data: bytes) -> None:
        """More of a body that was begun without its length."""
        if data and not self._is_lost:
            self._transport.write(wire.chunk(data) if self._is_chunked else data)

    def end(self, data: bytes = b"") -> None:
        """The last of such a body."""
        request = self._answering
        if request is None or self._is_lost:
            return
        data = wire.chunk(data) + wire.LAST_CHUNK if self._is_chunked else data
        if data:
            self._transport.write(data)
        self._next(self._is_last_answer(request))

    def cut(self, data: bytes = b"") -> None:
        """End such a body so that the client sees that it is incomplete: without a last chunk, and closed."""
        self.write(data)
        self._finish_answer()
        self._close()

    def abort(self) -> None:
        """Close at once; the exchange is told that its client is lost."""
        self._transport.abort()

    def release_body(self) -> None:
        """The request's body will not be needed again."""
        if self._answering is not None:
            self._connections.release(self._answering)

    def refuse(self, refusal: Refusal, headers: bytes = b"") -> None:
        """Answer with a refusal. `headers` are whole lines."""
        if refusal.closes and self._answering is not None:
            self._answering.keep_alive = False
        self.respond(wire.refusal_head(refusal) + headers, refusal.body())

    def respond_json(self, body: bytes) -> None:
        """Answer 200 with a JSON body of our own."""
        self.respond(_JSON_OK, body)

    # ---- time

    def tick(self, now: float) -> None:
        """Enforce the time-out of what the connection waits for."""
        if self.exchange is not None:
            self.exchange.tick(now)
        elif now >= self._deadline and self._answering is None:
            if self._is_closing:
                self._transport.abort()
            elif self._reader.is_idle:
                self._close()  # idle between requests: nobody waits for an answer
            else:
                what = "body" if self._reader.is_in_body else "headers"
                self._refuse(Refusal(408, f"The request's {what} did not come in time.", code="timeout", closes=True))

    def interrupt(self) -> None:
        """End now: the server stops."""
        if self.exchange is not None:
            self.exchange.interrupt()
        self._close()

    def close_if_idle(self) -> None:
        """Close unless a request is being read or answered."""
        if self._answering is None and self._reader.is_idle:
            self._close()

    # ---- inside

    def _serve(self, request: Request) -> None:
        self._answering = request
        self._is_chunked = False
        if request.refusal is None:
            self._application.serve(request, self)
        else:
            self.refuse(request.refusal, self._application.refused(request, request.refusal))

    def _next(self, closes: bool) -> None:
        """The answer is out: close, or take the next request."""
        self._finish_answer()
        if closes:
            self._close()
            return
        if self._ahead:
            # Not from here: a thousand pipelined requests would nest as deeply.
            self._loop.call_soon(self._serve_ahead)
            return
        self._ahead_bytes = 0
        if self._is_read_paused and not self._is_closing:
            self._is_read_paused = False
            self._transport.resume_reading()
        self._touch()

    def _serve_ahead(self) -> None:
        if self._ahead and self._answering is None and not self._is_lost:
            self._serve(self._ahead.popleft())

    def _finish_answer(self) -> None:
        self.exchange = None
        request, self._answering = self._answering, None
        if request is not None:
            self._connections.release(request)

    def _is_last_answer(self, request: Request) -> bool:
        if not request.keep_alive or self._connections.is_draining:
            return True
        return self._is_closing and not self._ahead  # nothing more was read

    def _hold_ahead(self, size: int) -> None:
        """Bytes of later requests, while one is answered. Beyond the size of a head, the client has to wait."""
        self._ahead_bytes += size
        if self._ahead_bytes > self._limits.head_bytes and not self._is_read_paused:
            self._is_read_paused = True
            self._transport.pause_reading()

    def _touch(self) -> None:
        limits = self._limits
        if self._reader.is_idle:
            seconds = limits.keep_alive_seconds
        elif self._reader.is_in_body:
            seconds = limits.body_stall_seconds
        else:
            if self._is_in_head:
                return  # a whole head has its time, however it drips
            seconds = limits.head_seconds
        self._is_in_head = not self._reader.is_idle and not self._reader.is_in_body
        self._deadline = self._connections.clock() + seconds

    def _stop_reading(self, refusal: Refusal) -> None:
        """What came cannot be read on. Requests that were complete before it are still answered."""
        request = self._reader.drop()
        if self._is_closing:
            return
        if self._answering is not None:
            self._is_closing = True
        else:
            self._refuse(refusal, request)

    def _refuse(self, refusal: Refusal, request: Request | None = None) -> None:
        """Answer outside of any request's turn, and close."""
        head = wire.refusal_head(refusal) + self._application.refused(request, refusal)
        body = refusal.body()
        self._transport.write(b"%bcontent-length: %d\r\nconnection: close\r\n\r\n%b" % (head, len(body), body))
        self._linger()

    def _close(self) -> None:
        self._is_closing = True
        self._deadline = self._connections.clock() + self._limits.idle_seconds  # for the client to read what is out
        self._transport.close()

    def _linger(self) -> None:
        """Close, but read on for a moment: a reset while the client sends would destroy the answer it has to read."""
        self._is_closing = True
        self._deadline = self._connections.clock() + LINGER_SECONDS
        if self._transport.can_write_eof():
            self._transport.write_eof()


def _connection_header(request: Request, closes: bool) -> bytes:
    if closes:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if request.is_http_1_0 else b""
