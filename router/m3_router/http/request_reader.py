"""Bytes of a client's connection into requests, whole and checked, one after the other.

Owns the parser, what is known of the request that is being read, and the limits of its head and body. A request whose
start was accepted once needs no parser the next time (`alike`). Knows nothing of answers, and writes nothing; whoever
reads gets `Refusal` raised where the bytes cannot be read on, and asks for nothing more after that.
"""

from abc import abstractmethod
from typing import Any, Final

import httptools
from mypy_extensions import trait

from m3_router.errors import Refusal, malformed
from m3_router.http import wire
from m3_router.http.alike import RequestsAlike
from m3_router.http.connections import Connections
from m3_router.http.messages import Application, Request, Start

# A body over the limit is read and dropped up to this many times the limit, so that the connection stays usable.
DRAIN_FACTOR: Final = 4
MAX_HEADERS: Final = 128  # of a head: each costs a hundred bytes beside its own


@trait
class RequestSink:
    """Who takes the requests."""

    __slots__ = ()

    @abstractmethod
    def take(self, request: Request) -> None:
        """A whole request, or one that is refused without its body."""

    @abstractmethod
    def expects_continue(self, request: Request) -> None:
        """The client waits for leave to send its body."""


class RequestReader:
    """Reads one connection. is_idle: between two requests, with not a byte of the next."""

    __deletable__ = ("_parser", "_sink")  # for the compiler

    def __init__(self, application: Application, connections: Connections, sink: RequestSink) -> None:
        # fixed
        self._application = application
        self._connections = connections
        self._limits = connections.limits
        self._sink = sink
        self._parser = httptools.HttpRequestParser(self)
        # the request being read
        self._target = b""
        self._headers: wire.Headers = []
        self._head_bytes = 0
        self._body_bytes = 0  # as announced
        self._accepted: Start | None = None  # the last request's, if one that is equal may be taken for it
        self._request: Request | None = None  # its head is complete
        self._alike: RequestsAlike | None = None  # requests like this need no parser, unless it is in the middle of one
        self._is_parsing = False
        self._is_stopped = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a request has come, but for empty lines."""
        return self._request is None and not self._is_parsing

    @property
    def is_in_body(self) -> bool:
        """Whether the head of a request has come, and its body has not."""
        return self._request is not None

    def feed(self, data: bytes, *, is_alone: bool) -> None:
        """Read on. is_alone: no earlier request waits for its answer. Raises Refusal; then `drop` tells of what."""
        was_parsing = self._is_parsing
        if is_alone and self._alike is not None and not was_parsing:
            body = self._alike.body(data)
            if body is not None and self._take_alike(self._alike.start, body):
                return
        if self._request is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            refusal = error.__context__
            if not isinstance(refusal, Refusal):
                raise
            raise refusal from None
        except httptools.HttpParserError as error:
            # Whatever follows `Connection: close` is not ours to read, and no fault of the request before it.
            raise malformed(f"Not a valid HTTP/1.1 request: {error}.") from error
        if self._request is None and self._head_bytes > self._limits.head_bytes:
            raise self._head_too_large()
        if not was_parsing and not self._is_parsing and self._accepted is not None:
            self._alike = RequestsAlike.learn(data, self._accepted)

    def drop(self) -> Request | None:
        """Give up the request that is being read, and read no more. Returns it, if its head had come."""
        self._is_stopped = True
        request, self._request = self._request, None
        if request is not None:
            self._connections.release(request)
        return request

    def close(self) -> None:
        """The connection is lost: `drop`, and let go of what refers back, which only the collector would find."""
        self.drop()
        del self._parser, self._sink

    # ---- parser

    def on_message_begin(self) -> None:
        self._is_parsing = True

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 14 and name.lower() == b"content-length":
            self._body_bytes = int(value)  # the parser has refused all but one decimal number
        elif len(self._headers) < MAX_HEADERS:
            self._headers.append((name, value))
        else:
            raise self._head_too_large()

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
            request = self._request = self._read_start(headers, target)
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
        if request is None or self._is_stopped:
            return
        self._request = None
        chunks = request.chunks
        if chunks:
            request.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            request.chunks = []
        self._sink.take(request)

    # ---- inside

    def _take_alike(self, start: Start, body: bytes) -> bool:
        """Take a request that starts as one before it. False, and nothing done, if a limit has to be explained."""
        connections, size = self._connections, len(body)
        buffered_bytes = connections.buffered_bytes + size
        if size > self._limits.body_bytes or buffered_bytes > self._limits.buffered_bytes:
            return False
        connections.buffered_bytes = buffered_bytes
        request = Request(start)
        request.body = body
        self._sink.take(request)
        return True

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
        request = Request(start)
        try:
            request.context = start.context = self._application.accept(start)
        except Refusal as refusal:
            request.refusal = refusal.with_traceback(None)  # whose frames refer back to the request
        else:
            # To keep alive without a word in `Connection` is HTTP/1.1; only then do equal headers mean an equal start.
            if start.keep_alive and not known.keys() & {b"connection", b"expect"} and start.target == target:
                self._accepted = start
        if b"expect" in known:
            self._request = request
            if request.refusal is not None:
                request.refusal.closes = True  # whether the body still comes cannot be known
                raise request.refusal
            self._sink.expects_continue(request)
        return request

    def _refuse_body(self, request: Request) -> None:
        """Drop a body that is not kept; close where it goes on for too long."""
        self._connections.release(request)
        if request.refusal is None and request.size > self._limits.body_bytes:
            request.refusal = self._body_too_large()
        elif request.refusal is None:
            message = f"The router holds {self._limits.buffered_bytes} bytes of requests already."
            request.refusal = Refusal(503, message, kind="server_error", retry_after_seconds=1)
        if request.size > DRAIN_FACTOR * self._limits.body_bytes:
            request.refusal.closes = True
            raise request.refusal

    def _head_too_large(self) -> Refusal:
        message = f"The request's headers exceed the limit of {self._limits.head_bytes} bytes or {MAX_HEADERS} lines."
        return Refusal(431, message, code="headers_too_large", closes=True)

    def _body_too_large(self) -> Refusal:
        message = f"The request's body exceeds the limit of {self._limits.body_bytes} bytes."
        return Refusal(413, message, code="body_too_large")


def _origin_form(target: bytes) -> bytes:
    """`/path?query` of a target in absolute form (RFC 9112, 3.2.2). Raises Refusal (400)."""
    try:
        # Its stubs call every part bytes, and parts that are absent are None: compiled code would believe the stubs.
        url: Any = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError as error:
        raise malformed("The request target is not a path.") from error
    if url.path is None:
        raise malformed("The request target is not a path.")
    path: bytes = url.path
    query: bytes | None = url.query
    return path if query is None else path + b"?" + query
