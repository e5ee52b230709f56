"""The kinds of objects the operator touches, and where the API server keeps each.

A table instead of discovery: the kinds are few and known, and a start without discovery needs neither the requests nor
the cache file. It is also the list that the operator's RBAC rules are held against.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from m3_operator import names


@dataclass(frozen=True)
class Resource:
    """One kind of namespaced object."""

    api_version: str
    plural: str

    @property
    def group(self) -> str:
        """Its API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection, of one object or of its subresource; namespace None is all of them."""
        parts = ["apis" if self.group else "api", self.api_version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        return "/" + "/".join([*parts, *(part for part in (self.plural, name, subresource) if part)])


_RBAC: Final = "rbac.authorization.k8s.io/v1"
RESOURCES: Final[Mapping[str, Resource]] = {
    names.DEPLOYMENT_KIND: Resource(names.API_VERSION, "m3deployments"),
    names.ROUTER_KIND: Resource(names.API_VERSION, "m3routers"),
    "Pod": Resource("v1", "pods"),
    "Service": Resource("v1", "services"),
    "ConfigMap": Resource("v1", "configmaps"),
    "ServiceAccount": Resource("v1", "serviceaccounts"),
    "Secret": Resource("v1", "secrets"),
    "Deployment": Resource("apps/v1", "deployments"),
    "Role": Resource(_RBAC, "roles"),
    "RoleBinding": Resource(_RBAC, "rolebindings"),
    "Event": Resource("events.k8s.io/v1", "events"),
    "Lease": Resource("coordination.k8s.io/v1", "leases"),
}

# Kinds of other projects or of newer API servers: used where they are known and allowed, and never needed.
OPTIONAL_KINDS: Final[frozenset[str]] = frozenset()

OWN_KINDS: Final = (names.DEPLOYMENT_KIND, names.ROUTER_KIND)
# Pods exist for routers too, by way of their Deployment; only workers' pods are ours to see.
CHILD_SELECTORS: Final[Mapping[str, str]] = {
    "Pod": f"{names.MANAGED_BY_LABEL}={names.FIELD_MANAGER},{names.COMPONENT_LABEL}={names.WORKER_COMPONENT}",
    **dict.fromkeys(
        ("Service", "ConfigMap", "ServiceAccount", "Role", "RoleBinding", "Deployment"),
        f"{names.MANAGED_BY_LABEL}={names.FIELD_MANAGER}",
    ),
}
WATCHED_KINDS: Final = (*OWN_KINDS, *CHILD_SELECTORS)
