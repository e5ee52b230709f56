"""One router: all its parts put together, started, drained and stopped.

Owns which part knows which, and the order of beginning and end. What a part does is its own; what runs in a process
beside the router (signals, command line, several processes) is `server`'s.
"""

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
import time
from collections.abc import Coroutine, Iterator
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from prometheus_client.registry import Collector
from starlette.types import ASGIApp

from m3_router.admin import Access as AdminAccess
from m3_router.admin import (
    AdminServer,
    Audit,
    Observatory,
    RouterSources,
    UsageSource,
    admin_app,
    behind_supervisor,
    day_of,
    limits_of,
    tenants_of,
)
from m3_router.admin.document import LimitNow, RedisMode, TenantNow
from m3_router.changes import Changes
from m3_router.collectors import PartsCollector
from m3_router.config import ExternalUpstream, RouterConfig, ServiceWorkers, load_access
from m3_router.http.client_end import ClientConnection
from m3_router.http.connections import Connections
from m3_router.http.worker_end import WorkerConnections
from m3_router.money.bill import Bill
from m3_router.money.estimates import TokenEstimates
from m3_router.money.journal import Journal, open_journal
from m3_router.money.ledger import Ledger
from m3_router.money.prices import PriceTable
from m3_router.money.spend import Spend, rebuild
from m3_router.money.usage_report import UsageReport
from m3_router.placement.caches import Caches
from m3_router.placement.pools import Pool, Pools
from m3_router.placement.probes import Prober
from m3_router.relay import relay
from m3_router.relay.counting import ExactCounts
from m3_router.relay.models import ModelList
from m3_router.relay.moderation import Moderator
from m3_router.relay.routes import Routes
from m3_router.relay.services import Services
from m3_router.relay.settlement import Settlement, WorkerDirectory
from m3_router.shared.collector import SharingCollector
from m3_router.shared.sharing import Sharing
from m3_router.sockets import BACKLOG, listen, name_of
from m3_router.telemetry import log
from m3_router.telemetry.attainment import Attainment
from m3_router.telemetry.metrics import Metrics, MetricsCollector
from m3_router.telemetry.tracing import SpanSender, Traces, otlp_sender
from m3_router.tenants.access_file import AccessFile
from m3_router.tenants.key_file import KeyFile
from m3_router.tenants.quotas import Quotas
from m3_router.tenants.tenants import Tenants
from m3_router.workers.endpoints import EndpointWatch
from m3_router.workers.workers import WorkerAddress

TICK_SECONDS = 0.25
RECOVERY_SECONDS = 60.0  # that bills of an earlier process wait for a worker which could say what they used
# Whether this build's hot path was compiled (setup.py), or is interpreted and half as fast.
HOT_PATH = "interpreted" if relay.__file__.endswith(".py") else "compiled"

_log = logging.getLogger(__name__)


