"""The mock engine: an HTTP server on a port of its own, whose every answer a test decides.

It records what reached it, and what each request used, aborted ones too. `input_tokens` counts a prompt of token ids
exactly and text by its bytes, as a byte-level tokenizer would.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from m3_mock import answers
from m3_mock.answers import COUNT_PATHS, Counts, count_input
from m3_mock.records import PATH as USAGE_PATH
from m3_mock.records import UsageRecord, UsageRecords


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


@dataclass(frozen=True)
class _Call:
    """A request, what it comes to, and the record of it."""

    path: str
    body: dict[str, Any]
    counts: Counts
    record: UsageRecord


@dataclass
class MockEngine:
    """What a test may set: everything that has a default. `gate` is waited for before token `gate_at` (0: the head)."""

    model: str = "mock"
    output_tokens: int = 3  # of an answer that the request does not want shorter
    token_text: str = ""  # of each token; "" numbers them
    pace_seconds: float = 0.0  # for each token, of answers that are not streamed too
    tokens_ahead: int = 0  # made and not sent when an answer is cut off
    filler_bytes: int = 0  # of text in each event, beyond its token
    cached_tokens: int = 0
    health_status: int = 200
    status: int = 200
    reports_input: bool = True
    reports_usage: bool = True
    tells_usage: bool = True  # afterwards, on /internal/usage
    gate: asyncio.Event | None = None
    gate_at: int = 0
    die_at: int | None = None  # close before this event; 0: before the head
    ignore_first: int = 0  # close this many connections unanswered
    extra_headers: tuple[str, ...] = ()
    prefix: str = ""  # of its paths, as they come over the wire
    raw_answer: bytes | None = None
    received: list[Received] = field(default_factory=list)
    records: UsageRecords = field(default_factory=UsageRecords)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _working: set[asyncio.Task[None]] = field(default_factory=set)

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
        """Like a killed process: every connection is cut, and what was used is known no more."""
        assert self._server is not None
        self._server.close()
        await self._cut(self._tasks)
        self.records.forget()

    async def cut(self) -> None:
        """Cut every connection with a request at work, as a broken network would; what was used stays known."""
        await self._cut(self._working)

    async def _cut(self, connections: set[asyncio.Task[None]]) -> None:
        tasks = list(connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert self._server is not None
        if not self._server.is_serving():  # accepted just before it was killed
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            while (request := await _read(reader)) is not None:
                request.path = request.path.removeprefix(self.prefix)
                if request.path == "/health":
                    _write_json(writer, self.health_status, {"status": "mock"})
                    continue
                if request.path.startswith(USAGE_PATH) and self.tells_usage:
                    _write_json(writer, *await self.records.answer(request.path))
                    continue
                if request.path.startswith("/internal/"):
                    _write_json(writer, 404, {"error": {"message": "mock has no such thing"}})
                    continue
                self.received.append(request)
                self.arrived.set()
                if self.ignore_first > 0:
                    self.ignore_first -= 1
                    return
                self._working.add(task)
                if not await self._answer(request, reader, writer):
                    return
                self._working.discard(task)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.aborted.set()
        except asyncio.CancelledError:
            pass  # by `stop`, which waits for the end of this task
        finally:
            self._tasks.discard(task)
            self._working.discard(task)
            writer.transport.abort()

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Returns whether the connection can go on."""
        if self.raw_answer is not None:
            writer.write(self.raw_answer)
            await writer.drain()
            return False
        body, path = request.json, request.path
        counts = self._counts(body)
        if path.startswith("/v1/") and path not in COUNT_PATHS:
            names = request.headers.get("x-request-id", ""), request.headers.get("x-m3-attempt", "")
            record = self.records.begin(*names, path, counts.input_tokens)
        else:
            record = UsageRecord("", "", path, counts.input_tokens)
        try:
            record.is_answered = await self._speak(_Call(path, body, counts, record), reader, writer)
        finally:
            if not record.is_answered and record.prompt_tokens:
                record.completion_tokens += self.tokens_ahead
            record.ended.set()
        return record.is_answered

    def _counts(self, body: dict[str, Any]) -> Counts:
        input_tokens = count_input(body)
        limit = answers.output_limit(body, input_tokens)
        output_tokens = self.output_tokens if limit is None else min(limit, self.output_tokens)
        return Counts(input_tokens, min(self.cached_tokens, input_tokens), output_tokens)

    async def _speak(self, call: "_Call", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Returns whether the answer was given whole."""
        path, counts, record = call.path, call.counts, call.record
        if not await self._pass(0, reader):
            return False
        if self.status != 200:
            _write_json(writer, self.status, {"error": {"message": f"mock {self.status}"}}, ("retry-after: 7",))
            return True
        if path in COUNT_PATHS:
            count = {"count": counts.input_tokens, "input_tokens": counts.input_tokens}
            _write_json(writer, 200, {**count, "max_model_len": 8192, "tokens": []})
            return True
        record.prompt_tokens, record.cached_tokens = counts.input_tokens, counts.cached_tokens
        headers = (*self.extra_headers, *((f"x-m3-input-tokens: {counts.input_tokens}",) if self.reports_input else ()))
        if call.body.get("stream"):
            return await self._stream(call, headers, reader, writer)
        for number in range(1, counts.output_tokens + 1):
            if not await self._pass(number, reader) or not await self._pause(reader):
                return False
            record.completion_tokens += 1
        _write_json(writer, 200, answers.whole(path, self.model, counts if self.reports_usage else None), headers)
        await writer.drain()
        return True

    async def _stream(
        self,
        call: "_Call",
        headers: tuple[str, ...],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        path, counts, record = call.path, call.counts, call.record
        lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked", *headers]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        for event in answers.beginning(path, self.model, counts):
            _write_event(writer, event)
        for number in range(1, counts.output_tokens + 1):
            if not await self._pass(number, reader) or not await self._pause(reader):
                return False
            record.completion_tokens += 1
            _write_event(writer, answers.token(path, (self.token_text or f" t{number}") + "x" * self.filler_bytes))
            await writer.drain()
        is_usage_asked = bool((call.body.get("stream_options") or {}).get("include_usage"))
        if not await self._pass(counts.output_tokens + 1, reader):
            return False
        for event in answers.ending(path, counts if self.reports_usage else None, is_usage_asked=is_usage_asked):
            _write_event(writer, event)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _pause(self, reader: asyncio.StreamReader) -> bool:
        """The time that a token takes. False: the client has left meanwhile."""
        if not self.pace_seconds:
            return True
        await asyncio.sleep(self.pace_seconds)
        if reader.at_eof() or reader.exception() is not None:
            self.aborted.set()
            return False
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


def _write_event(writer: asyncio.StreamWriter, text: str) -> None:
    event = text.encode()
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
