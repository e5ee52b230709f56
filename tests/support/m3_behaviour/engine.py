"""A worker for probes: it answers chat completions as its script says, and notes when a connection is taken from it.

A protocol rather than a stream, because the moment in which the event loop learns that the other side has gone is what
is measured.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

USAGE = '"usage":{"prompt_tokens":3,"completion_tokens":%d,"total_tokens":%d}'
_ABOUT = {
    "/v1/models": {"object": "list", "data": [{"id": "mock", "object": "model", "created": 1, "owned_by": "mock"}]},
    "/health": {"status": "ok"},
}
_ABOUT_ITSELF = {"version": "0.0", "model_path": "mock", "model_id": "mock", "served_model_name": "mock"}


@dataclass(frozen=True)
class Script:
    """What an engine does with a request.

    raw: sent in place of an answer. die_after, stall_after, nonsense_after: after so many tokens of a stream it closes,
    falls silent, or goes on with what is no chunk (0: before the head). event_bytes: padding of each event.
    """

    prefill_seconds: float = 0.0
    token_seconds: float = 0.001
    tokens: int = 20
    event_bytes: int = 0
    raw: bytes | None = None
    die_after: int | None = None
    stall_after: int | None = None
    nonsense_after: int | None = None


@dataclass
class Engine:
    """One worker. bodies: of the requests as they came; left_at: when connections were taken from it in an answer."""

    script: Script = field(default_factory=Script)
    port: int = 0
    bodies: list[bytes] = field(default_factory=list)
    left_at: list[float] = field(default_factory=list)
    has_left: asyncio.Event = field(default_factory=asyncio.Event)
    has_arrived: asyncio.Event = field(default_factory=asyncio.Event)
    sent_bytes: int = 0
    connections: set["_Connection"] = field(default_factory=set)
    _server: asyncio.Server | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Engine"]:
        """It listens, and is killed in the end."""
        self._server = await asyncio.get_running_loop().create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.kill()

    def kill(self) -> None:
        """As a killed process: nobody listens, and every connection is cut."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.abort()

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered."""
        return any(connection.is_answering for connection in self.connections)


class _Connection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = bytearray()
        self._answering: asyncio.Task[None] | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._transport: asyncio.Transport

    @property
    def is_answering(self) -> bool:
        return self._answering is not None and not self._answering.done()

    def abort(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._engine.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        engine = self._engine
        engine.connections.discard(self)
        if self.is_answering:
            engine.left_at.append(time.perf_counter())
            engine.has_left.set()
            assert self._answering is not None
            self._answering.cancel()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (taken := _take(self._buffer)) is not None:
            method, path, body = taken
            if method == "POST" and path.endswith("/completions"):
                self._engine.bodies.append(body)
                self._engine.has_arrived.set()
                self._answering = asyncio.get_running_loop().create_task(self._answer(body))
            elif method == "POST":
                self._json("404 Not Found", {"error": {"message": "not here"}})
            else:
                self._json("200 OK", _ABOUT.get(path, _ABOUT_ITSELF))

    async def _answer(self, body: bytes) -> None:
        script = self._engine.script
        try:
            asked = json.loads(body)
        except ValueError:
            self._json("400 Bad Request", {"error": {"message": "not JSON"}})
            return
        await asyncio.sleep(script.prefill_seconds)
        if script.raw is not None:
            self._transport.write(script.raw)
            self._transport.close()
        elif await self._is_over(script, 0):
            return
        elif asked.get("stream"):
            tokens = asked.get("max_tokens")
            await self._stream(script, tokens if isinstance(tokens, int) else script.tokens)
        else:
            message = {"role": "assistant", "content": "Hello."}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "mock"}
            self._json("200 OK", {**answer, "choices": [choice], "usage": usage})

    async def _stream(self, script: Script, tokens: int) -> None:
        await self._send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        head = '{"id":"1","object":"chat.completion.chunk","created":1,"model":"mock","choices":'
        padding = "x" * script.event_bytes
        for number in range(1, tokens + 1):
            delta = f'[{{"index":0,"delta":{{"content":" token{number}{padding}"}},"finish_reason":null}}]'
            await self._send(_chunk(f"data: {head}{delta}}}\n\n"))
            if await self._is_over(script, number):
                return
            await asyncio.sleep(script.token_seconds)
        done = f"data: {head}[],{USAGE % (tokens, tokens + 3)}}}\n\ndata: [DONE]\n\n"
        await self._send(_chunk(done) + b"0\r\n\r\n")

    async def _is_over(self, script: Script, tokens: int) -> bool:
        """Whether the answer breaks off here; does what the script says."""
        if script.die_after == tokens:
            self._transport.close()
            return True
        if script.nonsense_after == tokens:
            self._transport.write(b"\x00\xffthis is no chunk\r\n\r\n")
            return True
        if script.stall_after == tokens:
            await asyncio.Event().wait()
        return False

    async def _send(self, data: bytes) -> None:
        await self._can_write.wait()
        self._transport.write(data)
        self._engine.sent_bytes += len(data)

    def _json(self, status: str, answer: object) -> None:
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


def _take(buffer: bytearray) -> tuple[str, str, bytes] | None:
    """Method, path and body of the first request, which is taken out; None if it is not all there."""
    at = buffer.find(b"\r\n\r\n") + 4
    if at < 4:
        return None
    first, *lines = buffer[: at - 4].decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = bytearray()
    if fields.get("transfer-encoding") == "chunked":
        length = -1
        while length:
            line_end = buffer.find(b"\r\n", at)
            length = int(buffer[at:line_end], 16) if line_end > 0 else 0
            if line_end < 0 or len(buffer) < line_end + 2 + length + 2:
                return None
            body += buffer[line_end + 2 : line_end + 2 + length]
            at = line_end + 2 + length + 2
    else:
        length = int(fields.get("content-length", "0"))
        if len(buffer) < at + length:
            return None
        body += buffer[at : at + length]
        at += length
    del buffer[:at]
    return method, path, bytes(body)


async def until(event: asyncio.Event, seconds: float) -> bool:
    """Whether it was set in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
