"""The kinds of objects the operator touches, and where the API server keeps each.

A table instead of discovery: the kinds are few and known, and a start without discovery needs neither the requests nor
the cache file. It is also the list that the operator's RBAC rules are held against.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from m3_operator import names


@dataclass(frozen=True)
class Resource:
    """One kind of object."""

    api_version: str
    plural: str
    is_namespaced: bool = True
    kind: str = ""
    """What manifests call it, where the table has to tell two of one name apart; empty: its name in the table."""

    @property
    def group(self) -> str:
        """Its API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection, of one object or of its subresource; namespace None is all of them.

        An object of the whole cluster has none, whichever is given.
        """
        parts = ["apis" if self.group else "api", self.api_version]
        if namespace is not None and self.is_namespaced:
            parts += ["namespaces", namespace]
        return "/" + "/".join([*parts, *(part for part in (self.plural, name, subresource) if part)])


_RBAC: Final = "rbac.authorization.k8s.io/v1"
RESOURCES: Final[Mapping[str, Resource]] = {
    names.DEPLOYMENT_KIND: Resource(names.API_VERSION, "m3deployments"),
    names.ROUTER_KIND: Resource(names.API_VERSION, "m3routers"),
    names.TENANT_KIND: Resource(names.API_VERSION, "m3tenants"),
    "Pod": Resource("v1", "pods"),
    "Service": Resource("v1", "services"),
    "ConfigMap": Resource("v1", "configmaps"),
    "ServiceAccount": Resource("v1", "serviceaccounts"),
    "Secret": Resource("v1", "secrets"),
    "Deployment": Resource("apps/v1", "deployments"),
    "PersistentVolumeClaim": Resource("v1", "persistentvolumeclaims"),
    "Job": Resource("batch/v1", "jobs"),
    names.REVISION_KIND: Resource("apps/v1", "controllerrevisions"),
    "Role": Resource(_RBAC, "roles"),
    "RoleBinding": Resource(_RBAC, "rolebindings"),
    "PodDisruptionBudget": Resource("policy/v1", "poddisruptionbudgets"),
    "Node": Resource("v1", "nodes", is_namespaced=False),
    "HorizontalPodAutoscaler": Resource("autoscaling/v2", "horizontalpodautoscalers"),
    "ScaledObject": Resource("keda.sh/v1alpha1", "scaledobjects"),
    "Event": Resource("events.k8s.io/v1", "events"),
    "NetworkPolicy": Resource("networking.k8s.io/v1", "networkpolicies"),
    "ResourceClaimTemplate": Resource("resource.k8s.io/v1", "resourceclaimtemplates"),
    "PodGroup": Resource("scheduling.k8s.io/v1beta1", "podgroups"),
    "PodGroup.scheduling.volcano.sh": Resource("scheduling.volcano.sh/v1beta1", "podgroups", kind="PodGroup"),
    "PodGroup.scheduling.x-k8s.io": Resource("scheduling.x-k8s.io/v1alpha1", "podgroups", kind="PodGroup"),
    "PodMonitor": Resource("monitoring.coreos.com/v1", "podmonitors"),
    "Lease": Resource("coordination.k8s.io/v1", "leases"),
}

# Kinds of other projects or of newer API servers: used where they are known and allowed, and never needed.
# Nodes belong to the whole cluster: an operator of one namespace may not see them, and then learns of a lost node as
# late as Kubernetes deletes the pods on it.
OPTIONAL_KINDS: Final[frozenset[str]] = frozenset(
    {
        "Node",
        "HorizontalPodAutoscaler",
        "ScaledObject",
        "ResourceClaimTemplate",
        "PodGroup",
        "PodGroup.scheduling.volcano.sh",
        "PodGroup.scheduling.x-k8s.io",
        "PodMonitor",
    }
)

OWN_KINDS: Final = (names.DEPLOYMENT_KIND, names.ROUTER_KIND, names.TENANT_KIND)
_OURS: Final = f"{names.MANAGED_BY_LABEL}={names.FIELD_MANAGER}"
_COMPONENTS: Final = ",".join((names.WORKER_COMPONENT, names.ROUTER_COMPONENT, names.CACHE_COMPONENT))
# Pods of routers and downloads are made by a Deployment or Job; they are seen for their metrics and their troubles.
CHILD_SELECTORS: Final[Mapping[str, str]] = {
    "Pod": f"{_OURS},{names.COMPONENT_LABEL} in ({_COMPONENTS})",
    **dict.fromkeys(
        (
            "Service",
            "ConfigMap",
            "ServiceAccount",
            "Role",
            "RoleBinding",
            "Deployment",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "PersistentVolumeClaim",
            "Job",
            names.REVISION_KIND,
            *sorted(OPTIONAL_KINDS - {"Node"}),
        ),
        _OURS,
    ),
}
WATCHED_KINDS: Final = (*OWN_KINDS, *CHILD_SELECTORS, "Node")


def table_kind(manifest: Mapping[str, Any]) -> str:
    """The name in `RESOURCES` of an object's kind: with its API group, where the kind alone is ambiguous."""
    kind = str(manifest["kind"])
    full = f"{kind}.{str(manifest.get('apiVersion', '')).rpartition('/')[0]}"
    return full if full in RESOURCES else kind
