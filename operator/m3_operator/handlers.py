"""kopf glue: which objects are watched, and what an event does, which is to update the store and wake its owners.

Only `on.event` is used: no state in annotations, and no daemons, since a daemon puts a finalizer on its object, which
then could not be deleted while the operator is down. What was owned goes by ownerReferences, whoever is running. The
cycles run as tasks of our own that take from one work queue.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import kopf
from kubernetes.client import ApiClient

from m3_operator.health import Watches
from m3_operator.resources import CHILD_SELECTORS, RESOURCES
from m3_operator.stateless import NoDiffBase, NoProgress
from m3_operator.store import Store
from m3_operator.workqueue import WorkQueue

_REQUEST_TIMEOUT_SECONDS: Final = 30
# The server ends a watch after this time; a new one starts where it ended.
_WATCH_SECONDS: Final = 290
_CHUNK: Final = 100
# For which kopf keeps a task for an object, with its last event, in case another one comes: by default seconds, which
# at a start are all objects of the cluster at once.
_IDLE_SECONDS: Final = 0.01


@dataclass(frozen=True)
class Feed:
    """Where events go."""

    store: Store
    queue: WorkQueue
    watches: Watches

    def on_event(self, kind: str, event: Mapping[str, Any]) -> None:
        """Take in one watch event. Every type but DELETED tells how the object is now."""
        change = self.store.remove if event["type"] == "DELETED" else self.store.put
        self.queue.wake_all(change(kind, event["object"]))
        self.watches.told(kind)


def build_registry(feed: Feed, client: ApiClient, kinds: Iterable[str]) -> kopf.OperatorRegistry:
    """All that kopf calls: one handler for each of these kinds, and the login."""
    registry = kopf.OperatorRegistry()
    for kind in kinds:
        _watch(registry, feed, kind)

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:  # noqa: ANN401 - kopf's own
        return connection_info(client)

    return registry


def build_settings(kinds: Iterable[str]) -> kopf.OperatorSettings:
    """kopf as we use it: it watches and logs in, and writes nothing."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.watching.server_timeout = _WATCH_SECONDS
    settings.watching.chunk_size = _CHUNK  # all pods of a large cluster at once are hundreds of megabytes
    settings.queueing.idle_timeout = _IDLE_SECONDS
    settings.networking.request_timeout = _REQUEST_TIMEOUT_SECONDS
    for kind in kinds:
        selector, resource = CHILD_SELECTORS.get(kind), RESOURCES[kind]
        if selector is None:
            continue
        version = resource.api_version.rpartition("/")[2]
        settings.watching.label_selectors[resource.group, version, resource.plural] = selector
    return settings


def connection_info(client: ApiClient) -> kopf.ConnectionInfo:
    """The official client's credentials, fresh (tokens of service accounts change), in kopf's form."""
    configuration = client.configuration
    scheme, _, token = (configuration.get_api_key_with_prefix("BearerToken") or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )


def _watch(registry: kopf.OperatorRegistry, feed: Feed, kind: str) -> None:
    resource = RESOURCES[kind]
    version = resource.api_version.rpartition("/")[2]

    @kopf.on.event(resource.group, version, resource.plural, id=f"watch-{resource.plural}", registry=registry)
    async def on_event(event: Mapping[str, Any], **_: Any) -> None:  # noqa: ANN401 - kopf's own
        feed.on_event(kind, event)
