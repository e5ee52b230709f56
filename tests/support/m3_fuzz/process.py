"""The process of a fuzzed router: everything on, limits small enough to be met, and what it weighs."""

import asyncio
import hashlib
import json
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from m3_fuzz.corpus import GOOD, HOSTILE, KEY
from m3_redis import running_redis

HEAD_BYTES, HEAD_SECONDS = 2**14, 2
CONFIG = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
auth:
  plans:
    fuzz: {{requestsPerMinute: 100000000, tokensPerDay: 1000000000000000, serviceTiers: [standard, priority, batch]}}
  tenants: [{{name: fuzz, plan: fuzz}}]
  keys: [{{tenant: fuzz, sha256: {digest}}}]
limits:
  bodyBytes: 524288
  headBytes: {head_bytes}
  bufferedBytes: 4194304
  connections: 512
  headSeconds: {head_seconds}
  bodyStallSeconds: 2
  keepAliveSeconds: 3
  connectSeconds: 1
  firstByteSeconds: 5
  idleSeconds: 5
lanes: {{maxWaitSeconds: 2, batchMaxWaitSeconds: 2}}
affinity: {{indexBlocks: 1000}}
ledger: {{directory: "{directory}/ledger", segmentBytes: 1048576, retainSegments: 2}}
redis: {{url: "{redis}"}}
pools:
  - {{name: good, models: [{good}], workers: ["http://127.0.0.1:{good_port}"]}}
  - {{name: bad, models: [{hostile}], workers: ["http://127.0.0.1:{hostile_port}"]}}
"""


@dataclass
class RouterProcess:
    """It runs. log: the last lines that it wrote to standard error."""

    port: int
    process: asyncio.subprocess.Process
    log: list[str] = field(default_factory=list)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self.process.returncode is None

    @property
    def complaints(self) -> list[str]:
        """Lines of its log that tell of an exception that nobody expected."""
        return [line for line in self.log if "Traceback" in line or '"level":"error"' in line]

    def memory_bytes(self) -> int:
        """What it has resident of its own, without the pages of files."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the router has no memory: it has ended")


@asynccontextmanager
async def running_router(good_port: int, hostile_port: int, search_path: str = "") -> AsyncIterator[RouterProcess]:
    """A router in front of two workers, once it takes requests. search_path: where it is compiled."""
    with tempfile.TemporaryDirectory(prefix="m3-fuzz-") as name, running_redis() as redis:
        directory = Path(name)
        (directory / "ledger").mkdir()
        file = directory / "router.yaml"
        file.write_text(
            CONFIG.format(
                digest=hashlib.sha256(KEY.encode()).hexdigest(),
                head_bytes=HEAD_BYTES,
                head_seconds=HEAD_SECONDS,
                directory=directory,
                redis=redis.url,
                good=GOOD,
                hostile=HOSTILE,
                good_port=good_port,
                hostile_port=hostile_port,
            )
        )
        command = [sys.executable, "-m", "m3_router.server", "--config", str(file)]
        environment = {**os.environ, **({"PYTHONPATH": search_path} if search_path else {})}
        process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=PIPE, env=environment)
        assert process.stderr is not None
        reading = None
        try:
            async with asyncio.timeout(60):
                first = await process.stderr.readline()
                if not first:
                    raise RuntimeError("the router ended before it listened")
                port, admin_port = _ports(json.loads(first)["message"])
                router = RouterProcess(port, process)
                reading = asyncio.create_task(_keep_log(process.stderr, router.log))
                await _until_ready(admin_port)
            yield router
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            if reading is not None:
                await reading


def _ports(listening: str) -> tuple[int, int]:
    """Of `listening on HOST:PORT, admin on HOST:PORT, ...`."""
    words = [word.rstrip(",") for word in listening.split()]
    data, admin = (words[number].rpartition(":")[2] for number in (2, 5))
    return int(data), int(admin)


async def _until_ready(admin_port: int) -> None:
    """Its workers are found, and it has its share of every quota."""
    async with httpx.AsyncClient(trust_env=False) as client:
        while (await client.get(f"http://127.0.0.1:{admin_port}/readyz")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _keep_log(stream: asyncio.StreamReader, lines: list[str]) -> None:
    """Its log, without what it says of workers that come and go."""
    while line := await stream.readline():
        text = line.decode(errors="replace").rstrip()
        if '"level":"info"' not in text:
            lines.append(text)
            del lines[:-500]
