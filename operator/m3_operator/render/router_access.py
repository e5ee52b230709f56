"""Who may reach the routers, and who reads their metrics: only where a spec asks for it."""

from typing import Any

from m3_operator import names
from m3_operator.api import M3Router
from m3_operator.render.extras import MONITOR_KIND, monitored, operator_peers, tcp
from m3_operator.render.router import ADMIN_PORT, DATA_PORT, router_object


def router_network_policy(router: M3Router, operator_namespace: str | None) -> dict[str, Any] | None:
    """Routers take API requests from whom the spec says, and from everybody where it names nobody.

    The admin port, which tells of tenants and their bills, is for the operator and for whom the spec names.
    """
    access = router.spec.network_policy
    if not access.enabled:
        return None
    api: dict[str, Any] = {"ports": [tcp(DATA_PORT)]}
    if access.peers:
        api["from"] = list(access.peers)
    admins = [*operator_peers(operator_namespace), *access.admin_peers]
    # A rule without peers would be for everybody.
    admin = [{"from": admins, "ports": [tcp(ADMIN_PORT)]}] if admins else []
    body = {
        "podSelector": {"matchLabels": names.router_selector(router.metadata.name)},
        "policyTypes": ["Ingress"],
        "ingress": [api, *admin],
    }
    return router_object(router, "networking.k8s.io/v1", "NetworkPolicy", {"spec": body})


def router_pod_monitor(router: M3Router) -> dict[str, Any] | None:
    """The metrics of every router."""
    monitoring = router.spec.monitoring
    if not monitoring.enabled:
        return None
    selector = names.router_selector(router.metadata.name)
    body = monitored(selector, names.ADMIN_PORT_NAME, monitoring.interval_seconds)
    made = router_object(router, "monitoring.coreos.com/v1", MONITOR_KIND, {"spec": body})
    labels = {**monitoring.labels, **made["metadata"]["labels"]}
    return {**made, "metadata": {**made["metadata"], "labels": labels}}
