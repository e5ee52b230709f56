"""Clients that leave, workers that die, stall or talk nonsense, a slow reader, a drain: each probe at its best grade.

The same probes are asked of peers by `benchmarks/router/behaviour.py`; the best grade there is, is what our router
must have in every row, so it is at least as good as the best of them.
"""

import asyncio
import hashlib
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from m3_behaviour import BEST, PROBES, Door, Launch, Probe

KEY = "a-key"
CONFIG = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
auth: {{keys: [{{tenant: ada, sha256: {digest}}}]}}
limits: {{firstByteSeconds: {patience}, idleSeconds: {patience}}}
ledger: {{directory: {directory}}}
pools: [{{name: mock, models: [mock], workers: [{workers}]}}]
"""


@dataclass
class Process:
    """A router in a process of its own."""

    door: Door
    process: asyncio.subprocess.Process

    def drain(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self.process.wait() == 0
        except TimeoutError:
            return False


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    @asynccontextmanager
    async def start(engines: list[int], patience_seconds: int) -> AsyncIterator[Process]:
        (tmp_path / "ledger").mkdir()
        file = tmp_path / "router.yaml"
        workers = ", ".join(f"'http://127.0.0.1:{port}'" for port in engines)
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        file.write_text(
            CONFIG.format(digest=digest, patience=patience_seconds, directory=tmp_path / "ledger", workers=workers)
        )
        command = [sys.executable, "-m", "m3_router.server", "--config", str(file)]
        process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=PIPE)
        assert process.stderr is not None
        reading = None
        try:
            async with asyncio.timeout(60):
                listening = json.loads(await process.stderr.readline())["message"]
                ready = 0
                while ready < len(engines):
                    ready += b"is ready" in await process.stderr.readline()
            reading = asyncio.create_task(process.stderr.read())  # so that it never waits for us to read its log
            port = int(listening.split()[2].rstrip(",").rpartition(":")[2])
            yield Process(Door(port, KEY, process.pid), process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            if reading is not None:
                await reading

    return start


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
async def test_nothing_that_peers_do_is_better(probe: Probe, launch: Launch) -> None:
    finding = await probe.find(launch)
    assert finding.grade == BEST, f"{probe.title} {finding.text} (grades: {probe.grades})"
