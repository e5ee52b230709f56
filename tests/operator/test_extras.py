"""Who may reach workers, and who reads their metrics: only where a spec asks for it."""

from typing import Any

import kubernetes_validate
import pytest

from m3_operator.api import M3Deployment, parse_deployment
from m3_operator.decide.equipment import extras
from m3_operator.decide.installation import Installation
from m3_operator.render import worker
from m3_operator.render.extras import network_policy, pod_monitor

BOTH = {"networkPolicy": {"enabled": True}, "monitoring": {"enabled": True, "labels": {"release": "prom"}}}


def deployment(engine: dict[str, Any] | None = None, **spec: Any) -> M3Deployment:
    manifest = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "prod", "uid": "uid-1"},
        "spec": {"model": {"name": "M", "source": {"hostPath": {"path": "/m"}}}, "engine": engine or {}, **spec},
    }
    return parse_deployment(manifest, strict=True)


def rules(found: M3Deployment, namespace: str | None = "m3-system") -> tuple[dict[str, Any], dict[str, Any]]:
    policy = network_policy(found, namespace)
    assert policy is not None
    kubernetes_validate.validate(policy, "1.37", strict=True)
    peers, clients = policy["spec"]["ingress"]
    return peers, clients


def test_nothing_is_made_unless_it_is_asked_for() -> None:
    assert (network_policy(deployment(), None), pod_monitor(deployment())) == (None, None)


def test_a_pod_monitor_is_made_only_where_the_cluster_has_them() -> None:
    found = deployment(**BOTH)
    assert [made["kind"] for made in extras(found, Installation())] == ["NetworkPolicy"]
    kinds = frozenset({"PodMonitor"})
    assert [made["kind"] for made in extras(found, Installation(optional_kinds=kinds))] == [
        "NetworkPolicy",
        "PodMonitor",
    ]


def test_workers_reach_each_other_on_every_port_and_clients_only_the_http_port() -> None:
    peers, clients = rules(deployment(**BOTH))
    labels = worker.group_pods(deployment(), 0, "rev", image="i")[0]["metadata"]["labels"]
    assert "ports" not in peers
    (own,) = peers["from"]
    assert own["podSelector"]["matchLabels"].items() <= labels.items()
    assert clients["ports"] == [{"protocol": "TCP", "port": 8000}]
    router, operator = clients["from"]
    assert router["podSelector"]["matchLabels"]["serving.m3.dev/router"] == "m3"
    assert operator["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "m3-system"}}


def test_a_router_by_name_and_the_specs_own_peers_are_let_in_and_an_operator_outside_needs_no_rule() -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    found = deployment(networkPolicy={"enabled": True, "from": [prometheus]}, router={"name": "front"})
    _, clients = rules(found, None)
    router, extra = clients["from"]
    assert router["podSelector"]["matchLabels"]["serving.m3.dev/router"] == "front"
    assert extra == prometheus


def test_the_port_of_vllms_cache_events_is_open_to_routers() -> None:
    engine = {"type": "vllm", "image": "v"}
    _, clients = rules(deployment(engine, parallelism={"tensor": 8}, networkPolicy={"enabled": True}))
    assert [port["port"] for port in clients["ports"]] == [8000, 5557]


def test_a_pod_monitor_reads_rank_0_alone_and_carries_the_labels_that_prometheus_selects_by() -> None:
    monitor = pod_monitor(deployment(monitoring={"enabled": True, "labels": {"release": "prom"}, "intervalSeconds": 5}))
    assert monitor is not None
    assert monitor["spec"] == {
        "selector": {"matchLabels": {"serving.m3.dev/deployment": "m3", "serving.m3.dev/rank": "0"}},
        "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "interval": "5s"}],
    }
    assert monitor["metadata"]["labels"]["release"] == "prom"


@pytest.mark.parametrize("spec", [BOTH, {"networkPolicy": {"enabled": True, "from": [{"podSelector": {}}]}}])
def test_neither_restarts_a_worker(spec: dict[str, Any]) -> None:
    assert worker.revision(deployment(**spec), "i") == worker.revision(deployment(), "i")
