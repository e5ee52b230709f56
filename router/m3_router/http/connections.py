"""All client connections of a server: their number, what they hold together, and what is done to each of them."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from m3_router.config import LimitSettings
from m3_router.http.limits import Limits
from m3_router.http.messages import Request


class Connection(Protocol):
    """One of them."""

    def tick(self, now: float) -> None: ...
    def close_if_idle(self) -> None: ...
    def interrupt(self) -> None: ...


class Connections:
    """All connections of a server, and what they hold together. `clock` is monotonic, in seconds."""

    def __init__(self, limits: LimitSettings, clock: Callable[[], float]) -> None:
        self.limits = Limits(limits)
        self.clock = clock
        self.all: set[Connection] = set()
        self.buffered_bytes = 0  # request bodies in memory
        self.is_draining = False
        self._emptied = asyncio.Event()

    def release(self, request: Request) -> None:
        """The request's body is no longer needed."""
        if request.body:
            self.buffered_bytes -= len(request.body)
            request.body = b""
        elif request.chunks:
            self.buffered_bytes -= sum(len(data) for data in request.chunks)
            request.chunks = []

    def discard(self, connection: Connection) -> None:
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
