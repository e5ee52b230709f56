"""What each worker has cached, as far as its own engine tells: the second source of the affinity index.

Owns one follower a worker (`kv_events`), from the moment it is ready until it leaves the list, and which epoch of its
cache a worker is in. An engine that tells nothing is in one unnamed epoch, and whoever was away is taken to have come
back with nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from m3_router.http.worker_end import WorkerConnections
from m3_router.kv_events.native import Follower
from m3_router.kv_events.view import CacheView
from m3_router.kv_events.vllm import HeldBound, Subscriber
from m3_router.placement.affinity import Affinity
from m3_router.placement.pools import Pool
from m3_router.workers.workers import Worker

UNNAMED_EPOCH: Final = "-"
# Tells other replicas that a worker (pool, uid, epoch) has lost these blocks.
NoteGone = Callable[[str, str, str, list[int]], None]

_log = logging.getLogger(__name__)


class Cache:
    """One worker's cache. A sink of its `CacheView`."""

    def __init__(self, pool: Pool, affinity: Affinity, worker: Worker, note_gone: NoteGone | None) -> None:
        self._pool = pool
        self._affinity = affinity
        self._worker = worker
        self._note_gone = note_gone
        self.view = CacheView(self)
        self.is_told = False  # its engine has begun to tell what it holds
        self.task: asyncio.Task[None] | None = None

    def began(self, epoch: str) -> None:
        """The cache is in this epoch."""
        self.is_told = True
        worker = self._worker
        if worker.epoch not in ("", UNNAMED_EPOCH, epoch):
            _log.info("worker %s of pool %s: what it had cached is gone", worker.name, self._pool.name)
        self._pool.workers.set_epoch(worker, epoch, self._affinity.slot_of(worker.uid, epoch), time.monotonic())

    def stored(self, digests: list[int]) -> None:
        """It holds these blocks."""
        self._affinity.record(digests, self._worker.slot)

    def removed(self, digests: list[int]) -> None:
        """It does not hold these blocks any more."""
        worker = self._worker
        self._affinity.removed(worker.slot, digests)
        if self._note_gone is not None:
            self._note_gone(self._pool.name, worker.uid, worker.epoch, digests)

    def returned(self) -> None:
        """The worker is there, and was not before: without a word of its engine, one that was away has nothing cached.

        One that is seen for the first time has what other replicas have told of it.
        """
        worker, affinity = self._worker, self._affinity
        if worker.epoch in ("", UNNAMED_EPOCH):
            slot = affinity.slot_of(worker.uid, UNNAMED_EPOCH)
            if worker.epoch:
                slot = affinity.cleared(slot)
            self._pool.workers.set_epoch(worker, UNNAMED_EPOCH, slot, time.monotonic())

    def cleared(self) -> None:
        """Its engine says that nothing is cached any more."""
        worker = self._worker
        slot = self._affinity.cleared(worker.slot)
        self._pool.workers.set_epoch(worker, worker.epoch, slot, time.monotonic())

    async def follow(self, connections: WorkerConnections) -> None:
        """Take in what the engine tells, until cancelled."""
        worker, port = self._worker, self._pool.settings.kv_events_port
        if self._pool.engine == "native":
            await Follower(connections, worker.address, self.view).run()
        elif port is not None:
            await Subscriber(worker.address.host, port, HeldBound(self.cleared)).run()


class Caches:
    """Those of all workers, by uid."""

    def __init__(self, connections: WorkerConnections, note_gone: NoteGone | None) -> None:
        self._connections = connections
        self._note_gone = note_gone
        self._by_uid: dict[str, Cache] = {}

    def returned(self, pool: Pool, worker: Worker) -> None:
        """A worker is there, and was not before: follow it from now on, without the pause that its absence has made."""
        if pool.affinity is None:
            return
        cache = self._by_uid.get(worker.uid)
        if cache is None:
            cache = self._by_uid[worker.uid] = Cache(pool, pool.affinity, worker, self._note_gone)
        elif cache.task is not None:
            cache.task.cancel()
        cache.task = asyncio.get_running_loop().create_task(cache.follow(self._connections))
        cache.returned()

    def left(self, pool: Pool, worker: Worker) -> None:
        """A worker is no longer in the list."""
        cache = self._by_uid.pop(worker.uid, None)
        if cache is not None and cache.task is not None:
            cache.task.cancel()
        if pool.affinity is not None:
            pool.affinity.retire(worker.slot)

    def sent(self, worker: Worker, request_id: str, chain: list[int]) -> None:
        """A request with this chain was sent to a worker."""
        cache = self._by_uid.get(worker.uid)
        if cache is not None and cache.is_told:
            cache.view.sent(request_id, chain)

    def answered(self, worker: Worker, request_id: str, input_tokens: int | None) -> None:
        """Its answer has ended; None: the worker has not said how many tokens of input there were."""
        cache = self._by_uid.get(worker.uid)
        if cache is not None and cache.is_told:
            cache.view.answered(request_id, input_tokens)

    def close(self) -> None:
        """Follow nobody any more."""
        for cache in self._by_uid.values():
            if cache.task is not None:
                cache.task.cancel()
