"""One process of a router, from outside: how it is begun, what it writes, how it is ended and begun again.

Owns the operating system's side of it. The child's stdin is a pipe that nothing is written to: when the supervisor is
gone, however it ended, the child reads its end and drains. What a child writes is passed on in whole lines, since
several of them write to the same streams. Who decides when is `supervisor`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx

from m3_router.telemetry import log

FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 60.0  # a process that lived so long begins with the first pause again
ASK_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.05

_log = logging.getLogger(__name__)


class ChildEndedError(Exception):
    """A process ended before it served for the first time; it has said why. `status` is its exit status."""

    def __init__(self, index: int, status: int) -> None:
        super().__init__(f"process {index} {how_it_ended(status)} before it served")
        self.status = status


def pause_seconds(failures: int) -> float:
    """How long to wait before a process is begun again that has died so many times in a row, 1 or more."""
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 16), LONGEST_PAUSE_SECONDS)


def how_it_ended(status: int) -> str:
    """An exit status in words; negative ones are signals."""
    return f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"


class Child:
    """Process `index`. `command` runs it; its admin port is at `socket_path`, asked through `client`."""

    def __init__(self, index: int, command: Sequence[str], socket_path: Path) -> None:
        self.index = index
        self.restarts = 0
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket_path)),
            base_url="http://m3-router",
            timeout=ASK_SECONDS,
            trust_env=False,
        )
        self._command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None
        self._has_served = asyncio.Event()

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    async def keep(self, is_ending: asyncio.Event) -> None:
        """Run it again and again, until `is_ending`. Raises ChildEndedError if it ends before it has ever served."""
        loop = asyncio.get_running_loop()
        failures = 0
        while not is_ending.is_set():
            begun = loop.time()
            status = await self._run(is_ending)
            if is_ending.is_set():
                return
            if not self._has_served.is_set():
                raise ChildEndedError(self.index, status)
            failures = 1 if loop.time() - begun >= STEADY_SECONDS else failures + 1
            pause = pause_seconds(failures)
            _log.error("process %d %s; it is begun again in %g s", self.index, how_it_ended(status), pause)
            self.restarts += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await is_ending.wait()

    async def serves(self) -> None:
        """Wait until its admin port answers for the first time."""
        while not self._has_served.is_set():
            try:
                (await self.client.get("/healthz")).raise_for_status()
            except httpx.HTTPError:
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                self._has_served.set()

    def end(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _run(self, is_ending: asyncio.Event) -> int:
        """Begin the process and wait for its end. Returns its exit status."""
        streams = [os.pipe(), os.pipe()]
        try:
            # A session of its own: a Ctrl-C is for the supervisor, which drains all.
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=streams[0][1],
                stderr=streams[1][1],
                start_new_session=True,
            )
        except OSError:
            for source, _ in streams:
                os.close(source)
            raise
        finally:
            for _, end in streams:
                os.close(end)
        if is_ending.is_set():  # meanwhile, and it could not be told
            self.end(signal.SIGTERM)
        writers = [
            threading.Thread(target=log.pass_on_lines, args=(source, sink), name=f"process-{self.index}", daemon=True)
            for (source, _), sink in zip(streams, (sys.stdout.buffer, sys.stderr.buffer), strict=True)
        ]
        for writer in writers:
            writer.start()
        try:
            return await self._process.wait()
        finally:
            await asyncio.to_thread(_join, writers)


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(ASK_SECONDS)
