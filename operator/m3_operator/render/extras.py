"""What an M3Deployment may have beside its groups: a NetworkPolicy over its workers, a PodMonitor for their metrics."""

from collections.abc import Mapping
from typing import Any, Final

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.render.engines import vllm
from m3_operator.render.pod import owner_reference

MONITOR_KIND: Final = "PodMonitor"
_NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"


def network_policy(deployment: M3Deployment, operator_namespace: str | None) -> dict[str, Any] | None:
    """Workers take connections from each other, on their HTTP port from routers and the operator, and nothing else.

    Ranks meet on ports that nobody knows before, so that pods of one deployment may use all of each other's. An
    operator outside the cluster (no namespace) has to be among the spec's own peers.
    """
    spec, name = deployment.spec, deployment.metadata.name
    if not spec.network_policy.enabled:
        return None
    router = spec.router.name if spec.router is not None else name
    clients: list[dict[str, Any]] = [{"podSelector": {"matchLabels": names.router_selector(router)}}]
    clients += operator_peers(operator_namespace)
    ports = [spec.engine.port]
    if spec.engine.type == "vllm" and (events := vllm.kv_events_port(deployment)) is not None:
        ports.append(events)
    selector = {"matchLabels": {names.DEPLOYMENT_LABEL: name}}
    ingress = [
        {"from": [{"podSelector": selector}]},
        {
            "from": [*clients, *spec.network_policy.peers],
            "ports": [tcp(port) for port in ports],
        },
    ]
    body = {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": ingress}
    return _object(deployment, "networking.k8s.io/v1", "NetworkPolicy", body)


def operator_peers(namespace: str | None) -> list[dict[str, Any]]:
    """The operator, as a NetworkPolicy names who may connect; nobody where it runs outside the cluster."""
    if namespace is None:
        return []
    where = {"matchLabels": {_NAMESPACE_LABEL: namespace}}
    return [{"namespaceSelector": where, "podSelector": {"matchLabels": names.OPERATOR_SELECTOR}}]


def pod_monitor(deployment: M3Deployment) -> dict[str, Any] | None:
    """The metrics of rank 0 of every group: the others serve no HTTP."""
    monitoring = deployment.spec.monitoring
    if not monitoring.enabled:
        return None
    body = monitored(names.rank0_selector(deployment.metadata.name), names.HTTP_PORT_NAME, monitoring.interval_seconds)
    return _object(deployment, "monitoring.coreos.com/v1", MONITOR_KIND, body, monitoring.labels)


def monitored(selector: Mapping[str, str], port: str, interval_seconds: int) -> dict[str, Any]:
    """What a PodMonitor says of pods whose metrics are on this port."""
    endpoint = {"port": port, "path": "/metrics", "interval": f"{interval_seconds}s"}
    return {"selector": {"matchLabels": dict(selector)}, "podMetricsEndpoints": [endpoint]}


def tcp(number: int) -> dict[str, Any]:
    """A port, as a NetworkPolicy names it."""
    return {"protocol": "TCP", "port": number}


def _object(
    deployment: M3Deployment,
    api_version: str,
    kind: str,
    spec: Mapping[str, Any],
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    meta = deployment.metadata
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": names.workers_service_name(meta.name),
            "namespace": meta.namespace,
            "labels": {**(labels or {}), **names.worker_labels(meta.name)},
            "ownerReferences": [owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "spec": dict(spec),
    }
