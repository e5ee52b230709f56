"""What exchanges ask, put together once per process. Owns nothing but the ids of requests."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from secrets import token_hex
from typing import Final, cast

from mypy_extensions import trait

from m3_router.http.limits import Limits
from m3_router.http.worker_end import WorkerConnections
from m3_router.money.estimates import TokenEstimates
from m3_router.money.ledger import Ledger
from m3_router.money.prices import PriceTable
from m3_router.placement.caches import Caches
from m3_router.placement.pools import Pool, Pools
from m3_router.relay.counting import ExactCounts
from m3_router.relay.moderation import Moderator
from m3_router.telemetry.tracing import Traces
from m3_router.workers.workers import Worker

# Tells other replicas that a worker (pool, uid, epoch) was sent a prompt with this chain.
NotePlacement = Callable[[str, str, str, list[int]], None]
MAX_REQUEST_ID_BYTES: Final = 128


class RequestIds:
    """Request ids that no other process gives."""

    __slots__ = ("_prefix", "given")

    def __init__(self) -> None:
        self._prefix = f"m3-{token_hex(6)}-"
        self.given = 0

    def next(self) -> str:
        """One that was never given before."""
        self.given += 1
        return self._prefix + str(self.given)


def is_request_id(value: bytes) -> bool:
    """Whether a client's request id can be kept: 1 to 128 visible ASCII characters."""
    return (
        0 < len(value) <= MAX_REQUEST_ID_BYTES
        and value.isascii()
        and value.decode().isprintable()
        and b" " not in value
    )


@trait
class Waiting:
    """Who holds a ticket, and is told what becomes of it."""

    __slots__ = ()

    @abstractmethod
    def admitted(self) -> None:
        """The wait is over."""

    @abstractmethod
    def preempted(self) -> None:
        """Somebody else has taken the place; it waits again."""

    @abstractmethod
    def expired(self, retry_after_seconds: int) -> None:
        """The wait was too long."""


class Services:
    """What exchanges ask. `clock` is monotonic, `wall_clock` since the epoch, both in seconds."""

    __slots__ = (
        "block_bytes",
        "caches",
        "clock",
        "counts",
        "estimates",
        "ledger",
        "limits",
        "loop",
        "moderator",
        "note_placement",
        "pools",
        "prices",
        "request_ids",
        "traces",
        "wall_clock",
        "workers",
    )

    def __init__(
        self,
        *,
        pools: Pools,
        prices: PriceTable,
        estimates: TokenEstimates,
        counts: ExactCounts,
        ledger: Ledger,
        block_bytes: int,
        caches: Caches,
        note_placement: NotePlacement | None,
        moderator: Moderator | None,
        workers: WorkerConnections,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        traces: Traces | None,
    ) -> None:
        self.pools = pools
        self.prices = prices
        self.estimates = estimates
        self.counts = counts
        self.ledger = ledger
        self.block_bytes = block_bytes
        self.caches = caches
        self.note_placement = note_placement
        self.moderator = moderator
        self.workers = workers
        self.limits = limits
        self.loop = loop
        self.clock = clock
        self.wall_clock = wall_clock
        self.traces = traces
        self.request_ids = RequestIds()

    def follow(self, pool: Pool) -> None:
        """Tell the holders of tickets what the lanes have done to them. Not from here: each may change lanes again."""
        lanes = pool.lanes
        if not lanes.has_changes:
            return
        changes = lanes.changes()
        for ticket in changes.preempted:
            self.loop.call_soon(cast(Waiting, ticket.holder).preempted)
        for ticket in changes.admitted:
            self.loop.call_soon(cast(Waiting, ticket.holder).admitted)
        now = self.clock()
        for ticket in changes.expired:
            seconds = lanes.retry_after_seconds(ticket.order, now)
            self.loop.call_soon(cast(Waiting, ticket.holder).expired, seconds)

    def count_workers(self, pool: Pool) -> None:
        """There are more or fewer ready workers: what waits for one goes on in the moment in which it is there."""
        pool.lanes.set_workers(len(pool.workers.ready), self.clock())
        self.follow(pool)

    def placed(self, pool: Pool, worker: Worker, chain: list[int], session: str, request_id: str) -> None:
        """A worker was sent a prompt with this chain, and will hold it."""
        affinity = pool.affinity
        if affinity is None or not chain:
            return
        affinity.record(chain, worker.slot)
        self.caches.sent(worker, request_id, chain)
        if session:
            affinity.pin(session, worker.slot, self.clock())
        if self.note_placement is not None:
            self.note_placement(pool.name, worker.uid, worker.epoch, chain)
