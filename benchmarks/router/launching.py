"""Starts a target for the probes of `m3_behaviour`, which ask for it anew each time."""

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from rig import TARGET_CPU, UnavailableError, end, free_port, running, wait_until_up
from targets import KEY, Place, Target

from m3_behaviour import Door, Launch


@dataclass
class Process:
    """A target that runs."""

    door: Door
    process: subprocess.Popen[bytes]
    target: Target
    place: Place

    def drain(self) -> None:
        """Ask it to finish and end."""
        self.process.send_signal(self.target.command(self.place).drain_signal)

    async def ended(self, seconds: float) -> bool:
        """Whether it ends in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self.process.wait, seconds)
        return self.process.poll() is not None


def launcher(target: Target, compiled: str, peers: Path | UnavailableError) -> Launch:
    """How the probes start this target."""

    @contextlib.asynccontextmanager
    async def start(engines: list[int], patience_seconds: int) -> AsyncIterator[Process]:
        with tempfile.TemporaryDirectory(prefix="m3-probe-") as name:
            directory = Path(name)
            port = free_port()
            place = Place(port, tuple(engines), directory, compiled, peers, patience_seconds=patience_seconds)
            command, log = target.command(place), directory / "log"
            with running(command, TARGET_CPU, log) as process:
                try:
                    await asyncio.to_thread(wait_until_up, command, port, process, log)
                    yield Process(Door(port, KEY, process.pid), process, target, place)
                finally:
                    await asyncio.to_thread(end, process)

    return start
