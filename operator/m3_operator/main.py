"""The process of `m3-operator`: from the command line to an exit status, and the tasks that run until a signal.

A replica stands by until the Lease is its own, then looks at the whole cluster, then reconciles. A signal ends it in
order: no further cycle, then the Lease is released, so that the next replica acts within seconds. A lost Lease ends it
at once, whatever it is doing.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NoReturn, TypeVar, cast

import kopf
from kubernetes.client import ApiClient

from m3_operator import log
from m3_operator.chance import Chance
from m3_operator.cluster import Cluster
from m3_operator.decide.installation import Installation
from m3_operator.errors import OperatorError, RefusedError
from m3_operator.handlers import Feed, build_registry, build_settings
from m3_operator.health import Health, Watches
from m3_operator.leader import Election, LeaseLostError
from m3_operator.metrics import Metrics, State
from m3_operator.options import LeaseOptions, Options, parse_options
from m3_operator.probes import serving_health, serving_metrics
from m3_operator.reconcile.cycle import Reconciler
from m3_operator.resources import OPTIONAL_KINDS
from m3_operator.signals.scraper import Scraper, http_fetch
from m3_operator.startup import connect, first_look
from m3_operator.stateless import NoMemories
from m3_operator.store import Store
from m3_operator.tasks import keep_experts, look_again, work
from m3_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")

EXIT_LEASE_LOST: Final = 3
_THREADS: Final = 16
_LEASE_THREADS: Final = 2
_CYCLES_AT_ONCE: Final = 16
# Of one request about the Lease: two of them fit into the renew deadline.
_LEASE_TIMEOUT_SECONDS: Final = 3.0
# For what is being written when the signal comes; the next replica acts after it.
_LAST_REQUESTS_SECONDS: Final = 5.0


def main() -> NoReturn:
    """Run the operator until SIGTERM or SIGINT; exit 0 then, 1 for what went wrong, 2 for what was typed wrong, 3 for
    a lost Lease.
    """
    options = parse_options(sys.argv[1:], os.environ)
    log.configure(options.log_level, options.log_format)
    # They tell of every event of every object, and of every scrape; what matters of them our own log says.
    for library in ("kopf", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        asyncio.run(run(options))
    except* OperatorError as group:
        sys.stderr.write("".join(f"m3-operator: {_one_line(error)}\n" for error in group.exceptions[:1]))
        sys.exit(1)
    sys.exit(0)


@dataclass(frozen=True)
class World:
    """What the tasks of this process share."""

    options: Options
    client: ApiClient
    cluster: Cluster
    store: Store
    queue: WorkQueue
    watches: Watches
    metrics: Metrics


async def run(options: Options) -> None:
    """The operator's life. Raises OperatorError if it cannot start."""
    client = connect(options.kubeconfig, _THREADS + _LEASE_THREADS)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    store, queue, watches = Store(), WorkQueue(), Watches()
    with ThreadPoolExecutor(_THREADS, "api") as executor, ThreadPoolExecutor(_LEASE_THREADS, "lease") as lease_executor:
        lease_cluster = Cluster(client, lease_executor, timeout_seconds=_LEASE_TIMEOUT_SECONDS)
        election = _election(lease_cluster, options.lease) if options.lease is not None else None
        is_leader = (lambda: election.is_leader) if election is not None else (lambda: True)
        metrics = Metrics(State(store, queue, watches, is_leader))
        cluster = Cluster(client, executor, observe=metrics.count_request)
        world = World(options, client, cluster, store, queue, watches, metrics)
        async with (
            serving_health(Health(queue, watches, is_leader), options.health_host, options.health_port),
            serving_metrics(metrics, options.metrics_host, options.metrics_port),
        ):
            if election is None:
                await _serve(world, stopping)
            else:
                await _serve_as_leader(world, election, stopping)


def _election(cluster: Cluster, lease: LeaseOptions) -> Election:
    return Election(cluster, lease.namespace, lease.name, lease.identity)


async def _serve_as_leader(world: World, election: Election, stopping: asyncio.Event) -> None:
    """Stand by, serve, release."""
    try:
        await _unless(stopping, election.acquire())
    except RefusedError as error:
        raise OperatorError(f"lacks a permission: {error}") from None
    if not election.is_leader:
        return
    keeping = asyncio.create_task(_keep_or_die(election))
    try:
        await _serve(world, stopping)
    finally:
        await world.cluster.close(_LAST_REQUESTS_SECONDS)
        keeping.cancel()
        await election.release()


async def _keep_or_die(election: Election) -> None:
    """Renew; when the Lease is lost, nothing of this process may act any more, threads in a request included."""
    try:
        await election.keep()
    except LeaseLostError as error:
        sys.stderr.write(f"m3-operator: {_one_line(error)}\n")
        sys.stderr.flush()
        os._exit(EXIT_LEASE_LOST)


async def _serve(world: World, stopping: asyncio.Event) -> None:
    """Look at everything, then watch and reconcile until told to stop."""
    options, store, queue = world.options, world.store, world.queue
    kinds = await _unless(stopping, first_look(world.cluster, store, options.namespace))
    if kinds is None:
        return
    for kind in kinds:
        world.watches.told(kind)
    queue.wake_all(store.owners())
    logger.info("serving %s: %r", options.namespace or "all namespaces", store)
    installation = Installation(
        worker_image=options.worker_image,
        router_image=options.router_image,
        namespace=options.own_namespace,
        optional_kinds=frozenset(kinds).intersection(OPTIONAL_KINDS),
    )
    clock, chance = partial(datetime.now, UTC), Chance()
    reconciler = Reconciler(
        world.cluster,
        store,
        installation,
        clock=clock,
        wake=queue.wake_all,
        chance=chance,
        observe=world.metrics.count_cycle,
    )
    cycles = log.Cycles()
    looking = partial(look_again, world.cluster, store, queue, kinds, namespace=options.namespace)
    async with http_fetch() as fetch, asyncio.TaskGroup() as tasks:
        ours = [tasks.create_task(work(queue, reconciler, cycles)) for _ in range(_CYCLES_AT_ONCE)]
        ours.append(tasks.create_task(looking(chance=chance, watches=world.watches)))
        ours.append(tasks.create_task(keep_experts(store, queue, clock)))
        ours.append(tasks.create_task(Scraper(store, fetch, clock=clock, wake=queue.wake_all).run()))
        await kopf.operator(
            registry=build_registry(Feed(store, queue, world.watches), world.client, kinds),
            settings=build_settings(kinds),
            memories=NoMemories(),
            namespaces=[options.namespace] if options.namespace else [],
            clusterwide=options.namespace is None,
            # kopf would ask the system for its user's name, and a container's user often has none.
            identity=cast(Any, "m3-operator"),
            stop_flag=stopping,
        )
        for task in ours:
            task.cancel()


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """The result of the work; None if the signal to stop came first, which ends the work."""
    task, signalled = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    await asyncio.wait((task, signalled), return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait((task,))
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
