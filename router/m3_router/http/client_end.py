"""The client's end of a connection: bytes into requests, one at a time, and answers into bytes.

Owns the life of one accepted connection: parsing, limits and time-outs while a request is read, pipelined requests
(which wait for their turn), and the framing of answers. What a request means is the application's business. An
exchange lives shorter than the connection; it is told when its client leaves, stops reading, or goes on.

Called by the event loop (`asyncio.Protocol`), by the exchange (`start_response`, `write`, `end`, `respond`), and by
`Connections.tick` a few times a second, which is how time-outs cost nothing per request.
"""

import asyncio
from collections import deque
from typing import Final, cast

import httptools

from m3_router.errors import Refusal, malformed
from m3_router.http import wire
from m3_router.http.alike import RequestsAlike
from m3_router.http.connections import Connections
from m3_router.http.messages import Application, Exchange, Request, Start

# A body over the limit is read and dropped up to this many times the limit, so that the connection stays usable.
DRAIN_FACTOR: Final = 4
_JSON_OK: Final = wire.status_line(200) + b"content-type: application/json\r\n"
LINGER_SECONDS: Final = 2.0  # how long a refused client may go on sending before the connection is closed under it


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
        self._body_bytes = 0  # as announced
        self._accepted: Start | None = None  # the last request's, if one that is equal may be taken for it
        self._request: Request | None = None  # its head is complete
        self._alike: RequestsAlike | None = None  # requests like this need no parser, unless it is in the middle of one
        self._is_parsing = False
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
        was_parsing = self._is_parsing
        if self._alike is not None and not was_parsing and self._answering is None and not self._ahead:
            body = self._alike.body(data)
            if body is not None and self._serve_alike(self._alike.start, body):
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
            return
        if not was_parsing and not self._is_parsing and self._accepted is not None:
            self._alike = RequestsAlike.learn(data, self._accepted)
        if self._answering is None:
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

    def on_message_begin(self) -> None:
        self._is_parsing = True

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 14 and name.lower() == b"content-length":
            self._body_bytes = int(value)  # the parser has refused all but one decimal number
        else:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head_bytes > self._limits.head_bytes:  # which also counts what came with the head in one read
            head_bytes = len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._headers)
            if head_bytes > self._limits.head_bytes:
                raise self._head_too_large()
        headers, target, body_bytes = self._headers, self._target, self._body_bytes
        self._headers, self._target = [], b""
        self._head_bytes = self._body_bytes = 0
        known = self._accepted
        if (
            known is not None
            and headers == known.headers
            and target == known.target
            and self._parser.should_keep_alive()
            and self._parser.get_method() == known.method
        ):
            request = self._request = Request(known)
        else:
            request = self._read_start(headers, target)
        if body_bytes > self._limits.body_bytes and request.refusal is None:
            request.refusal = self._body_too_large()

    def on_body(self, data: bytes) -> None:
        request = self._request
        if request is None:
            return
        size = len(data)
        request.size += size
        connections = self._connections
        if (
            request.refusal is None
            and request.size <= self._limits.body_bytes
            and connections.buffered_bytes + size <= self._limits.buffered_bytes
        ):
            request.chunks.append(data)
            connections.buffered_bytes += size
        else:
            self._refuse_body(request)

    def on_message_complete(self) -> None:
        self._is_parsing = False
        request = self._request
        if request is None or self._is_closing:
            return
        self._request = None
        chunks = request.chunks
        if chunks:
            request.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            request.chunks = []
        if self._answering is None and not self._ahead:
            self._serve(request)
        else:
            self._ahead.append(request)

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
        self._drop_body(self._answering)

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
            self.refuse(request.refusal, self._application.refused(request, request.refusal))

    def _serve_alike(self, start: Start, body: bytes) -> bool:
        """Serve a request that starts as one before it. False, and nothing done, if a limit has to be explained."""
        connections, size = self._connections, len(body)
        buffered_bytes = connections.buffered_bytes + size
        if size > self._limits.body_bytes or buffered_bytes > self._limits.buffered_bytes:
            return False
        connections.buffered_bytes = buffered_bytes
        self._head_bytes = 0
        request = Request(start)
        request.body = body
        self._serve(request)
        return True

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
        if self._head_bytes or self._request is not None:
            self._touch()
        else:
            self._deadline = self._connections.clock() + self._limits.keep_alive_seconds

    def _serve_ahead(self) -> None:
        if self._ahead and self._answering is None and not self._is_lost:
            self._serve(self._ahead.popleft())

    def _finish_answer(self) -> None:
        self.exchange = None
        request, self._answering = self._answering, None
        if request is not None and (request.body or request.chunks):
            self._drop_body(request)

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
        if self._request is not None:
            seconds = limits.body_stall_seconds
        elif self._head_bytes:
            seconds = limits.head_seconds
        else:
            seconds = limits.keep_alive_seconds
        self._deadline = self._connections.clock() + seconds

    def _read_start(self, headers: wire.Headers, target: bytes) -> Request:
        """A request whose like was not the last on this connection. Raises Refusal where it cannot be read on."""
        parser = self._parser
        head = wire.Head(headers, wire.REQUEST_ENDS_HERE)
        known = head.known
        version = parser.get_http_version()
        if version == "1.1":
            if b"host" not in known:
                raise malformed("The Host header is missing.")
        elif version != "1.0":
            raise Refusal(505, f"HTTP/{version} is not supported; send HTTP/1.1.", closes=True)
        elif b"transfer-encoding" in known:
            raise malformed("HTTP/1.0 has no Transfer-Encoding.")
        if parser.should_upgrade():  # the parser stops here, and would take what follows for no body of this request
            raise malformed("Upgrading the connection is not supported; send plain HTTP/1.1 without Upgrade.")
        if known.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise malformed("The only Transfer-Encoding that is supported is chunked.")
        start = Start(
            parser.get_method(),
            target if target.startswith(b"/") else _origin_form(target),
            headers,
            head,
            is_http_1_0=version == "1.0",
            keep_alive=parser.should_keep_alive(),
        )
        self._accepted = None
        try:
            start.context = self._application.accept(start)
        except Refusal as refusal:
            request = self._request = Request(start)
            request.refusal = refusal
        else:
            request = self._request = Request(start)
            # To keep alive without a word in `Connection` is HTTP/1.1; only then do equal headers mean an equal start.
            if start.keep_alive and not known.keys() & {b"connection", b"expect"} and start.target == target:
                self._accepted = start
        if b"expect" in known:
            self._answer_expectation(request)
        return request

    def _refuse_body(self, request: Request) -> None:
        """Drop a body that is not kept; close where it goes on for too long."""
        self._drop_body(request)
        if request.refusal is None and request.size > self._limits.body_bytes:
            request.refusal = self._body_too_large()
        elif request.refusal is None:
            message = f"The router holds {self._limits.buffered_bytes} bytes of requests already."
            request.refusal = Refusal(503, message, kind="server_error", retry_after_seconds=1)
        if request.size > DRAIN_FACTOR * self._limits.body_bytes:
            request.refusal.closes = True
            raise request.refusal

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
        head = wire.refusal_head(refusal) + self._application.refused(request, refusal)
        body = refusal.body()
        self._request = None
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


def _connection_header(request: Request, closes: bool) -> bytes:
    if closes:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if request.is_http_1_0 else b""