class Router:
    """One router: everything that runs in the event loop of the process."""

    def __init__(
        self,
        config: RouterConfig,
        log_stream: BinaryIO,
        *,
        path: Path | None = None,
        process: int = 0,
        worker_tls: ssl.SSLContext | None = None,
    ) -> None:
        """Raises ConfigError if a file that the configuration names cannot be used. Must be made in the running loop.

        path: where the configuration was read from, to be read again when it changes.
        process: which of the configuration's processes this is.
        worker_tls: how certificates of external upstreams are checked; None: by the system's authorities.
        """
        self._config = config
        self._loop = asyncio.get_running_loop()
        clock, wall_clock = time.monotonic, time.time
        self._name = socket.gethostname() + (f"/{process}" if config.processes > 1 else "")
        self._lines = log.LineWriter(log_stream)
        self._tasks: list[asyncio.Task[None]] = []
        self._watches: list[EndpointWatch] = []
        self._listener: asyncio.Server | None = None
        self._admin: AdminServer | None = None
        self.address = self.admin_address = ""

        # who may do what, and what it costs
        self._prices = PriceTable(config)
        self._estimates = TokenEstimates()
        access = None if config.auth == "none" else load_access(config.auth)
        # Without Redis, the processes cannot lend each other what they do not use.
        quotas = Quotas() if config.redis is not None else Quotas(config.processes, process)
        self._tenants = Tenants(access, quotas)

        # workers, and the ways to them
        self._pools = Pools.from_config(config, clock())
        self._worker_connections = WorkerConnections(self._loop, worker_tls)
        self._probe_connections = WorkerConnections(self._loop, worker_tls)
        self._counts = ExactCounts(self._loop, self._probe_connections)
        self._moderator = None if config.moderation is None else Moderator(config.moderation)

        # what is settled, and who is told
        self._journal = open_journal(config, process)
        self._settlement = Settlement(self._loop, self._probe_connections, WorkerDirectory(list(self._pools)).find)
        self._metrics = Metrics()
        self._spend = Spend()
        self._spans: SpanSender | None = None
        if config.tracing is not None:
            self._spans = otlp_sender(config.tracing, name=self._name, version=version("m3serve"))
        self._sharing: Sharing | None = None
        if config.redis is not None:
            self._sharing = Sharing(
                config.redis,
                config.affinity,
                config.ledger,
                name=self._name,
                pools=self._pools,
                tenants=self._tenants,
                journal=self._journal,
                clock=clock,
                wall_clock=wall_clock,
            )
        self._attainment = Attainment(config.lanes)
        readers = [self._metrics.count, self._attainment.read, self._spend.count, self._estimates.read, self._observe]
        if self._spans is not None:
            readers.append(self._spans.read)
        self._ledger = Ledger(
            self._prices,
            self._lines.write,
            readers,
            self._loop.call_later,
            name=token_hex(8),
            journal=self._journal,
            records=self._settlement,
            stream=None if self._sharing is None else self._sharing.ledger_stream,
        )

        others = None if self._sharing is None else self._sharing.fleet_spend
        self._spends = [self._spend] if others is None else [self._spend, others.others]

        # clients
        shared_log = None if self._sharing is None else self._sharing.affinity_log
        self._caches = Caches(self._probe_connections, None if shared_log is None else shared_log.gone)
        self._connections = Connections(config.limits, clock)
        self._services = Services(
            pools=self._pools,
            prices=self._prices,
            estimates=self._estimates,
            counts=self._counts,
            ledger=self._ledger,
            block_bytes=config.affinity.block_bytes if config.affinity.enabled else 0,
            caches=self._caches,
            note_placement=None if shared_log is None else shared_log.note,
            moderator=self._moderator,
            workers=self._worker_connections,
            limits=self._connections.limits,
            loop=self._loop,
            clock=clock,
            wall_clock=wall_clock,
            traces=None if config.tracing is None else Traces(config.tracing.sample_share),
        )
        self._routes = Routes(
            self._services,
            self._tenants,
            ModelList(config, self._prices, wall_clock),
            UsageReport(self._spends, wall_clock),
        )

        # people
        self._audit = Audit(self._lines.write, wall_clock)
        changes = Changes(config, self._tenants, self._pools, self._sharing)
        self._access_file = AccessFile(path, config, access, changes.take, wall_clock=wall_clock)
        self._acts = changes.acts(self._access_file)
        self._observatory = Observatory(
            RouterSources(
                name=self._name,
                version=version("m3serve"),
                hot_path=HOT_PATH,
                started=wall_clock(),
                pools=self._pools,
                connections=self._connections,
                tenants=self._tenants_now,
                warmup_seconds=config.affinity.warmup_seconds,
                redis=self._redis_now,
            ),
            config.lanes,
            self._audit,
            self._acts.names,
        )
        self._probers = {pool.name: self._prober(pool) for pool in self._pools}

    # ---- life

    async def start(self, *, listen_at: str | None = None, admin_socket: socket.socket | None = None) -> None:
        """Listen, and begin to look for workers. Raises OSError if an address cannot be used.

        listen_at, admin_socket: what a supervisor has made of the configured addresses; its own socket is a Unix one.
        """
        data_socket = listen(listen_at or self._config.listen, is_shared=self._config.processes > 1)
        admin_socket = admin_socket or listen(self._config.admin)
        admin = self._admin_app()
        if admin_socket.family == socket.AF_UNIX:
            admin = behind_supervisor(admin)
        self.address, self.admin_address = name_of(data_socket), name_of(admin_socket)
        self._admin = AdminServer(admin)
        self._run(self._admin.serve([admin_socket]))
        admin_socket.listen()  # before it is said
        self._run(self._tick())
        self._run(self._access_file.run())
        for pool in self._pools:
            pool.workers.on_count = functools.partial(self._services.count_workers, pool)
            self._find_workers(pool)
            self._run(self._probers[pool.name].run())
        if self._sharing is not None:
            self._sharing.start()
        if self._journal is not None:
            self._run(self._recover(self._journal))
        self._listener = await self._loop.create_server(
            lambda: ClientConnection(self._routes, self._connections, self._loop), sock=data_socket, backlog=BACKLOG
        )
        _log.info("listening on %s, admin on %s, hot path %s", self.address, self.admin_address, HOT_PATH)

    async def drain(self) -> None:
        """Stop accepting and let what runs finish, and what was cut off be settled, for at most `limits.drainSeconds`;
        then break off the rest.
        """
        if self._listener is not None:
            self._listener.close()
        self._connections.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.limits.drain_seconds):
                await self._connections.wait_until_empty()
                while self._ledger.pending:  # noqa: ASYNC110 - workers say within seconds what they were asked
                    await asyncio.sleep(TICK_SECONDS)
        if self._connections.all:
            _log.warning("broke off %d connections after the drain time", len(self._connections.all))
            self._connections.interrupt()

    async def stop(self) -> None:
        """End everything at once. Harmless after `drain`."""
        if self._listener is not None:
            self._listener.close()
        self._connections.interrupt()
        for watch in self._watches:
            watch.stop()
        self._counts.close()
        self._caches.close()
        self._settlement.close()
        self._ledger.close()
        if self._sharing is not None:
            await self._sharing.stop()
        if self._admin is not None:
            self._admin.should_exit = True
            await self._tasks[0]
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks[1:], return_exceptions=True)
        if self._moderator is not None:
            await self._moderator.close()
        self._worker_connections.close()
        self._probe_connections.close()
        await asyncio.sleep(0)  # connections that were aborted are told so in the next round of the loop
        self._ledger.publish()
        if self._journal is not None:
            self._journal.close()
        if self._spans is not None:
            self._spans.close()
        self._lines.close()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(coroutine))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            for pool in self._pools:
                pool.lanes.tick(now)
                self._services.follow(pool)
            self._connections.tick(now)
            self._observatory.tick(now, time.time())

    async def _recover(self, journal: Journal) -> None:
        """Sum up what the journal has of earlier processes; settle what the last one left open, once the workers that
        could say what it used are known.
        """
        earlier = await asyncio.to_thread(rebuild, journal.directory, journal.first_sequence)
        self._spend.add(earlier)
        self._count_earlier(earlier)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECOVERY_SECONDS):
                while not self._pools.has_ready_worker():  # noqa: ASYNC110 - a few times, at start
                    await asyncio.sleep(TICK_SECONDS)
        count = self._ledger.recover()
        if count:
            _log.warning("settling %d requests that an earlier process of this router left open", count)

    def _count_earlier(self, earlier: Spend) -> None:
        """What was used before this process began, against the limits; where replicas agree, the others know it."""
        if self._sharing is not None and self._sharing.has_agreed:
            return
        wall = time.time()
        day = day_of(wall)
        first_days = {"day": day, "month": day[:7], "total": ""}
        for quota in self._tenants.quotas.all():
            rows = earlier.rows(tenant=quota.tenant)
            tokens = sum(row.input_tokens + row.output_tokens for row in rows if row.day == day)
            cost = sum(row.cost_nanousd for row in rows if row.day >= first_days.get(quota.budget_period, day))
            if tokens or cost:
                quota.begin_with(tokens, cost, wall)

    # ---- workers

    def _prober(self, pool: Pool) -> Prober:
        return Prober(pool, self._probe_connections, self._worker_lost, self._caches.returned)

    def _find_workers(self, pool: Pool) -> None:
        source = pool.settings.workers
        if isinstance(source, ServiceWorkers):
            watch = EndpointWatch(source, functools.partial(self._workers_changed, pool))
            self._watches.append(watch)
            watch.start()
        elif isinstance(source, ExternalUpstream):
            pool.workers.replace([WorkerAddress.from_url(source.url)])
            self._run(KeyFile(source.api_key_file, pool.use_key).run())
        else:
            pool.workers.replace(WorkerAddress.from_url(url) for url in source)

    def _workers_changed(self, pool: Pool, addresses: list[WorkerAddress]) -> None:
        """Called in the thread of a watch."""
        self._loop.call_soon_threadsafe(self._replace_workers, pool, addresses)

    def _replace_workers(self, pool: Pool, addresses: list[WorkerAddress]) -> None:
        names = ", ".join(address.name for address in addresses)
        _log.info("pool %s has %d workers: %s", pool.name, len(addresses), names)
        for worker in pool.workers.replace(addresses):
            self._worker_lost(worker.address)
            self._probe_connections.close_worker(worker.address)
            self._caches.left(pool, worker)
        self._probers[pool.name].hurry()

    def _worker_lost(self, address: WorkerAddress) -> None:
        self._worker_connections.close_worker(address)

    # ---- what bills teach

    def _observe(self, bills: list[Bill]) -> None:
        self._observatory.read(bills, time.monotonic())

    # ---- the admin port

    def _redis_now(self) -> tuple[RedisMode, str, int | None]:
        if self._sharing is None:
            return "none", "", None
        return self._sharing.link.mode, self._sharing.link.reason, self._sharing.replicas.count

    def _tenants_now(self, wall: float) -> list[TenantNow]:
        day = day_of(wall)
        return tenants_of(self._spend.rows(first_day=day, last_day=day), functools.partial(self._plan_now, wall))

    def _plan_now(self, wall: float, tenant: str) -> tuple[str | None, list[LimitNow]]:
        quota = self._tenants.quotas.get(tenant)
        return (None, []) if quota is None else (self._tenants.plan_of(tenant), limits_of(quota, wall))

    def _admin_app(self) -> ASGIApp:
        return admin_app(
            ledger=self._ledger,
            pools=self._pools,
            collectors=self._collectors(),
            why_not_ready=self._why_not_ready,
            observatory=self._observatory,
            access=AdminAccess(self._config.admin_key_sha256),
            acts=self._acts,
            audit=self._audit,
            usage=UsageSource(self._spends, None if self._journal is None else self._journal.directory),
        )

    def _collectors(self) -> Iterator[Collector]:
        yield MetricsCollector(
            self._metrics,
            self._ledger,
            self._pools,
            self._connections,
            lambda: self._lines.dropped,
            clock=time.monotonic,
            build={"version": version("m3serve"), "hot_path": HOT_PATH},
        )
        yield PartsCollector(
            pools=self._pools,
            ledger=self._ledger,
            journal=self._journal,
            settlement=self._settlement,
            counts=self._counts,
            moderator=self._moderator,
            spans=self._spans,
            access_file=self._access_file,
            attainment=self._attainment,
            quotas=self._tenants.quotas,
        )
        if self._sharing is not None:
            yield SharingCollector(self._sharing)

    def _why_not_ready(self) -> str | None:
        if self._connections.is_draining:
            return "draining"
        if self._sharing is not None and not self._sharing.is_ready:
            return "catching up with the other replicas"
        return None if self._pools.can_take_requests() else "no worker is ready"
