"""Replicas in simulated time over one store, with requests, faults, and an account of what was admitted."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from m3_router.config import PlanSettings
from m3_router.errors import Refusal
from m3_router.shared.leases import ROUND_SECONDS, Leases
from m3_router.shared.link import Failure
from m3_router.tenants.meters import Meter
from m3_router.tenants.quotas import Quotas, Reservation

TENANT = "acme"
SILENT_SECONDS = 5.0  # until a replica that says nothing is no longer live


class Replica:
    """One replica: its end of the protocol, its way to the store, and the requests it has running."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.id = name
        self.quotas = Quotas()
        self.quotas.replace({TENANT: world.plan})
        self.mode = "shared"
        self.is_ready = False
        self.is_deaf = False  # what it asks for is done, and it gets no answer
        self.is_stalled = False  # admits requests, and does no rounds
        self.meanwhile: Callable[[], Awaitable[None]] | None = None  # done once, while an answer is on its way to it,
        self.calls_before_meanwhile = 0  # after so many other calls
        self.running: list[Reservation] = []
        self.seen: dict[str, float] = {name: world.wall}  # when it last heard of whom
        self.leases = Leases(
            self, self, self.quotas, clock=world.clock, wall_clock=world.clock, sleep=world.sleep_of(self)
        )

    # ---- as `Replicas`

    @property
    def names(self) -> dict[str, str]:
        return {
            name: name for name, at in self.seen.items() if name == self.id or self.world.wall - at < SILENT_SECONDS
        }

    # ---- as `Link`

    def key(self, *parts: str) -> str:
        return ":".join(("{m3}", *parts))

    async def until_shared(self) -> None:
        """Where the store is away, this waits for the real time limit of whoever calls."""
        if self.mode == "local" or self.world.is_store_away:
            await asyncio.Event().wait()

    async def call(self, name: str, make: Callable[[Any], Awaitable[Any]]) -> Any:
        """A round trip, with requests before and after the store acts; its answer may be lost either way."""
        world = self.world
        if self.mode == "local" or world.is_store_away:
            return Failure("away", "simulated")
        world.traffic(self)
        if world.random.random() < world.lost_share / 2:
            return Failure("lost", "before it was done")
        reply = await make(world.store)
        world.traffic(self)
        self.calls_before_meanwhile -= 1
        if self.meanwhile is not None and self.calls_before_meanwhile < 0:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        if self.is_deaf:
            return Failure("lost", "after it was done")
        if world.random.random() < world.lost_share / 2:
            return Failure("lost", "after it was done")
        return reply

    # ---- requests

    def reserve(self, tokens: int, nanousd: int = 0) -> Refusal | None:
        """One request; returns why it was refused."""
        quota = self.quotas.get(TENANT)
        assert quota is not None
        try:
            reservation = quota.reserve(tokens, nanousd, self.world.wall, self.world.wall)
        except Refusal as refusal:
            self.world.refusals.append(refusal)
            return refusal
        self.running.append(reservation)
        self.world.admitted += 1
        return None

    def settle(self, index: int, tokens: int, nanousd: int = 0) -> None:
        """End one of the running requests."""
        quota = self.quotas.get(TENANT)
        assert quota is not None
        quota.settle(self.running.pop(index), tokens, nanousd)

    def meters(self) -> list[Meter]:
        """Those of the tenant."""
        quota = self.quotas.get(TENANT)
        assert quota is not None
        return quota.meters


