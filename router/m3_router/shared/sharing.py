"""All that this replica shares with others through Redis, put together: the link, who is there, prefixes, quotas, the
ledger's stream. Owns their order: join before ready, leave after the last request. Without it a router is alone.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from m3_router.config import AffinitySettings, LedgerSettings, RedisSettings
from m3_router.money.journal import Journal
from m3_router.placement.pools import Pools
from m3_router.shared.affinity_log import AffinityLog
from m3_router.shared.fleet_spend import FleetSpend
from m3_router.shared.leases import Leases
from m3_router.shared.ledger_stream import LedgerStream
from m3_router.shared.link import Link
from m3_router.shared.replicas import Replicas
from m3_router.shared.revocations import Revocations
from m3_router.tenants.tenants import Tenants

UNSEEN_SECONDS: Final = 30.0  # that a worker which others told of has, until the list of workers names it
FLUSH_SECONDS: Final = 1.0  # that the last bills have to get to Redis

_log = logging.getLogger(__name__)


class Sharing:
    """One replica's part in what all share. `start`, and `stop` once nothing is in flight."""

    def __init__(
        self,
        settings: RedisSettings,
        affinity_settings: AffinitySettings,
        ledger_settings: LedgerSettings,
        *,
        name: str,
        pools: Pools,
        tenants: Tenants,
        journal: Journal | None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        """`name`: what people call this replica."""
        self._pools = pools
        self.link = Link(settings, self._mode_changed)
        self.replicas = Replicas(
            self.link, name, self._own_tokens, on_count=self._count_changed, on_tokens=self._take_remote_tokens
        )
        self.affinity_log: AffinityLog | None = None
        if affinity_settings.enabled:
            indexes = {pool.name: pool.affinity for pool in pools if pool.affinity is not None}
            self.affinity_log = AffinityLog(self.link, self.replicas.id, indexes, affinity_settings)
        self.leases = Leases(self.link, self.replicas, tenants.quotas, clock=clock, wall_clock=wall_clock)
        self.revocations = Revocations(self.link, tenants, wall_clock)
        self.ledger_stream: LedgerStream | None = None
        self.fleet_spend: FleetSpend | None = None
        if journal is not None:
            self.ledger_stream = LedgerStream(self.link, journal, ledger_settings.stream_entries)
            self.fleet_spend = FleetSpend(self.link, journal.name)
        self._tasks: list[asyncio.Task[None]] = []
        self._has_joined = False
        self._leasing: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self.has_agreed = False  # with the others, on who may use how much

    @property
    def is_ready(self) -> bool:
        """Whether this replica answers as the others do: it knows their placements, and has its part of the quotas."""
        return self._has_joined and (self.affinity_log is None or self.affinity_log.is_caught_up)

    def start(self) -> None:
        """Begin; `is_ready` says when it has caught up."""
        runs = [self.link.run(), self._join(), self.revocations.run()]
        if self.affinity_log is not None:
            runs.append(self.affinity_log.run())
            runs.append(self._forget_unseen(self.affinity_log))
        if self.ledger_stream is not None:
            runs.append(self.ledger_stream.run())
        if self.fleet_spend is not None:
            runs.append(self.fleet_spend.run())
        self._reporting = asyncio.create_task(self.replicas.run())
        self._tasks = [self._reporting, *(asyncio.create_task(run) for run in runs)]

    async def stop(self) -> None:
        """Say goodbye and end."""
        if self.ledger_stream is not None:
            await self.ledger_stream.flush(FLUSH_SECONDS)
        if self._leasing is not None:
            self._leasing.cancel()
        await self.leases.leave()
        if self._reporting is not None:  # a report behind the goodbye would bring this replica back
            self._reporting.cancel()
            await asyncio.gather(self._reporting, return_exceptions=True)
        await self.replicas.leave()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _join(self) -> None:
        self._leasing = asyncio.current_task()
        await self.revocations.poll()
        self.has_agreed = await self.leases.join()
        self._has_joined = True
        await self.leases.run()

    async def _forget_unseen(self, log: AffinityLog) -> None:
        """Let go of workers that others told of and that this replica does not have: they have left meanwhile."""
        while True:
            await asyncio.sleep(UNSEEN_SECONDS)
            if log.is_caught_up:
                for pool in self._pools:
                    if pool.affinity is not None:
                        pool.affinity.retire_unseen({worker.uid for worker in pool.workers})

    def _own_tokens(self) -> dict[str, int]:
        return {
            worker.uid: worker.load_tokens() - worker.remote_tokens for pool in self._pools for worker in pool.workers
        }

    def _take_remote_tokens(self, tokens: dict[str, int]) -> None:
        for pool in self._pools:
            for worker in pool.workers:
                pool.workers.set_remote_tokens(worker, tokens.get(worker.uid, 0))

    def _mode_changed(self, mode: str, reason: str) -> None:
        if mode == "shared":
            _log.info("Redis: shared with the other replicas")
        else:
            _log.warning("Redis: going on alone: %s", reason)

    def _count_changed(self, count: int) -> None:
        _log.info("%d replicas share this router's work", count)
