"""Start-up and end of the `m3-router` process: puts the parts together, listens, drains on SIGTERM.

Owns the listeners and the periodic tick. Draining: stop accepting, finish what runs, leave; what has not finished
after `limits.drainSeconds` is broken off with an error.
"""

import argparse
import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import uvicorn
import uvloop

from m3_router import log, relay
from m3_router.admin import admin_app
from m3_router.config import (
    ConfigError,
    ExternalUpstream,
    RouterConfig,
    ServiceWorkers,
    load,
    load_access,
    split_address,
)
from m3_router.endpoints import EndpointWatch
from m3_router.http.client_end import ClientConnection
from m3_router.http.connections import Connections
from m3_router.http.worker_end import WorkerConnections
from m3_router.ledger import Ledger
from m3_router.metrics import Metrics, MetricsCollector
from m3_router.models import ModelList
from m3_router.pools import Pool, Pools
from m3_router.prices import PriceTable
from m3_router.probes import Prober
from m3_router.relay import Services
from m3_router.routes import Routes
from m3_router.tenants import Tenants
from m3_router.workers import WorkerAddress

TICK_SECONDS = 0.25
BACKLOG = 1024
# Whether this build's hot path was compiled (setup.py), or is interpreted and half as fast.
HOT_PATH = "interpreted" if relay.__file__.endswith(".py") else "compiled"

_log = logging.getLogger(__name__)


class Router:
    """One router: everything that runs in the event loop of the process."""

    def __init__(self, config: RouterConfig, log_stream: BinaryIO) -> None:
        """Raises ConfigError if the keys file cannot be used. Must be made in the running loop."""
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._lines = log.LineWriter(log_stream)
        clock = time.monotonic
        prices = PriceTable(config.prices, config.context_tier)
        self._connections = Connections(config.limits, clock)
        self._pools = Pools.from_config(config, clock())
        self._worker_connections = WorkerConnections(self._loop)
        self._probe_connections = WorkerConnections(self._loop)
        self._metrics = Metrics()
        self._ledger = Ledger(prices, self._lines.write, (self._metrics.count,), self._loop.call_later)
        self._routes = Routes(
            Services(
                pools=self._pools,
                prices=prices,
                ledger=self._ledger,
                workers=self._worker_connections,
                limits=config.limits,
                loop=self._loop,
                clock=clock,
                wall_clock=time.time,
            ),
            Tenants(None if config.auth == "none" else load_access(config.auth)),
            ModelList(config, created=int(time.time())),
        )
        self._probers = {pool.settings.name: self._prober(pool) for pool in self._pools}
        self._watches: list[EndpointWatch] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: asyncio.Server | None = None
        self._admin: _AdminServer | None = None
        self.address = self.admin_address = ""

    async def start(self) -> None:
        """Listen, and begin to look for workers. Raises OSError if an address cannot be used."""
        data_socket = _listen(self._config.listen)
        admin_socket = _listen(self._config.admin)
        self.address, self.admin_address = _name(data_socket), _name(admin_socket)
        self._admin = _AdminServer(
            uvicorn.Config(
                admin_app(
                    self._ledger,
                    self._pools,
                    MetricsCollector(
                        self._metrics,
                        self._ledger,
                        self._pools,
                        self._connections,
                        lambda: self._lines.dropped,
                        build={"version": version("m3serve"), "hot_path": HOT_PATH},
                    ),
                    lambda: self._connections.is_draining,
                ),
                log_config=None,
                access_log=False,
                lifespan="off",
            )
        )
        self._tasks.append(self._loop.create_task(self._admin.serve([admin_socket])))
        self._tasks.append(self._loop.create_task(self._tick()))
        for pool in self._pools:
            self._find_workers(pool)
            self._tasks.append(self._loop.create_task(self._probers[pool.settings.name].run()))
        self._listener = await self._loop.create_server(
            lambda: ClientConnection(self._routes, self._connections, self._loop), sock=data_socket, backlog=BACKLOG
        )
        _log.info("listening on %s, admin on %s, hot path %s", self.address, self.admin_address, HOT_PATH)

    async def drain(self) -> None:
        """Stop accepting and let what runs finish, for at most `limits.drainSeconds`; then break off the rest."""
        if self._listener is not None:
            self._listener.close()
        self._connections.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.limits.drain_seconds):
                await self._connections.wait_until_empty()
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
        if self._admin is not None:
            self._admin.should_exit = True
            await self._tasks[0]
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks[1:], return_exceptions=True)
        self._worker_connections.close()
        self._probe_connections.close()
        await asyncio.sleep(0)  # connections that were aborted are told so in the next round of the loop
        self._ledger.publish()
        self._lines.close()

    def _prober(self, pool: Pool) -> Prober:
        return Prober(pool, self._probe_connections, self._worker_connections.close_worker)

    def _find_workers(self, pool: Pool) -> None:
        source = pool.settings.workers
        if isinstance(source, ServiceWorkers):
            watch = EndpointWatch(source, functools.partial(self._workers_changed, pool))
            self._watches.append(watch)
            watch.start()
        elif isinstance(source, ExternalUpstream):
            raise ConfigError(f"pools.{pool.settings.name}.workers: external upstreams are not relayed to yet")
        else:
            pool.workers.replace(WorkerAddress.from_url(url) for url in source)

    def _workers_changed(self, pool: Pool, addresses: list[WorkerAddress]) -> None:
        """Called in the thread of a watch."""
        self._loop.call_soon_threadsafe(self._replace_workers, pool, addresses)

    def _replace_workers(self, pool: Pool, addresses: list[WorkerAddress]) -> None:
        names = ", ".join(address.name for address in addresses)
        _log.info("pool %s has %d workers: %s", pool.settings.name, len(addresses), names)
        for worker in pool.workers.replace(addresses):
            self._worker_connections.close_worker(worker.address)
            self._probe_connections.close_worker(worker.address)
        self._probers[pool.settings.name].hurry()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            self._routes.tick(now)
            self._connections.tick(now)


class _AdminServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the signals of the process are the router's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(address: str) -> socket.socket:
    host, port = split_address(address)
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from error
    return listener


def _name(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _run(config: RouterConfig) -> None:
    # What start-up has made lives for ever: keep it out of every collection, and collect rarely, since exchanges leave
    # no reference cycles behind.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    router = Router(config, sys.stdout.buffer)
    is_ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, is_ending.set)
    await router.start()
    await is_ending.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)  # a second signal ends the process at once
    _log.info("draining for at most %g s", config.limits.drain_seconds)
    await router.drain()
    await router.stop()


def main(argv: list[str] | None = None) -> None:
    """The `m3-router` command. Exits 2 if the configuration cannot be used, 1 if an address cannot."""
    parser = argparse.ArgumentParser(prog="m3-router", description="Route requests to MiniMax-M3 workers.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    arguments = parser.parse_args(argv)
    log.configure(arguments.log_level)
    try:
        uvloop.run(_run(load(arguments.config)))
    except ConfigError as error:
        sys.stderr.write(f"m3-router: {error}\n")
        sys.exit(2)
    except OSError as error:
        sys.stderr.write(f"m3-router: {error.strerror or error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
