"""The worker's end: kept-alive connections to workers, each carrying one request at a time.

Owns the pool of idle connections, dialling, and the parsing of answers. Hands an exchange each read as one call
(head if it came, body bytes, whether it is complete), so that the client gets one write per read. What an answer means
is the exchange's business.

Called by the event loop, and by the exchange (`WorkerConnections.take` or `dial`, `send`, `abort`, pause and resume).
"""

import asyncio
import ssl
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import httptools
from mypy_extensions import mypyc_attr

from m3_router.http import wire
from m3_router.http.alike import AnswersAlike
from m3_router.http.messages import Answer
from m3_router.workers.workers import WorkerAddress

MAX_IDLE_PER_WORKER: Final = 256
MAX_HEAD_BYTES: Final = 2**16
MAX_LEARNINGS: Final = 4  # in a connection's life: a worker whose heads differ every time is left to the parser
_COPY_BYTES: Final = 2**16  # above this, head and body are handed over separately rather than copied together


@mypyc_attr(allow_interpreted_subclasses=True)
class AnswerSink:
    """Who waits for an answer. After `worker_lost`, or a complete answer, the connection is no longer its own."""

    __slots__ = ()

    @abstractmethod
    def worker_answered(self, answer: Answer | None, body: bytes, is_complete: bool) -> None:
        """One read: the head if it has come, a part of the body, and whether that is all."""

    @abstractmethod
    def worker_lost(self, reason: str) -> None:
        """The connection failed."""


