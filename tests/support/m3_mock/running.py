"""A router that runs in a test's own event loop, and what tests ask of it."""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from m3_mock.engine import MockEngine
from m3_router.config import RouterConfig
from m3_router.placement.pools import Pool
from m3_router.router import Router


class LogStream(io.BytesIO):
    """Keeps what was written after the router has closed its log."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


WITHIN_SECONDS = 30.0
"""For what is to happen by itself; the machine may be busy."""


@dataclass
class Running:
    """A router that listens, and a client for each of its ports."""

    router: Router
    http: httpx.AsyncClient
    admin: httpx.AsyncClient
    log: LogStream
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def pool(self, name: str = "mock") -> Pool:
        """One of its pools."""
        return next(pool for pool in self.router._pools if pool.name == name)

    @property
    def port(self) -> int:
        return int(self.router.address.rpartition(":")[2])

    async def ledger(self) -> list[dict[str, Any]]:
        return (await self.admin.get("/ledger")).raise_for_status().json()

    async def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def raw(self, data: bytes, limit: int = 2**16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of the test's own; closed with the router."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        self.writers.append(writer)
        writer.write(data)
        return reader, writer


async def eventually_answers(ask: Callable[[], Awaitable[httpx.Response]], status: int) -> httpx.Response:
    """Ask until the answer has this status."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while (answer := await ask()).status_code != status:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
    return answer


StartRouter = Callable[..., Awaitable[Running]]


def config_for(engines: Sequence[MockEngine | str], **settings: Any) -> RouterConfig:
    """A configuration with one pool of these workers; `pool` and all else is merged into it."""
    urls = [engine if isinstance(engine, str) else engine.url for engine in engines]
    pool = {"name": "mock", "models": ["mock"], "workers": urls, **settings.pop("pool", {})}
    document = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "auth": "none", "pools": [pool], **settings}
    return RouterConfig.model_validate(document)


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until the other tasks of this loop have made something true. `what`: it, in words."""
    loop = asyncio.get_running_loop()
    until = loop.time() + WITHIN_SECONDS
    while not condition():
        assert loop.time() < until, f"not within {WITHIN_SECONDS} s: {what}"
        await asyncio.sleep(0.005)


def post(body: bytes | dict[str, Any], *headers: str, path: str = "/v1/chat/completions") -> bytes:
    """The bytes of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: r", f"content-length: {len(data)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


async def read_stream(reader: asyncio.StreamReader) -> tuple[bytes, bytes, bool]:
    """Head and body of a chunked answer, and whether it came to its end."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    body = b""
    async with asyncio.timeout(20):
        while True:
            try:
                size = int(await reader.readuntil(b"\r\n"), 16)
                body += (await reader.readexactly(size + 2))[:-2]
            except asyncio.IncompleteReadError:
                return head, body, False
            if size == 0:
                return head, body, True
