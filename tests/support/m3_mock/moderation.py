"""A moderation service whose verdicts a test decides, on a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class ModerationService:
    """Flags texts with `evil` in them. answer: in place of that; gate: waited for before each answer.

    asked: the questions so far; keys: the `authorization` of each.
    """

    answer: bytes | None = None
    status: int = 200
    gate: asyncio.Event | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Serve until the block is left; whoever still waits at the gate is let through."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/check"
        async with server:
            try:
                yield self
            finally:
                if self.gate is not None:
                    self.gate.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                pairs = [line.split(": ", 1) for line in head.strip().split("\r\n")[1:]]
                headers = {name.lower(): value for name, value in pairs}
                question = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.asked.append(question)
                self.keys.append(headers.get("authorization"))
                self.arrived.set()
                if self.gate is not None:
                    await self.gate.wait()
                body = self._verdict(question["input"]) if self.answer is None else self.answer
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (self.status, len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @staticmethod
    def _verdict(text: str) -> bytes:
        is_evil = "evil" in text
        return json.dumps({"flagged": is_evil, "reason": "it is evil" if is_evil else None}).encode()
