"""Asking workers, routers and DCGM's exporters for their metrics, and putting what they say into the store.

Owns when whom is asked, the last two pages of each, and the history of samples. Nobody's trouble is anybody else's:
each request has a time and a size limit, few run at once, and who does not answer is counted and, after a while, called
silent. What to make of it is the plan's; a deployment is woken only when its plan may want something else.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

import httpx

from m3_operator import names
from m3_operator.errors import OperatorError
from m3_operator.observed import DeploymentSnapshot, Key
from m3_operator.signals.history import extended, matters, sample
from m3_operator.signals.parse import (
    DcgmGpus,
    Page,
    dcgm_gpus,
    fetch_signals,
    read_page,
    router_signals,
    worker_signals,
)
from m3_operator.signals.targets import Target, Targets, targets
from m3_operator.signals.values import SCRAPE_SECONDS, STALE_AFTER_SECONDS, FetchSignals, RouterSignals, WorkerSignals
from m3_operator.store import Store

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS: Final = 3.0
CONNECT_SECONDS: Final = 1.0
PAGE_MAX_BYTES: Final = 4 * 2**20
_AT_ONCE: Final = 128
_FIRST_PAUSE_SECONDS: Final = 15.0
_LONGEST_PAUSE_SECONDS: Final = 120.0
_TICK_SECONDS: Final = 0.5
_SPREAD_SECONDS: Final = 60.0
_FORGET_AFTER: Final = timedelta(minutes=2)
_STALE_AFTER: Final = timedelta(seconds=STALE_AFTER_SECONDS)


class FetchError(OperatorError):
    """A process did not give its page. The message is one line."""


class Fetch(Protocol):
    """How a page is got: `http_fetch`, or what a test has."""

    async def __call__(self, url: str) -> str:
        """The text at this URL. Raises FetchError."""


@asynccontextmanager
async def http_fetch() -> AsyncIterator[Fetch]:
    """Pages over HTTP, by one client with a bounded pool."""
    limits = httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=_AT_ONCE)
    # Pods are asked directly: no proxy of the environment, and nobody may send us elsewhere.
    async with httpx.AsyncClient(
        timeout=httpx.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS),
        limits=limits,
        trust_env=False,
        follow_redirects=False,
    ) as client:

        async def fetch(url: str) -> str:
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS), client.stream("GET", url) as answer:
                    if answer.status_code != 200:
                        raise FetchError(f"HTTP {answer.status_code}")
                    body = bytearray()
                    async for part in answer.aiter_bytes():
                        body += part
                        if len(body) > PAGE_MAX_BYTES:
                            raise FetchError(f"more than {PAGE_MAX_BYTES} bytes")
                    return body.decode("utf-8", "replace")
            except TimeoutError:
                raise FetchError(f"no answer within {TIMEOUT_SECONDS:g} s") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise FetchError(f"{type(error).__name__}: {error}") from None

        yield fetch


@dataclass
class _Source:
    """One page that is asked for again and again."""

    first_asked_at: datetime
    wanted_at: datetime  # when somebody last wanted to know
    tried_at: datetime
    page: Page | None = None
    before: Page | None = None
    at: datetime | None = None  # when `page` came
    failures: int = 0  # in a row
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def is_silent(self, now: datetime) -> bool:
        return now - (self.at or self.first_asked_at) > _STALE_AFTER

    def is_due(self, now: datetime, pace: Targets) -> bool:
        """Whether to ask again: not what was just asked, nor too often in vain what nobody's size depends on."""
        if self.at is not None and timedelta() <= now - self.at < timedelta(seconds=pace.every_seconds / 2):
            return False
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(self.failures - 1, 10), _LONGEST_PAUSE_SECONDS)
        return pace.is_scaled or self.failures == 0 or now - self.tried_at >= timedelta(seconds=pause)

    def fresh_page(self, now: datetime) -> Page | None:
        return self.page if self.at is not None and now - self.at <= _STALE_AFTER else None


