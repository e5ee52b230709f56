"""The ready endpoints of a Kubernetes Service, followed through its EndpointSlices.

Owns the list-and-watch thread of one Service (the official client is synchronous). Gives the whole list of worker
addresses whenever it changes; a pod that was replaced under its old name has another uid, so it is another worker.
The API server may be away for any time: what was last known stays, and the watch is tried again for ever.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from m3_router.config import ServiceWorkers
from m3_router.workers.workers import WorkerAddress

WATCH_SECONDS = 240  # the server ends a watch after this, and we begin the next where it ended
READ_SECONDS = 300  # silence of the server beyond this is a broken connection
FIRST_RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 15.0

_log = logging.getLogger(__name__)


def worker_addresses(slices: Iterable[Any], port_name: str) -> list[WorkerAddress]:
    """The workers in the EndpointSlices of one Service: ready and not terminating endpoints, by name.

    slices: `V1EndpointSlice` objects. An endpoint that is in several slices (dual stack, or moving between slices)
    is one worker, at its first address in the order IPv4, IPv6. Raises ValueError if no slice has the named port.
    """
    found: dict[str, WorkerAddress] = {}
    ordered = sorted(slices, key=lambda item: (item.address_type, item.metadata.name))
    for item in ordered:
        port = next((entry.port for entry in item.ports or () if (entry.name or "") == port_name), None)
        if port is None:
            continue
        for endpoint in item.endpoints or ():
            conditions = endpoint.conditions
            # An absent `ready` means ready, an absent `terminating` means not (discovery.k8s.io/v1).
            is_ready = conditions is None or conditions.ready is not False
            if not is_ready or (conditions is not None and conditions.terminating) or not endpoint.addresses:
                continue
            host = endpoint.addresses[0]
            target = endpoint.target_ref
            uid = target.uid if target is not None and target.uid else f"{host}:{port}"
            name = target.name if target is not None and target.name else f"{host}:{port}"
            found.setdefault(uid, WorkerAddress(uid=uid, name=name, host=host, port=port))
    return sorted(found.values(), key=lambda address: (address.name, address.uid))


class EndpointWatch:
    """Follows one Service in a thread; `on_change` is called there with the whole list, also when it is empty."""

    def __init__(
        self,
        service: ServiceWorkers,
        on_change: Callable[[list[WorkerAddress]], None],
        api: Any = None,  # noqa: ANN401
    ) -> None:
        """`api`: a kubernetes DiscoveryV1Api; None makes one from the pod's credentials, else from KUBECONFIG."""
        self._service = service
        self._on_change = on_change
        self._api = api
        self._slices: dict[str, Any] = {}
        self._last: list[WorkerAddress] | None = None
        self._is_stopped = threading.Event()
        self._watch: Any = None
        self._thread = threading.Thread(target=self._run, name=f"endpoints-{service.service}", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End. The thread may stay in its read for a while; it is a daemon and calls nothing any more."""
        self._is_stopped.set()
        watch = self._watch
        if watch is not None:
            watch.stop()

    def _run(self) -> None:
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config import ConfigException
        from urllib3.exceptions import HTTPError

        retry_seconds = FIRST_RETRY_SECONDS
        while not self._is_stopped.is_set():
            try:
                self._api = self._api or _discovery_api()
                self._follow()
                retry_seconds = FIRST_RETRY_SECONDS
            except (ApiException, ConfigException, HTTPError, OSError) as error:
                if isinstance(error, ApiException) and error.status == 410:
                    continue  # the place where we were is no longer kept: list again
                name = f"{self._service.namespace}/{self._service.service}"
                reason = f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error)
                _log.warning("cannot follow the endpoints of %s, next try in %g s: %s", name, retry_seconds, reason)
                self._is_stopped.wait(retry_seconds)
                retry_seconds = min(retry_seconds * 2, MAX_RETRY_SECONDS)
            except Exception:  # noqa: BLE001 - it is logged with its trace
                # A defect; but a thread that ends here would leave the router with a world that no longer changes.
                _log.exception("following the endpoints of %s failed", self._service.service)
                self._is_stopped.wait(MAX_RETRY_SECONDS)

    def _follow(self) -> None:
        """List once, then watch until the server ends it."""
        from kubernetes import watch

        selector = f"kubernetes.io/service-name={self._service.service}"
        call, namespace = self._api.list_namespaced_endpoint_slice, self._service.namespace
        listed = call(namespace, label_selector=selector, _request_timeout=(5, 30))
        self._slices = {item.metadata.name: item for item in listed.items}
        self._tell()
        version = listed.metadata.resource_version
        while not self._is_stopped.is_set():
            self._watch = watch.Watch()  # type: ignore[no-untyped-call] # the client has no types
            for event in self._watch.stream(
                call,
                namespace,
                label_selector=selector,
                resource_version=version,
                allow_watch_bookmarks=True,
                timeout_seconds=WATCH_SECONDS,
                _request_timeout=(5, READ_SECONDS),
            ):
                metadata = event["raw_object"]["metadata"]  # a bookmark has no typed object
                version = metadata["resourceVersion"]
                if event["type"] == "DELETED":
                    self._slices.pop(metadata["name"], None)
                elif event["type"] in ("ADDED", "MODIFIED"):
                    self._slices[metadata["name"]] = event["object"]
                self._tell()

    def _tell(self) -> None:
        if self._is_stopped.is_set():
            return
        addresses = worker_addresses(self._slices.values(), self._service.port)
        if addresses != self._last:
            self._last = addresses
            self._on_change(addresses)


def _discovery_api() -> Any:  # noqa: ANN401 - the client is untyped
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return client.DiscoveryV1Api(client.ApiClient(configuration))