class World:
    """All replicas, the store between them, and the time. `check` holds after every step."""

    def __init__(self, plan: PlanSettings, store: Any, seed: int = 0, wall: float = 1_795_000_000.0) -> None:
        self.plan = plan
        self.store = store
        self.random = Random(seed)
        self.wall = wall
        self.replicas: list[Replica] = []
        self.used_by_gone: dict[tuple[str, int], int] = {}  # by limit and window: of replicas that are no more
        self.refusals: list[Refusal] = []
        self.admitted = 0
        self.lost_share = 0.0  # of calls
        self.is_store_away = False
        self.each_step: Callable[[], object] | None = None
        self.allowed_share = 0.0  # by which a limit may be exceeded
        self.requests_per_second = 0.0  # over all ready replicas
        self.largest_tokens = 100
        self.longest_overshoot = 0  # tokens by which an answer may be longer than reserved
        self._names = 0

    def clock(self) -> float:
        return self.wall

    def milliseconds(self) -> int:
        return int(self.wall * 1000)

    def sleep_of(self, replica: Replica) -> Callable[[float], Awaitable[None]]:
        """While one replica sleeps, the others go on."""

        async def sleep(seconds: float) -> None:
            until = self.wall + seconds
            while self.wall < until:
                await self.step(without=replica)

        return sleep

    async def add(self) -> Replica:
        """A replica that joins and is ready."""
        self._names += 1
        replica = Replica(self, f"r{self._names}")
        self.replicas.append(replica)
        self._beat()
        await replica.leases.join()
        replica.is_ready = True
        return replica

    async def remove(self, replica: Replica) -> None:
        """A replica drains and leaves."""
        replica.is_ready = False
        while replica.running:
            replica.settle(0, 0)
        await replica.leases.leave()
        self._forget(replica)
        for other in self.replicas:
            other.seen.pop(replica.id, None)

    def kill(self, replica: Replica) -> None:
        """A replica is gone without a word, and so are its requests."""
        self._forget(replica)

    async def step(self, without: Replica | None = None) -> None:
        """The time of one round: requests everywhere, then a round of each replica, in any order."""
        if self.each_step is not None:
            self.each_step()
        self.wall += ROUND_SECONDS * self.random.uniform(0.5, 1.5)
        self._beat()
        for replica in self.random.sample(self.replicas, len(self.replicas)):
            self.traffic(replica)
            if replica is not without and replica.is_ready and not replica.is_stalled:
                await replica.leases.round()
        self.check()

    def traffic(self, replica: Replica) -> None:
        """Requests that come and end at one replica in a part of a round."""
        if not replica.is_ready or self.requests_per_second == 0:
            return
        random = self.random
        share = self.requests_per_second * ROUND_SECONDS / max(1, len(self.replicas)) / 3
        count = int(share) + (random.random() < share % 1)
        for _ in range(count):
            tokens = random.randint(1, self.largest_tokens)
            replica.reserve(tokens, tokens * 300)
        for _ in range(random.randint(0, len(replica.running))):
            index = random.randrange(len(replica.running))
            tokens = random.randint(0, replica.running[index].tokens + self.longest_overshoot)
            replica.settle(index, tokens, tokens * 300)

    def used(self) -> dict[tuple[str, int], int]:
        """What was admitted, by limit and window, over all replicas there were."""
        total = dict(self.used_by_gone)
        for replica in self.replicas:
            for meter in replica.meters():
                if meter.starts_at <= self.wall:
                    total[meter.name, meter.window] = total.get((meter.name, meter.window), 0) + meter.used
        return total

    def check(self) -> None:
        """No limit is exceeded by more than `allowed_share` of it."""
        limits = {meter.name: meter.limit for replica in self.replicas for meter in replica.meters()}
        for (name, window), used in self.used().items():
            limit = limits.get(name, used)
            bound = limit + int(limit * self.allowed_share)
            assert used <= bound, f"{name} window {window}: {used} of {limit} at {self.wall}: {self.replicas}"

    def _beat(self) -> None:
        for replica in self.replicas:
            if replica.mode == "shared" and not self.is_store_away:
                for other in self.replicas:
                    if other.mode == "shared":
                        other.seen[replica.id] = self.wall
            elif replica.mode == "local" or self.is_store_away:
                for name in replica.seen:  # nobody is given up while the store is away
                    replica.seen[name] = self.wall

    def _forget(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        for meter in replica.meters():
            if meter.period != "now" and meter.starts_at <= self.wall:
                key = meter.name, meter.window
                self.used_by_gone[key] = self.used_by_gone.get(key, 0) + meter.used
