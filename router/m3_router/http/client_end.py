"""The client's end of a connection: bytes into requests, one at a time, and answers into bytes.

Owns the life of one accepted connection: parsing, limits and time-outs while a request is read, pipelined requests
(which wait for their turn), and the framing of answers. What a request means is the application's business. An
exchange lives shorter than the connection; it is told when its client leaves, stops reading, or goes on.

Called by the event loop (`asyncio.Protocol`), by the exchange (`start_response`, `write`, `end`, `respond`), and by
`Connections.tick` a few times a second, which is how time-outs cost nothing per request.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from m3_router.config import LimitSettings
from m3_router.errors import Refusal, malformed
from m3_router.http import wire
from m3_router.http.messages import Application, Exchange, Request

# A body over the limit is read and dropped up to this many times the limit, so that the connection stays usable.
DRAIN_FACTOR = 4
LINGER_SECONDS = 2.0  # how long a refused client may go on sending before the connection is closed under it


class Connections:
    """All connections of a server, and what they hold together. `clock` is monotonic, in seconds."""

    def __init__(self, limits: LimitSettings, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.clock = clock
        self.all: set[ClientConnection] = set()
        self.buffered_bytes = 0  # request bodies in memory
        self.is_draining = False
        self._emptied = asyncio.Event()

    def discard(self, connection: "ClientConnection") -> None:
        """A connection is lost."""
        self.all.discard(connection)
        if not self.all:
            self._emptied.set()

    async def wait_until_empty(self) -> None:
        """Until no connection is open."""
        while self.all:
            self._emptied.clear()
            await self._emptied.wait()

    def tick(self, now: float) -> None:
        """Enforce every time-out that has passed."""
        for connection in list(self.all):
            connection.tick(now)

    def drain(self) -> None:
        """Close what is idle now, and the rest after the answer it waits for."""
        self.is_draining = True
        for connection in list(self.all):
            connection.close_if_idle()

    def interrupt(self) -> None:
        """End every connection now; clients that wait for an answer are told why."""
        for connection in list(self.all):
            connection.interrupt()


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, application: Application, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        # fixed
        self._application = application
        self._connections = connections
        self._limits = connections.limits
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        # the connection
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # set by connection_made, before all else
        self._deadline = 0.0
        self._is_lost = False
        self._is_closing = False  # nothing more is read from the client
        self._is_write_paused = False
        self._is_read_paused = False
        # the request being read
        self._target = b""
        self._headers: wire.Headers = []
        self._head_bytes = 0
        self._request: Request | None = None  # its head is complete
        # the request being answered, and those that came before it was
        self.exchange: Exchange | None = None
        self._answering: Request | None = None
        self._ahead: deque[Request] = deque()
        self._ahead_bytes = 0
        self._is_chunked = False

    # ---- event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._deadline = self._connections.clock() + self._limits.head_seconds
        connections = self._connections
        connections.all.add(self)
        if len(connections.all) > self._limits.connections:
            message = f"The router serves {self._limits.connections} connections already."
            self._refuse(Refusal(503, message, kind="server_error", retry_after_seconds=1, closes=True))

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = self._is_closing = True
        self._connections.discard(self)
        self._drop_body(self._request)
        for request in self._ahead:
            self._drop_body(request)
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
        if self._request is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            refusal = error.__context__
            if not isinstance(refusal, Refusal):
                raise
            self._stop_reading(refusal)
            return
        except httptools.HttpParserError as error:
            # Whatever follows `Connection: close` is not ours to read, and no fault of the request before it.
            self._stop_reading(malformed(f"Not a valid HTTP/1.1 request: {error}."))
            return
        if self._request is None and self._head_bytes > self._limits.head_bytes:
            self._stop_reading(self._head_too_large())
        elif self._answering is None:
            self._touch()
        elif self._ahead or self._request is not None:
            self._hold_ahead(len(data))

    def pause_writing(self) -> None:
        self._is_write_paused = True
        if self.exchange is not None:
            self.exchange.client_paused()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self.exchange is not None:
            self.exchange.client_resumed()

    # ---- parser

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head_bytes > self._limits.head_bytes:  # which also counts what came with the head in one read
            head_bytes = len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._headers)
            if head_bytes > self._limits.head_bytes:
                raise self._head_too_large()
        self._head_bytes = 0
        headers, target = self._headers, self._target
        self._headers, self._target = [], b""
        parser = self._parser
        head = wire.Head(headers, wire.REQUEST_ENDS_HERE)
        known = head.known
        keep_alive = parser.should_keep_alive()
        # To go on without a word in `Connection` is the mark of HTTP/1.1; asking for the version makes a string.
        version = "1.1" if keep_alive and b"connection" not in known else parser.get_http_version()
        if version != "1.1":
            _check_old_version(version, known)
        elif b"host" not in known:
            raise malformed("The Host header is missing.")
        if parser.should_upgrade():  # the parser stops here, and would take what follows for no body of this request
            raise malformed("Upgrading the connection is not supported; send plain HTTP/1.1 without Upgrade.")
        if b"transfer-encoding" in known and known[b"transfer-encoding"].lower() != b"chunked":
            raise malformed("The only Transfer-Encoding that is supported is chunked.")
        if not target.startswith(b"/"):
            target = _origin_form(target)

        request = Request(parser.get_method(), target, head, version == "1.0", keep_alive)
        self._request = request
        try:
            self._application.accept_head(request)
            if b"content-length" in known and int(known[b"content-length"]) > self._limits.body_bytes:
                raise self._body_too_large()
        except Refusal as refusal:
            request.refusal = refusal
        if b"expect" in known:
            self._answer_expectation(request)

    def on_body(self, data: bytes) -> None:
        request = self._request
        if request is None:
            return
        size = len(data)
        request.size += size
        if request.refusal is None:
            if request.size > self._limits.body_bytes:
                self._drop_body(request)
                request.refusal = self._body_too_large()
            elif self._connections.buffered_bytes + size > self._limits.buffered_bytes:
                self._drop_body(request)
                message = f"The router holds {self._limits.buffered_bytes} bytes of requests already."
                request.refusal = Refusal(503, message, kind="server_error", retry_after_seconds=1)
            else:
                request.chunks.append(data)
                self._connections.buffered_bytes += size
        elif request.size > DRAIN_FACTOR * self._limits.body_bytes:
            request.refusal.closes = True
            raise request.refusal

    def on_message_complete(self) -> None:
        request = self._request
        if request is None or self._is_closing:
            return
        self._request = None
        chunks = request.chunks
        request.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        request.chunks = chunks[:0]
        if self._answering is None:
            self._serve(request)
        else:
            self._ahead.append(request)

    # ---- exchange

    @property
    def is_write_paused(self) -> bool:
        """Whether the client reads more slowly than we write."""
        return self._is_write_paused

    def start_response(self, head: bytes, body: bytes = b"", *, is_whole: bool) -> None:
        """Write status and header lines (no framing among them) and body. Not whole: `write` and `end` follow."""
        request = self._answering
        if request is None or self._is_lost:
            return
        closes = self._is_last_answer(request)
        if is_whole:
            framing = b"content-length: %d\r\n" % len(body)
        elif request.is_http_1_0:
            framing, request.keep_alive, closes = b"", False, True
        else:
            framing = b"transfer-encoding: chunked\r\n"
            self._is_chunked = True
            body = wire.chunk(body)
        if closes:
            framing += b"connection: close\r\n"
        elif request.is_http_1_0:
            framing += b"connection: keep-alive\r\n"
        if request.method == b"HEAD":
            body = b""
        self._transport.write(head + framing + b"\r\n" + body)
        if is_whole:
            self._next(closes)

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
        self._drop_body(self._answering)

    def respond(self, refusal: Refusal, headers: bytes = b"") -> None:
        """Answer with a refusal. `headers` are whole lines."""
        self._send_json(refusal.status, refusal.body(), headers + _refusal_headers(refusal), refusal.closes)

    def respond_json(self, body: bytes, headers: bytes = b"", status: int = 200) -> None:
        """Answer with a JSON body of our own."""
        self._send_json(status, body, headers, closes=False)

    # ---- time

    def tick(self, now: float) -> None:
        """Enforce the time-out of what the connection waits for."""
        if self.exchange is not None:
            self.exchange.tick(now)
        elif now >= self._deadline and self._answering is None:
            if self._is_closing:
                self._transport.abort()
            elif self._request is None and not self._head_bytes:
                self._close()  # idle between requests: nobody waits for an answer
            else:
                what = "headers" if self._request is None else "body"
                self._refuse(Refusal(408, f"The request's {what} did not come in time.", code="timeout", closes=True))

    def interrupt(self) -> None:
        """End now: the server stops."""
        if self.exchange is not None:
            self.exchange.interrupt()
        self._close()

    def close_if_idle(self) -> None:
        """Close unless a request is being read or answered."""
        if self._answering is None and self._request is None and not self._head_bytes:
            self._close()

    # ---- inside

    def _serve(self, request: Request) -> None:
        self._answering = request
        self._is_chunked = False
        if request.refusal is None:
            self._application.serve(request, self)
        else:
            self.respond(request.refusal, self._application.refused(request, request.refusal))

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
        self._drop_body(self._answering)
        self._answering = None

    def _drop_body(self, request: Request | None) -> None:
        if request is None:
            return
        if request.body:
            self._connections.buffered_bytes -= len(request.body)
            request.body = b""
        elif request.chunks:
            self._connections.buffered_bytes -= sum(len(data) for data in request.chunks)
            request.chunks = []

    def _is_last_answer(self, request: Request) -> bool:
        is_last_read = self._is_closing and not self._ahead
        return not request.keep_alive or is_last_read or self._connections.is_draining

    def _hold_ahead(self, size: int) -> None:
        """Bytes of later requests, while one is answered. Beyond the size of a head, the client has to wait."""
        self._ahead_bytes += size
        if self._ahead_bytes > self._limits.head_bytes and not self._is_read_paused:
            self._is_read_paused = True
            self._transport.pause_reading()

    def _touch(self) -> None:
        limits = self._limits
        if self._request is not None:
            seconds = limits.body_stall_seconds
        elif self._head_bytes:
            seconds = limits.head_seconds
        else:
            seconds = limits.keep_alive_seconds
        self._deadline = self._connections.clock() + seconds

    def _answer_expectation(self, request: Request) -> None:
        if request.refusal is not None:
            request.refusal.closes = True  # whether the body still comes cannot be known
            raise request.refusal
        if self._answering is None and not request.is_http_1_0:
            self._transport.write(wire.CONTINUE)

    def _stop_reading(self, refusal: Refusal) -> None:
        """What came cannot be read on. Requests that were complete before it are still answered."""
        request, self._request = self._request, None
        self._drop_body(request)
        if self._is_closing:
            return
        if self._answering is not None:
            self._is_closing = True
        else:
            self._refuse(refusal, request)

    def _refuse(self, refusal: Refusal, request: Request | None = None) -> None:
        """Answer outside of any request's turn, and close."""
        headers = self._application.refused(request, refusal) + _refusal_headers(refusal)
        self._request = None
        self._transport.write(_json_answer(refusal.status, refusal.body(), headers, closes=True))
        self._linger()

    def _send_json(self, status: int, body: bytes, headers: bytes, closes: bool) -> None:
        request = self._answering
        if request is None or self._is_lost:
            return
        closes = closes or self._is_last_answer(request)
        answer = _json_answer(status, body, headers, closes)
        if request.method == b"HEAD":
            answer = answer[: -len(body)] if body else answer
        elif request.is_http_1_0 and not closes:
            answer = answer.replace(b"\r\n", b"\r\nconnection: keep-alive\r\n", 1)
        self._transport.write(answer)
        self._next(closes)

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

    def _head_too_large(self) -> Refusal:
        message = f"The request's headers exceed the limit of {self._limits.head_bytes} bytes."
        return Refusal(431, message, code="headers_too_large", closes=True)

    def _body_too_large(self) -> Refusal:
        message = f"The request's body exceeds the limit of {self._limits.body_bytes} bytes."
        return Refusal(413, message, code="body_too_large")


def _origin_form(target: bytes) -> bytes:
    """`/path?query` of a target in absolute form (RFC 9112, 3.2.2). Raises Refusal (400)."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError as error:
        raise malformed("The request target is not a path.") from error
    if url.path is None:
        raise malformed("The request target is not a path.")
    path: bytes = url.path
    return path + b"?" + url.query if url.query is not None else path


def _check_old_version(version: str, known: dict[bytes, bytes]) -> None:
    """Raise Refusal unless this is HTTP/1.0 as it is still spoken."""
    if version != "1.0":
        raise Refusal(505, f"HTTP/{version} is not supported; send HTTP/1.1.", closes=True)
    if b"transfer-encoding" in known:
        raise malformed("HTTP/1.0 has no Transfer-Encoding.")


def _refusal_headers(refusal: Refusal) -> bytes:
    if refusal.retry_after_seconds is None:
        return b""
    return b"retry-after: %d\r\n" % refusal.retry_after_seconds


def _json_answer(status: int, body: bytes, headers: bytes, closes: bool) -> bytes:
    return b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
        wire.status_line(status),
        len(body),
        b"connection: close\r\n" if closes else b"",
        headers,
        body,
    )
