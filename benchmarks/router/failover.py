"""Two replicas of the router under load, while the Redis that they share is killed and comes back empty.

Each replica has its own client; no request of either may fail, and each that was answered must be in the ledger.
"""

import json
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rig import LOAD_CPU, TARGET_CPU, Command, free_port, running, wait_until_up
from targets import KEY, Place, m3_router

from m3_redis import running_redis

CONNECTIONS = 16


@dataclass(frozen=True)
class Failover:
    """What came of it."""

    answered: int
    failed: int
    first_error: str
    settled: int
    seconds: float

    @property
    def is_met(self) -> bool:
        """Nothing was lost: no answer, no bill."""
        return self.failed == 0 and self.settled >= self.answered

    @property
    def text(self) -> str:
        """In words."""
        return (
            f"{self.answered:,} requests answered in {self.seconds:.0f} s, {self.failed} failed"
            f"{f' ({self.first_error})' if self.failed else ''}; {self.settled:,} settled in the replicas' ledgers"
        )


def run(directory: Path, engine: str, driver: str, compiled: str, seconds: float) -> Failover:
    """A third of the time with Redis, a third without, a third with an empty one."""
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis())
        ports = (free_port(), free_port())
        for port in ports:
            log = directory / f"failover-engine-{port}.log"
            command = Command([engine, "-p", str(port)])
            wait_until_up(command, port, stack.enter_context(running(command, LOAD_CPU, log)), log)
        replicas = []
        for number in (1, 2):
            home = Path(tempfile.mkdtemp(prefix=f"replica-{number}-", dir=directory))
            place = Place(free_port(), ports, home, compiled, redis_url=redis.url)
            command, log = m3_router(place), home / "log"
            wait_until_up(command, place.port, stack.enter_context(running(command, TARGET_CPU, log)), log)
            replicas.append(place)
        arguments = ["-d", str(seconds), "-k", KEY, "-c", str(CONNECTIONS), "-b", "1024"]
        clients = [
            stack.enter_context(
                subprocess.Popen(
                    ["taskset", "-c", LOAD_CPU, driver, "-p", str(place.port), *arguments], stdout=subprocess.PIPE
                )
            )
            for place in replicas
        ]
        time.sleep(seconds / 3)
        redis.kill()
        time.sleep(seconds / 3)
        redis.start()
        rows = [json.loads(client.communicate(timeout=seconds + 60)[0]) for client in clients]
        time.sleep(1)  # settled requests are published in batches
        settled = sum(_settled(place) for place in replicas)
    errors = [row["first_error"] for row in rows if row["errors"]]
    return Failover(
        answered=sum(row["requests"] for row in rows),
        failed=sum(row["errors"] for row in rows),
        first_error=errors[0] if errors else "",
        settled=settled,
        seconds=seconds,
    )


def _settled(place: Place) -> int:
    """Requests with status 200 that the replica has settled."""
    with urllib.request.urlopen(f"http://127.0.0.1:{place.admin_port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    counted = [line for line in lines if line.startswith("m3_router_requests_total{") and 'outcome="ok"' in line]
    return int(sum(float(line.rpartition(" ")[2]) for line in counted))