class Scraper:
    """Keeps the signals of all deployments that need them."""

    def __init__(
        self,
        store: Store,
        fetch: Fetch,
        *,
        clock: Callable[[], datetime],
        wake: Callable[[Iterable[Key]], None],
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._clock = clock
        self._wake = wake
        self._sources: dict[tuple[str, str], _Source] = {}  # by pod uid and URL: addresses are used again
        self._looked_at: dict[Key, datetime] = {}  # when its plan was last woken
        self._due: dict[Key, float] = {}  # loop time of the next look
        self._busy: set[Key] = set()  # looks under way
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self.scrapes = 0
        self.failures = 0

    def __repr__(self) -> str:
        return f"Scraper({len(self._sources)} pages, {self.scrapes} scrapes, {self.failures} failed)"

    async def run(self, *, spread: float = 1.0) -> None:
        """Look at every deployment in its time, until cancelled. `spread` 0 makes the first looks at once."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as looks:
            while True:
                owners = [key for key in self._store.owners() if key.kind == names.DEPLOYMENT_KIND]
                for key in owners:
                    if key not in self._due:
                        self._due[key] = loop.time() + spread * self._first_pause(key)
                    if key not in self._busy and self._due[key] <= loop.time():
                        self._busy.add(key)
                        looks.create_task(self._look_in_turn(key))
                self._forget(set(owners))
                await asyncio.sleep(_TICK_SECONDS)

    def _first_pause(self, key: Key) -> float:
        """So that a start is not the time to ask everybody; autoscalers wait for their first sample."""
        spec = (self._store.get(key) or {}).get("spec", {})
        longest = SCRAPE_SECONDS if spec.get("autoscaling") else _SPREAD_SECONDS
        return random.uniform(0, longest)  # noqa: S311 - spreading load

    async def look(self, key: Key) -> Targets | None:
        """Ask everybody about one deployment, once; who was asked, None if nobody had to be."""
        snapshot = self._store.deployment_snapshot(key)
        asked = None if snapshot is None else targets(snapshot, self._store.router_pods(key))
        if snapshot is None or asked is None:
            return None
        places = [(target.uid, target.url) for target in (*asked.workers, *asked.routers, *asked.fetchers)]
        places += [("", url) for url in asked.dcgm]
        await asyncio.gather(*(self._refresh(place, asked) for place in places))
        self._take_in(key, snapshot, asked, self._clock())
        return asked

    async def _look_in_turn(self, key: Key) -> None:
        asked: Targets | None = None
        try:
            asked = await self.look(key)
        except Exception:
            # A defect here must stop neither the operator nor the scrapes of others.
            logger.exception("%s: its metrics could not be read", key)
        finally:
            pause = SCRAPE_SECONDS if asked is None else asked.every_seconds
            self._due[key] = asyncio.get_running_loop().time() + pause
            self._busy.discard(key)

    async def _refresh(self, place: tuple[str, str], pace: Targets) -> None:
        """Get a page, unless it is fresh: routers and exporters tell of several deployments at once."""
        now = self._clock()
        source = self._sources.setdefault(place, _Source(first_asked_at=now, tried_at=now, wanted_at=now))
        async with source.lock:
            source.wanted_at = now = self._clock()
            if not source.is_due(now, pace):
                return
            source.tried_at = now
            self.scrapes += 1
            try:
                async with self._slots:
                    page = read_page(await self._fetch(place[1]))
            except OperatorError as error:
                self.failures += 1
                source.failures += 1
                if source.failures == 1:
                    logger.info("%s: %s", place[1], error)
                return
            source.before, source.page, source.at = source.page, page, self._clock()
            source.failures = 0

    def _take_in(self, key: Key, snapshot: DeploymentSnapshot, asked: Targets, now: datetime) -> None:
        workers = self._workers(key, snapshot, asked, now)
        routers: dict[str, RouterSignals] = {}
        for target in asked.routers:
            source = self._sources[target.uid, target.url]
            page = source.fresh_page(now)
            if page is not None and source.at is not None:
                routers[target.uid] = router_signals(page, source.before, asked.pool, asked.models, source.at)
        silent = [target.name for target in (*asked.workers, *asked.routers) if self._is_silent(target, now)]
        silent += [url for url in asked.dcgm if self._sources["", url].is_silent(now)]
        serving = {pod.uid for pod in snapshot.pods if pod.is_ready and not pod.is_terminating}
        taken = sample(
            {uid: worker for uid, worker in workers.items() if uid in serving},
            routers,
            ready=asked.ready,
            silent=silent,
            at=now,
        )
        before = snapshot.signals
        after = replace(extended(before, workers, routers, taken), fetches=self._fetches(asked, now))
        self._store.put_signals(key, after)
        leaving = {pod.uid for pod in snapshot.pods if pod.is_terminating}
        if matters(before, after, self._looked_at.get(key), is_scaled=asked.is_scaled, leaving=leaving):
            self._looked_at[key] = now
            self._wake([key])

    def _workers(
        self, key: Key, snapshot: DeploymentSnapshot, asked: Targets, now: datetime
    ) -> dict[str, WorkerSignals]:
        gpus = [dcgm_gpus(page) for url in asked.dcgm if (page := self._sources["", url].fresh_page(now)) is not None]
        nodes = {pod.uid: pod.node_name for pod in snapshot.pods}
        workers: dict[str, WorkerSignals] = {}
        for target in asked.workers:
            source = self._sources[target.uid, target.url]
            page = source.fresh_page(now)
            if page is None or source.at is None:
                continue
            found = worker_signals(page, source.before, source.at)
            if found is not None and asked.dcgm:
                found = _with_dcgm(found, gpus, key.namespace, target.name, nodes.get(target.uid))
            if found is not None:
                workers[target.uid] = found
        return workers

    def _fetches(self, asked: Targets, now: datetime) -> dict[str, FetchSignals]:
        pages = ((target.uid, self._sources[target.uid, target.url].fresh_page(now)) for target in asked.fetchers)
        told = ((uid, fetch_signals(page)) for uid, page in pages if page is not None)
        return {uid: found for uid, found in told if found is not None}

    def _is_silent(self, target: Target, now: datetime) -> bool:
        return self._sources[target.uid, target.url].is_silent(now)

    def _forget(self, owners: set[Key]) -> None:
        """What nobody asks for any more."""
        oldest = self._clock() - _FORGET_AFTER
        self._sources = {place: source for place, source in self._sources.items() if source.wanted_at > oldest}
        for gone in self._due.keys() - owners - self._busy:
            del self._due[gone]
            self._looked_at.pop(gone, None)


def _with_dcgm(
    worker: WorkerSignals, exporters: Iterable[DcgmGpus], namespace: str, pod: str, node: str | None
) -> WorkerSignals:
    """The worker with the GPUs that an exporter knows to be its; its own words about them do not count then."""
    found = (gpus for exporter in exporters if (gpus := exporter.of(namespace, pod, node)))
    return replace(worker, gpus=next(found, ()))
