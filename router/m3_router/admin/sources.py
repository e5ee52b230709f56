"""What the console asks the router: a protocol, and the router's own objects behind it.

Owns the translation from live objects to the records of `document`, and no state. Everything here runs in the event
loop, where the data plane's state is never half changed.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from m3_router.admin.document import LaneNow, PoolNow, RedisMode, RouterNow, TenantNow, WorkerNow
from m3_router.admin.recent import lane_name
from m3_router.http.connections import Connections
from m3_router.lanes.lane import LaneSnapshot
from m3_router.placement.pools import Pool, Pools
from m3_router.workers.workers import Worker


class Sources(Protocol):
    """What the document is made of, beside the bills. `now` is monotonic, `wall` since the epoch, both in seconds."""

    def router(self) -> RouterNow:
        """The process."""

    def pools(self, now: float) -> list[PoolNow]:
        """The pools, with their lanes and workers. `WorkerNow.recent` is left to the console."""

    def tenants(self, wall: float) -> Sequence[TenantNow]:
        """What every tenant has used since midnight UTC, in any order."""


class RouterSources:
    """The objects of one running router. `redis`: its mode, why, and how many replicas live."""

    def __init__(
        self,
        *,
        name: str,
        version: str,
        hot_path: str,
        started: float,
        pools: Pools,
        connections: Connections,
        tenants: Callable[[float], Sequence[TenantNow]],
        warmup_seconds: float = 0.0,
        redis: Callable[[], tuple[RedisMode, str, int | None]] = lambda: ("none", "", None),
    ) -> None:
        self._name = name
        self._version = version
        self._hot_path = hot_path
        self._started = started
        self._pools = pools
        self._connections = connections
        self._tenants = tenants
        self._warmup_seconds = warmup_seconds
        self._redis = redis

    def router(self) -> RouterNow:
        """The process."""
        connections, (mode, reason, replicas) = self._connections, self._redis()
        return RouterNow(
            name=self._name,
            version=self._version,
            hot_path=self._hot_path,
            started=self._started,
            is_draining=connections.is_draining,
            connections=len(connections.all),
            connections_limit=connections.limits.connections,
            buffered_bytes=connections.buffered_bytes,
            buffered_limit_bytes=connections.limits.buffered_bytes,
            redis_mode=mode,
            redis_reason=reason,
            replicas=replicas,
        )

    def pools(self, now: float) -> list[PoolNow]:
        """The pools, in the order of the configuration."""
        return [_pool_now(pool, now, self._warmup_seconds) for pool in self._pools]

    def tenants(self, wall: float) -> Sequence[TenantNow]:
        """What every tenant has used today."""
        return self._tenants(wall)


def _pool_now(pool: Pool, now: float, warmup_seconds: float) -> PoolNow:
    lanes = pool.lanes
    return PoolNow(
        name=pool.name,
        models=pool.settings.models,
        engine=pool.engine,
        limit_tokens=pool.settings.tokens_in_flight,
        standard_share_tokens=lanes.standard_share_tokens,
        drain_tokens_per_second=round(sum(lane.drain_tokens_per_second for lane in lanes.snapshot(now)), 1),
        lanes=[_lane_now(lane) for lane in lanes.snapshot(now)],
        workers=[
            _worker_now(worker, now, warmup_seconds) for worker in sorted(pool.workers, key=lambda worker: worker.name)
        ],
    )


def _lane_now(lane: LaneSnapshot) -> LaneNow:
    return LaneNow(
        name=lane_name(lane.service_tier, lane.context_tier),
        service_tier=lane.service_tier,
        context_tier=lane.context_tier,
        in_flight_tokens=lane.in_flight_tokens,
        waiting=lane.waiting,
        waiting_tokens=lane.waiting_tokens,
        oldest_wait_seconds=lane.oldest_wait_seconds,
    )


def _worker_now(worker: Worker, now: float, warmup_seconds: float) -> WorkerNow:
    return WorkerNow(
        name=worker.name,
        address=f"{worker.address.host}:{worker.address.port}",
        state=worker.state,
        reason=worker.reason,
        requests=worker.requests,
        tokens_in_flight=worker.tokens,
        prefill_tokens=worker.prefill_tokens,
        remote_tokens=worker.remote_tokens,
        long_prefills=worker.long_prefills,
        breaker=worker.breaker.state,
        epoch=worker.epoch or None,
        is_warming_up=worker.slot >= 0 and now - worker.since < warmup_seconds,
        is_held=worker.is_held,
    )
