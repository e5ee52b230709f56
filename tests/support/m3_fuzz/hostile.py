"""The workers behind a fuzzed router: a good one, and one that answers with whatever the generator says."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from m3_behaviour import Engine, Script
from m3_fuzz.corpus import ANSWERS
from m3_fuzz.mutation import Mutator

_HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class HostileWorker:
    """Healthy when it is asked how it is, and a mutated answer in pieces to everything else."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"worker-{seed}")
        self._mutator = Mutator(self._random, ANSWERS)
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.answers = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["HostileWorker"]:
        """It listens until the end of the block."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**22)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the router has left, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Returns whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(int(lengths[0].partition(b":")[2]) if lengths else 0)
        if head.startswith(b"GET"):
            writer.write(_HEALTHY)
            return True
        self.answers += 1
        data = self._mutator.one()
        size = self._random.choice((len(data) or 1, 1, 7, 1448))
        for at in range(0, min(len(data), 40 * size), size):
            if writer.is_closing():
                return False
            writer.write(data[at : at + size])
            await asyncio.sleep(0)
        writer.write(data[40 * size :])
        await writer.drain()
        if self._random.random() < 0.1:
            await asyncio.sleep(6)  # longer than the router's patience
        return self._random.random() < 0.5


@asynccontextmanager
async def workers(seed: int) -> AsyncIterator[tuple[Engine, HostileWorker]]:
    """Both."""
    async with Engine(Script(tokens=3)).running() as good, HostileWorker(seed).running() as hostile:
        yield good, hostile
