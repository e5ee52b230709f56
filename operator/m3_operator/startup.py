"""What comes before the first cycle: credentials, and a full look at the cluster.

The first full list comes before the first cycle, so that a restart into an unchanged world writes nothing. What cannot
be started with (no API server, no CRDs, no rights) is said in one line.
"""

import asyncio
import logging
import os
from functools import partial
from pathlib import Path
from typing import Final

from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from m3_operator.cluster import Cluster
from m3_operator.errors import NotFoundError, OperatorError, RefusedError, UnavailableError
from m3_operator.observed import Key
from m3_operator.resources import CHILD_SELECTORS, OPTIONAL_KINDS, OWN_KINDS, RESOURCES, WATCHED_KINDS
from m3_operator.store import Store

logger = logging.getLogger(__name__)

_PAUSES_SECONDS: Final = (0.5, 1.0, 2.0, 4.0)


def connect(kubeconfig: Path | None, connections: int) -> kubernetes_client.ApiClient:
    """A client by this kubeconfig, else by $KUBECONFIG, else by the pod's service account. Raises OperatorError."""
    configuration = kubernetes_client.Configuration()
    configuration.connection_pool_maxsize = connections
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
        if namespace is not None and not RESOURCES[kind].is_namespaced:
            logger.info("%s are not watched: they belong to the whole cluster", RESOURCES[kind].plural)
            continue
        try:
            await _look_patiently(cluster, store, kind, namespace)
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


async def _look_patiently(cluster: Cluster, store: Store, kind: str, namespace: str | None) -> None:
    """A full look. A server that answers that it is busy (a definition was made just now) is asked again."""
    for pause_seconds in _PAUSES_SECONDS:
        try:
            await look(cluster, store, kind, namespace)
        except UnavailableError as error:
            if error.status == 0:
                raise
            logger.warning("%s; asking again in %.1f s", error, pause_seconds)
            await asyncio.sleep(pause_seconds)
        else:
            return
    await look(cluster, store, kind, namespace)


async def look(cluster: Cluster, store: Store, kind: str, namespace: str | None) -> set[Key]:
    """Bring one kind in the store to what the API server has; the owners it concerns."""
    unlisted, concerned = store.identities(kind), set[Key]()
    async for page in cluster.pages(kind, namespace, CHILD_SELECTORS.get(kind, "")):
        for manifest in page:
            unlisted.pop((kind, manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]), None)
            concerned |= store.put(kind, manifest)
    return concerned | store.replace(kind, (), unlisted)
