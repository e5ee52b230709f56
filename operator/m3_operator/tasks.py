"""What runs beside the watches while this operator acts: the cycles, the full looks, the experts.

Each is a loop that ends with the process, or when it is cancelled; a defect of one object is logged and tried again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import httpx

from m3_operator import log
from m3_operator.chance import Chance
from m3_operator.cluster import Cluster
from m3_operator.errors import ApiError
from m3_operator.experts.keeper import ExpertKeeper
from m3_operator.experts.worker_client import WorkerClient
from m3_operator.health import Watches
from m3_operator.reconcile.cycle import Reconciler
from m3_operator.startup import look
from m3_operator.store import Store
from m3_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

_RELIST_SECONDS: Final = 300.0
_AFTER_DEFECT_SECONDS: Final = 60.0
_WORKER_SECONDS: Final = 10.0


async def work(queue: WorkQueue, reconciler: Reconciler, cycles: log.Cycles) -> None:
    """Take objects from the queue and give each its cycle, for ever; a defect of one is logged and tried again."""
    while True:
        key = await queue.take()
        wake_in: float | None = None
        with cycles.of(key):
            try:
                wake_in = await reconciler.cycle(key)
            except Exception:
                logger.exception("%s: defect; trying again in %.0f s", key, _AFTER_DEFECT_SECONDS)
                wake_in = _AFTER_DEFECT_SECONDS
            finally:
                queue.done(key, wake_in)


async def look_again(
    cluster: Cluster,
    store: Store,
    queue: WorkQueue,
    kinds: Sequence[str],
    *,
    namespace: str | None,
    chance: Chance,
    watches: Watches,
) -> None:
    """A full list and a cycle of everything now and then, for what a broken watch did not tell."""
    while True:
        await asyncio.sleep(_RELIST_SECONDS * chance.between(0.9, 1.1))
        for kind in kinds:
            with contextlib.suppress(ApiError):  # the next one may succeed; the watch goes on
                news = await look(cluster, store, kind, namespace)
                watches.listed(kind, is_news=bool(news))
        queue.wake_all(store.owners())


async def keep_experts(store: Store, queue: WorkQueue, clock: Callable[[], datetime]) -> None:
    """Look after the experts of running groups."""
    async with httpx.AsyncClient(timeout=_WORKER_SECONDS, trust_env=False) as client:
        await ExpertKeeper(store, WorkerClient(client), clock=clock, wake=queue.wake_all).run()