class WorkerConnection(asyncio.Protocol):
    """One connection to one worker."""

    def __init__(self, connections: "WorkerConnections", address: WorkerAddress) -> None:
        # fixed
        self.address = address
        self._connections = connections
        self._parser = httptools.HttpResponseParser(self)
        # the connection
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # set by connection_made, before all else
        self.is_lost = False
        self.is_reused = False  # it has carried an answer before
        self._is_paused = False
        # the answer being read
        self._sink: AnswerSink | None = None
        self._headers: wire.Headers = []
        self._head_bytes = 0
        self._answer: Answer | None = None  # complete, and not yet handed over
        self._has_head = False
        self._ends_with_connection = False
        self._body: list[bytes] = []
        self._is_complete = False
        # Answers like one before need no parser, unless it is in the middle of one.
        self._alike: AnswersAlike | None = None
        self._learnings_left = MAX_LEARNINGS
        self._is_parsing = False
        self._parsed_headers: wire.Headers = []  # of the last head

    # ---- event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)  # write at once, not when all that can be read was answered

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:  # an answer to nothing: whatever this is, it must not reach the next client
            self.abort()
            return
        was_parsing = self._is_parsing
        if self._alike is not None and not was_parsing:
            read = self._alike.read(data)
            if read is not None:
                self._release()
                sink.worker_answered(read[0], read[1], True)
                return
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._is_complete:
                self._fail(f"it answered with what is not HTTP/1.1: {error.__context__ or error}")
                return
            self._ends_with_connection = True  # bytes after the answer: hand it over, and use this no more
        if not self._has_head and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(f"the head of its answer exceeds {MAX_HEAD_BYTES} bytes")
            return
        answer, self._answer = self._answer, None
        parts, self._body = self._body, []
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        is_complete = self._is_complete
        if is_complete:
            if answer is not None and not was_parsing and self._learnings_left:
                self._learn(data, answer, len(body))
            self._release()
        if answer is not None or body or is_complete:
            sink.worker_answered(answer, body, is_complete)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        # It refers back, and the collector would be long in finding that.
        self._parser = cast(httptools.HttpResponseParser, None)
        self._connections.forget(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if exc is None and self._has_head and self._ends_with_connection:
            sink.worker_answered(None, b"", True)
        else:
            sink.worker_lost(f"it closed the connection: {exc}" if exc else "it closed the connection")

    def pause_writing(self) -> None:
        pass  # a request is written whole; the client's next one is not read before the answer

    # ---- parser

    def on_message_begin(self) -> None:
        self._is_parsing = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        headers, self._headers = self._headers, []
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the one that counts follows
            return
        head = wire.Head(headers, wire.RESPONSE_ENDS_HERE)
        self._parsed_headers = headers
        self._answer = Answer(status, head)
        self._has_head = True
        known = head.known
        # Without a length, the answer ends where the connection does.
        self._ends_with_connection = b"content-length" not in known and b"transfer-encoding" not in known

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        self._is_parsing = False
        if self._has_head:
            self._is_complete = True
            if not self._parser.should_keep_alive():  # known here alone: the parser forgets it after this
                self._ends_with_connection = True

    # ---- exchange

    def send(self, head: bytes, body: bytes, sink: AnswerSink) -> None:
        """Send one request; `sink` gets the answer."""
        self._sink = sink
        self._head_bytes = 0
        self._has_head = self._is_complete = self._ends_with_connection = False
        if len(body) > _COPY_BYTES:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head + body)

    def pause(self) -> None:
        """Stop reading: the client is slower than the worker."""
        if not self._is_paused and not self.is_lost:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._is_paused and not self.is_lost:
            self._is_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once, so that the worker stops working on the request; the sink hears no more of it."""
        self._sink = None
        if not self.is_lost:
            self.is_lost = True
            self._transport.abort()

    # ---- inside

    def _learn(self, data: bytes, answer: Answer, body_bytes: int) -> None:
        """From an answer that began and ended with one read."""
        head_bytes = data.find(b"\r\n\r\n") + 4
        if head_bytes + body_bytes == len(data) and not self._is_parsing and not self._ends_with_connection:
            self._learnings_left -= 1
            self._alike = AnswersAlike.learn(data[:head_bytes], self._parsed_headers, answer)

    def _release(self) -> None:
        self._sink = None
        self.is_reused = True
        if self._ends_with_connection or self._is_paused:
            self.is_lost = True
            self._transport.close()
        else:
            self._connections.put(self)

    def _fail(self, reason: str) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.worker_lost(reason)


class WorkerConnections:
    """The idle connections of all workers, newest first, and the way to more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext | None = None) -> None:
        """tls: for workers that are reached by it; None checks certificates against the system's authorities."""
        self._loop = loop
        self._tls = tls
        self._idle: dict[str, deque[WorkerConnection]] = {}  # by the worker's uid
        self._dials: set[asyncio.Task[None]] = set()

    def take(self, address: WorkerAddress) -> WorkerConnection | None:
        """An idle connection, if there is one."""
        idle = self._idle.get(address.uid)
        while idle:
            connection = idle.pop()
            if not connection.is_lost:
                return connection
        return None

    def dial(
        self,
        address: WorkerAddress,
        timeout_seconds: float,
        connected: Callable[[WorkerConnection], None],
        failed: Callable[[str], None],
    ) -> asyncio.Task[None]:
        """Open a connection; one of the two callbacks gets the result, none if the returned task is cancelled."""

        async def connect() -> None:
            try:
                async with asyncio.timeout(timeout_seconds):
                    _, connection = await self._loop.create_connection(
                        lambda: WorkerConnection(self, address),
                        address.host,
                        address.port,
                        ssl=self._tls_context() if address.tls else None,
                    )
            except TimeoutError:
                failed(f"no connection within {timeout_seconds:g} s")
            except ssl.SSLError as error:
                failed(f"no TLS: {error.reason or error}")
            except OSError as error:
                failed(f"no connection: {error.strerror or error}")
            else:
                connected(connection)

        task = self._loop.create_task(connect())
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)
        return task

    def put(self, connection: WorkerConnection) -> None:
        """Keep a connection for the next request."""
        idle = self._idle.get(connection.address.uid)
        if idle is None:
            idle = self._idle[connection.address.uid] = deque()
        if len(idle) >= MAX_IDLE_PER_WORKER:
            idle.popleft().abort()
        idle.append(connection)

    def forget(self, connection: WorkerConnection) -> None:
        """The connection was lost."""
        idle = self._idle.get(connection.address.uid)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def close_worker(self, address: WorkerAddress) -> None:
        """Close the idle connections to a worker that is gone."""
        for connection in self._idle.pop(address.uid, ()):
            connection.abort()

    def close(self) -> None:
        """Close every idle connection and give up every dial."""
        for task in self._dials:
            task.cancel()
        for idle in list(self._idle.values()):
            for connection in list(idle):
                connection.abort()

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:  # not before it is needed: the authorities of a system are half a megabyte
            self._tls = ssl.create_default_context()
        return self._tls
