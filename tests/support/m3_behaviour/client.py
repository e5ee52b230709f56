"""One request over a socket of its own, and what came back, read by a parser that is not the router's (h11)."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, Literal

import h11

Ending = Literal["complete", "cut", "silence"]
"""complete: the message came to its end; cut: the connection ended before that; silence: nothing more within limits."""


@dataclass(frozen=True)
class Door:
    """Where a router is asked. `pid`: of its process, which has its memory in /proc."""

    port: int
    key: str = ""
    pid: int = 0

    def head(self, length: int, path: str = "/v1/chat/completions") -> bytes:
        """The head of a POST."""
        lines = [f"POST {path} HTTP/1.1", "host: router", "content-type: application/json", f"content-length: {length}"]
        if self.key:
            lines.append(f"authorization: Bearer {self.key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass(frozen=True)
class Answer:
    """What came of one request. status 0: no head came."""

    status: int
    body: bytes
    ending: Ending
    seconds: float

    @property
    def is_good(self) -> bool:
        """A whole answer with status 200."""
        return self.status == 200 and self.ending == "complete"

    @property
    def events(self) -> list[bytes]:
        """The data of its server-sent events."""
        return [line[5:].strip() for line in self.body.split(b"\n") if line.startswith(b"data:")]

    @property
    def tokens(self) -> int:
        """How many tokens of the engine's it has."""
        return self.body.count(b" token")

    @property
    def is_done(self) -> bool:
        """Whether it says that the stream is complete."""
        return b"[DONE]" in self.events

    @property
    def error(self) -> dict[str, Any] | None:
        """What it says of an error, in the body or in an event."""
        for text in (*self.events, self.body):
            try:
                found = json.loads(text)
            except ValueError:
                continue
            if isinstance(found, dict) and isinstance(found.get("error"), dict):
                return dict(found["error"])
        return None


def chat_body(*, stream: bool, content: str = "hello", **fields: object) -> bytes:
    """The body of a chat completion."""
    message = {"role": "user", "content": content}
    return json.dumps({"model": "mock", "messages": [message], "stream": stream, **fields}).encode()


async def post(door: Door, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send one request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=2**22)
    writer.write(door.head(len(body)) + body)
    await writer.drain()
    return reader, writer


async def ask(door: Door, body: bytes, seconds: float = 20.0) -> Answer:
    """Send one request, and read to its end."""
    begun = time.perf_counter()
    try:
        reader, writer = await post(door, body)
    except OSError:
        return Answer(0, b"", "cut", time.perf_counter() - begun)
    try:
        return await read_answer(reader, begun, seconds)
    finally:
        writer.transport.abort()


async def read_answer(reader: asyncio.StreamReader, begun: float, seconds: float) -> Answer:
    """Read one answer; `seconds` without a byte are silence."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    parser.send(h11.Request(method="POST", target="/", headers=[("host", "router"), ("content-length", "0")]))
    parser.send(h11.EndOfMessage())
    status, body, ending = 0, [], "cut"
    try:
        while ending != "complete":
            event = parser.next_event()
            if event is h11.NEED_DATA:
                async with asyncio.timeout(seconds):
                    parser.receive_data(await reader.read(2**18))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                ending = "complete"
            elif isinstance(event, h11.ConnectionClosed):
                break
    except TimeoutError:
        ending = "silence"
    except (ConnectionError, h11.RemoteProtocolError):
        pass
    return Answer(status, b"".join(body), ending, time.perf_counter() - begun)
