"""The mock engine: an HTTP server on a port of its own, whose every answer a test decides.

It records what reached it, and how many of its requests were aborted. `input_tokens` counts a prompt of token ids
exactly and text by its bytes, as a byte-level tokenizer would.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Received:
    """One request as it came over the wire."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class MockEngine:
    """What a test may set: everything that has a default. `gate` is waited for before event `gate_at` (0: the head)."""

    model: str = "mock"
    output_tokens: int = 3
    filler_bytes: int = 0  # of text in each event, beyond its token
    cached_tokens: int = 0
    health_status: int = 200
    status: int = 200
    reports_input: bool = True
    reports_usage: bool = True
    gate: asyncio.Event | None = None
    gate_at: int = 0
    die_at: int | None = None  # close before this event; 0: before the head
    ignore_first: int = 0  # close this many connections unanswered
    extra_headers: tuple[str, ...] = ()
    raw_answer: bytes | None = None
    received: list[Received] = field(default_factory=list)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator["MockEngine"]:
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=2**26)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Like a killed process: every connection is cut."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (request := await _read(reader)) is not None:
                if request.path == "/health":
                    _write_json(writer, self.health_status, {"status": "mock"})
                    continue
                if request.path.startswith("/internal/"):  # what only our own worker has
                    _write_json(writer, 404, {"error": {"message": "not here"}})
                    continue
                self.received.append(request)
                self.arrived.set()
                if self.ignore_first > 0:
                    self.ignore_first -= 1
                    return
                if not await self._answer(request, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            self.aborted.set()
        except asyncio.CancelledError:
            pass  # by `stop`, which waits for the end of this task
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Returns whether the connection can go on."""
        if self.raw_answer is not None:
            writer.write(self.raw_answer)
            await writer.drain()
            return False
        body = request.json
        if not await self._pass(0, reader):
            return False
        if self.status != 200:
            _write_json(writer, self.status, {"error": {"message": f"mock {self.status}"}}, ("retry-after: 7",))
            return True
        input_tokens = count_input(body)
        headers = (*self.extra_headers, *((f"x-m3-input-tokens: {input_tokens}",) if self.reports_input else ()))
        usage = {
            "prompt_tokens": input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": input_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        if request.path == "/tokenize":
            _write_json(writer, 200, {"count": input_tokens, "max_model_len": 8192, "tokens": []})
            return True
        if body.get("stream"):
            return await self._stream(body, usage, headers, reader, writer)
        answer = {
            "id": "mock-1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": self.model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "text": "Hi.", "finish_reason": "stop"}
            ],
        }
        if self.reports_usage:
            answer["usage"] = usage
        _write_json(writer, 200, answer, headers)
        await writer.drain()
        return True

    async def _stream(
        self,
        body: dict[str, Any],
        usage: dict[str, Any],
        headers: tuple[str, ...],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked", *headers]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        for number in range(1, self.output_tokens + 1):
            if not await self._pass(number, reader):
                return False
            text = f" t{number}" + "x" * self.filler_bytes
            delta = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": None}
            _write_event(writer, json.dumps({"id": "mock-1", "object": "chat.completion.chunk", "choices": [delta]}))
            await writer.drain()
        if (body.get("stream_options") or {}).get("include_usage") and self.reports_usage:
            _write_event(writer, json.dumps({"id": "mock-1", "choices": [], "usage": usage}))
        _write_event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _pass(self, at: int, reader: asyncio.StreamReader) -> bool:
        """Wait at the gate, watching whether the client leaves. False: the connection is over."""
        if self.die_at == at:
            return False
        if self.gate is None or self.gate_at != at:
            return True
        opened = asyncio.ensure_future(self.gate.wait())
        left = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({opened, left}, return_when=asyncio.FIRST_COMPLETED)
        gone = left.done()
        for waiting in (opened, left):
            waiting.cancel()
        await asyncio.gather(opened, left, return_exceptions=True)
        if gone:
            self.aborted.set()
        return not gone


def count_input(body: dict[str, Any]) -> int:
    """Token ids are counted, text is one token a byte."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    if isinstance(prompt, str):
        return len(prompt.encode())
    return sum(len(str(message.get("content", "")).encode()) for message in body.get("messages", []))


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)


def _write_json(writer: asyncio.StreamWriter, status: int, answer: object, headers: tuple[str, ...] = ()) -> None:
    body = json.dumps(answer).encode()
    lines = [f"HTTP/1.1 {status} Mock", "content-type: application/json", f"content-length: {len(body)}", *headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)


def _write_event(writer: asyncio.StreamWriter, data: str) -> None:
    event = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
