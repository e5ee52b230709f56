"""A router as a process of its own, which a test may kill and start again on the same configuration."""

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

START_SECONDS = 60.0


class RouterProcess:
    """`python -m m3_router.server --config FILE`. `port` is that of the newest start; `log` its lines on stderr."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.port = 0
        self.log: list[str] = []

    async def start(self) -> None:
        """Start it, and wait until it listens and has a worker that is ready. Raises RuntimeError if it ends."""
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "m3_router.server", "--config", str(self._config)),
            stdout=DEVNULL,
            stderr=PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert process.stderr is not None
        self._reading = asyncio.create_task(self._read(process.stderr))
        begun = len(self.log)
        until = time.monotonic() + START_SECONDS
        while not any("is ready" in line for line in self.log[begun:]):
            if process.returncode is not None or time.monotonic() > until:
                raise RuntimeError("the router does not get ready:\n" + "\n".join(self.log[begun:]))
            await asyncio.sleep(0.01)
        (listening,) = (line for line in self.log[begun:] if '"listening on ' in line)
        self.port = int(json.loads(listening)["message"].split()[2].rstrip(",").rpartition(":")[2])

    async def kill(self) -> None:
        """SIGKILL. Harmless if it does not run."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> int:
        """SIGTERM; returns its exit status."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(number)
        status = await process.wait()
        if self._reading is not None:
            await self._reading
        return status

    async def _read(self, stderr: asyncio.StreamReader) -> None:
        while line := await stderr.readline():
            self.log.append(line.decode().rstrip())
