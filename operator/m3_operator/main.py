"""Start-up of `m3-operator`: flags, credentials, the first look at the cluster, and the tasks that run until a signal.

Owns the process: what it cannot start with (no API server, no CRDs, no rights) is one line on stderr and exit code 1.
The first full list comes before the first cycle, so that a restart into an unchanged world writes nothing.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import httpx
import kopf
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from m3_operator.chance import Chance
from m3_operator.cluster import Cluster
from m3_operator.decide.installation import Installation
from m3_operator.errors import ApiError, NotFoundError, OperatorError, RefusedError, UnavailableError
from m3_operator.experts.keeper import ExpertKeeper
from m3_operator.experts.worker_client import WorkerClient
from m3_operator.handlers import Feed, build_registry, build_settings
from m3_operator.reconcile.cycle import Reconciler
from m3_operator.resources import CHILD_SELECTORS, OPTIONAL_KINDS, OWN_KINDS, RESOURCES, WATCHED_KINDS
from m3_operator.signals.scraper import Scraper, http_fetch
from m3_operator.store import Store
from m3_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

_THREADS: Final = 16
_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CYCLES_AT_ONCE: Final = 16
_WORKER_SECONDS: Final = 10.0
_RELIST_SECONDS: Final = 300.0
_AFTER_DEFECT_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Options:
    """The command line. `namespace` None is all of them."""

    kubeconfig: Path | None
    namespace: str | None
    worker_image: str | None
    router_image: str | None
    health_host: str
    health_port: int
    log_level: str


def main() -> NoReturn:
    """Run the operator until SIGTERM or SIGINT; exit 0 then, 1 for what went wrong, 2 for what was typed wrong."""
    options = parse_options(sys.argv[1:], os.environ)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # kopf tells of every event of every object; what matters of them our own log says.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # a line for each probe of the kubelet
    try:
        asyncio.run(run(options))
    except* OperatorError as group:
        sys.stderr.write("".join(f"m3-operator: {' '.join(str(error).split())}\n" for error in group.exceptions[:1]))
        sys.exit(1)
    sys.exit(0)


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """The command line; images may also come from the environment. A bad one ends the process with code 2."""
    parser = argparse.ArgumentParser(prog="m3-operator", description="Reconcile M3Deployments, M3Routers, M3Tenants.")
    parser.add_argument("--kubeconfig", type=Path, help="default: $KUBECONFIG, or the service account of the pod")
    scope = parser.add_mutually_exclusive_group(required=True)
    scope.add_argument("--namespace", metavar="NS", help="serve one namespace")
    scope.add_argument("--all-namespaces", action="store_true", help="serve the whole cluster")
    parser.add_argument("--worker-image", default=environment.get("M3_WORKER_IMAGE"), help="or $M3_WORKER_IMAGE")
    parser.add_argument("--router-image", default=environment.get("M3_ROUTER_IMAGE"), help="or $M3_ROUTER_IMAGE")
    parser.add_argument("--health-host", default="127.0.0.1", help="address of /healthz (default %(default)s)")
    parser.add_argument("--health-port", type=int, default=8085, help="port of /healthz (default %(default)s)")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    given = parser.parse_args(list(arguments))
    if not 0 < given.health_port < 65536:
        parser.error(f"--health-port {given.health_port}: must be between 1 and 65535")
    return Options(
        kubeconfig=given.kubeconfig,
        namespace=given.namespace,
        worker_image=given.worker_image or None,
        router_image=given.router_image or None,
        health_host=given.health_host,
        health_port=given.health_port,
        log_level=given.log_level,
    )


async def run(options: Options) -> None:
    """The operator's life. Raises OperatorError if it cannot start."""
    client = connect(options.kubeconfig)
    store, queue = Store(), WorkQueue()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="api") as executor:
        cluster = Cluster(client, executor)
        kinds = await first_look(cluster, store, options.namespace)
        queue.wake_all(store.owners())
        logger.info("serving %s: %r", options.namespace or "all namespaces", store)
        clock, chance = partial(datetime.now, UTC), Chance()
        installation = Installation(
            worker_image=options.worker_image,
            router_image=options.router_image,
            namespace=own_namespace(),
            optional_kinds=frozenset(kinds).intersection(OPTIONAL_KINDS),
        )
        reconciler = Reconciler(cluster, store, installation, clock=clock, wake=queue.wake_all, chance=chance)
        async with http_fetch() as fetch, asyncio.TaskGroup() as tasks:
            scraper = Scraper(store, fetch, clock=clock, wake=queue.wake_all)
            ours = [tasks.create_task(work(queue, reconciler)) for _ in range(_CYCLES_AT_ONCE)]
            ours.append(tasks.create_task(_keep_experts(store, clock, queue)))
            ours.append(tasks.create_task(scraper.run()))
            ours.append(
                tasks.create_task(look_again(cluster, store, queue, kinds, namespace=options.namespace, chance=chance))
            )
            await kopf.operator(
                registry=build_registry(Feed(store, queue), client, kinds),
                settings=build_settings(kinds),
                namespaces=[options.namespace] if options.namespace else [],
                clusterwide=options.namespace is None,
                # kopf would ask the system for its user's name, and a container's user often has none.
                identity=cast(Any, "m3-operator"),
                liveness_endpoint=f"http://{options.health_host}:{options.health_port}/healthz",
            )
            for task in ours:
                task.cancel()


