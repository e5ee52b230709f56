"""Two replicas place a request alike, and a third does from the moment in which it says that it is caught up."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from m3_redis import CALL_SECONDS, RedisServer, eventually, running_link
from m3_router.config import AffinitySettings, RedisSettings
from m3_router.placement.affinity import Affinity
from m3_router.placement.placement import Choice, Placement, Want
from m3_router.shared.affinity_log import AffinityLog
from m3_router.shared.link import Link
from m3_router.workers.workers import WorkerAddress, Workers

SETTINGS = AffinitySettings()
BLOCK_TOKENS = 256
WORKERS = 5
LONG_AGO = -1e6


class Replica:
    """The parts of a router that decide where a request goes."""

    def __init__(self, link: Link, name: str) -> None:
        self.index = Affinity(SETTINGS)
        self.log = AffinityLog(link, name, {"pool": self.index}, SETTINGS)
        self.workers = Workers()
        self._placement = Placement(SETTINGS, 1)

    def see_workers(self) -> None:
        """As the probes do, in whatever order they come."""
        addresses = [WorkerAddress.from_url(f"http://10.0.0.{number}:8000") for number in range(WORKERS)]
        self.workers.replace(addresses)
        for worker in self.workers:
            self.workers.set_epoch(worker, "epoch", self.index.slot_of(worker.address.uid, "epoch"), LONG_AGO)
            self.workers.report(worker, is_ready=True, reason="")

    def place(self, chain: list[int]) -> Choice:
        want = Want(len(chain) * BLOCK_TOKENS, block_tokens=BLOCK_TOKENS, matches=self.index.match(chain), tie=chain[0])
        choice = self._placement.choose(self.workers.ready, want, 0.0)
        assert choice is not None
        return choice

    def dispatch(self, chain: list[int], uid: str) -> None:
        """To a worker that the test has chosen, so that only who was told can know where it is."""
        self.index.record(chain, self.index.slot_of(uid, "epoch"))
        self.log.note("pool", uid, "epoch", chain)


@asynccontextmanager
async def running_replica(settings: RedisSettings, name: str) -> AsyncIterator[Replica]:
    async with running_link(settings) as link:
        replica = Replica(link, name)
        running = asyncio.create_task(replica.log.run())
        try:
            await eventually(lambda: replica.log.is_caught_up)
            replica.see_workers()
            yield replica
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def decisions(replica: Replica, chains: list[list[int]]) -> list[tuple[str, int, int, str]]:
    choices = [replica.place(chain) for chain in chains]
    return [(choice.worker.name, choice.cached_tokens, choice.cost_tokens, choice.reason) for choice in choices]


async def test_three_replicas_place_alike(redis_server: RedisServer) -> None:
    chance = random.Random(3)
    settings = RedisSettings(url=redis_server.url, call_seconds=CALL_SECONDS)

    def digests(count: int) -> list[int]:
        return [chance.getrandbits(64) for _ in range(count)]

    async with running_replica(settings, "one") as one, running_replica(settings, "two") as two:
        uids = [worker.address.uid for worker in one.workers]
        chains = [digests(10)]
        for number in range(400):
            known = chance.choice(chains)
            chain = known[: chance.randrange(1, len(known) + 1)] + digests(chance.randrange(1, 20))
            chains.append(chain)
            (one, two)[number % 2].dispatch(chain, chance.choice(uids))
            if number % 50 == 0:
                await asyncio.sleep(0.03)  # in several entries
        asked = [*chains, *(digests(5) for _ in range(50))]
        await eventually(lambda: decisions(one, asked) == decisions(two, asked))
        told = decisions(one, asked)
        assert [reason for _, _, _, reason in told].count("prefix") == len(chains)

        stranger = Affinity(SETTINGS)  # one who was told nothing would place most of them elsewhere
        async with running_replica(settings, "three") as three:
            assert decisions(three, asked) == told
            three.index = stranger
            three.see_workers()
            elsewhere = sum(mine[0] != theirs[0] for mine, theirs in zip(decisions(three, asked), told, strict=True))
            assert elsewhere > len(chains) / 2