def own_namespace() -> str | None:
    """The namespace of the pod that this runs in, as its service account's mount says; None outside a cluster."""
    try:
        return _NAMESPACE_FILE.read_text().strip() or None
    except OSError:
        return None


def connect(kubeconfig: Path | None) -> kubernetes_client.ApiClient:
    """A client by this kubeconfig, else by $KUBECONFIG, else by the pod's service account. Raises OperatorError."""
    configuration = kubernetes_client.Configuration()
    configuration.connection_pool_maxsize = _THREADS
    path = kubeconfig or (Path(found) if (found := os.environ.get("KUBECONFIG")) else None)
    try:
        if path is not None:
            load = partial(kubernetes_config.load_kube_config, config_file=str(path))
        else:
            load = partial(kubernetes_config.load_incluster_config)
        load(client_configuration=configuration)
    except kubernetes_config.ConfigException as error:
        where = f"the kubeconfig {path} cannot be used" if path else "no --kubeconfig, and this is no pod"
        raise OperatorError(f"{where}: {error}") from None
    configuration.retries = False  # a cycle that fails is tried again as a whole
    return kubernetes_client.ApiClient(configuration)


async def first_look(cluster: Cluster, store: Store, namespace: str | None) -> tuple[str, ...]:
    """Fill the store; which kinds there are to watch. Raises OperatorError that says what is missing."""
    found: list[str] = []
    for kind in WATCHED_KINDS:
        try:
            await look(cluster, store, kind, namespace)
            found.append(kind)
        except NotFoundError as error:
            if kind in OPTIONAL_KINDS:
                continue
            if kind in OWN_KINDS:
                raise OperatorError(
                    f"the API server does not know {kind}: install the CRDs first "
                    "(m3 crd | kubectl apply --server-side -f -)"
                ) from None
            raise OperatorError(f"cannot list {RESOURCES[kind].plural}: {error}") from None
        except RefusedError as error:
            if kind in OPTIONAL_KINDS:
                logger.warning("%s are not used: %s", RESOURCES[kind].plural, error)
                continue
            raise OperatorError(f"lacks a permission: {error}") from None
        except UnavailableError as error:
            raise OperatorError(f"cannot reach the API server: {error}") from None
    return tuple(found)


async def look(cluster: Cluster, store: Store, kind: str, namespace: str | None) -> set[object]:
    """Bring one kind in the store to what the API server has; the owners it concerns."""
    before = store.identities(kind)
    listed = await cluster.list(kind, namespace, CHILD_SELECTORS.get(kind, ""))
    return set(store.replace(kind, listed, before))


async def work(queue: WorkQueue, reconciler: Reconciler) -> None:
    """Take objects from the queue and give each its cycle, for ever; a defect of one is logged and tried again."""
    while True:
        key = await queue.take()
        wake_in: float | None = None
        try:
            wake_in = await reconciler.cycle(key)
        except Exception:
            logger.exception("%s: defect; trying again in %.0f s", key, _AFTER_DEFECT_SECONDS)
            wake_in = _AFTER_DEFECT_SECONDS
        finally:
            queue.done(key, wake_in)


async def _keep_experts(store: Store, clock: Callable[[], datetime], queue: WorkQueue) -> None:
    async with httpx.AsyncClient(timeout=_WORKER_SECONDS, trust_env=False) as client:
        await ExpertKeeper(store, WorkerClient(client), clock=clock, wake=queue.wake_all).run()


async def look_again(
    cluster: Cluster, store: Store, queue: WorkQueue, kinds: Sequence[str], *, namespace: str | None, chance: Chance
) -> None:
    """A full list and a cycle of everything now and then, for what a broken watch did not tell."""
    while True:
        await asyncio.sleep(_RELIST_SECONDS * chance.between(0.9, 1.1))
        for kind in kinds:
            with contextlib.suppress(ApiError):  # the next one may succeed; the watch goes on
                await look(cluster, store, kind, namespace)
        queue.wake_all(store.owners())
