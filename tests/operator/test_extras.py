"""Who may reach workers and routers, and who reads their metrics: only where a spec asks for it."""

from typing import Any

import kubernetes_validate
import pytest

from m3_operator.api import M3Deployment, M3Router, parse_deployment, parse_router
from m3_operator.decide.equipment import extras
from m3_operator.decide.installation import Installation
from m3_operator.decide.router import decide_router
from m3_operator.observed import RouterSnapshot
from m3_operator.render import worker
from m3_operator.render.extras import network_policy, pod_monitor
from m3_operator.render.router import cluster_config, router_objects
from m3_operator.render.router_access import router_network_policy, router_pod_monitor

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


def router(**spec: Any) -> M3Router:
    manifest = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Router",
        "metadata": {"name": "front", "namespace": "prod", "uid": "uid-2"},
        "spec": {"deployments": [{"name": "m3"}], **spec},
    }
    return parse_router(manifest, strict=True)


def router_rules(namespace: str | None = "m3-system", **peers: Any) -> list[dict[str, Any]]:
    policy = router_network_policy(router(networkPolicy={"enabled": True, **peers}), namespace)
    assert policy is not None
    kubernetes_validate.validate(policy, "1.37", strict=True)
    assert policy["spec"]["policyTypes"] == ["Ingress"]  # routers may go on reaching workers, Redis and what they call
    found: list[dict[str, Any]] = policy["spec"]["ingress"]
    return found


def test_a_router_s_api_is_for_everybody_unless_somebody_is_named_and_its_admin_port_for_the_operator() -> None:
    api, admin = router_rules()
    assert api == {"ports": [{"protocol": "TCP", "port": 8080}]}
    (operator,) = admin["from"]
    assert operator["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "m3-system"}}
    assert admin["ports"] == [{"protocol": "TCP", "port": 9090}]


def test_who_a_router_s_spec_names_reaches_that_port_and_no_other() -> None:
    apps, prometheus = ({"podSelector": {"matchLabels": {"app": name}}} for name in ("shop", "prometheus"))
    api, admin = router_rules(None, **{"from": [apps], "adminFrom": [prometheus]})
    assert (api["from"], admin["from"]) == ([apps], [prometheus])


def test_where_nobody_may_use_the_admin_port_there_is_no_rule_for_it() -> None:
    (api,) = router_rules(None)
    assert [port["port"] for port in api["ports"]] == [8080]


def test_the_policy_and_the_monitor_are_over_the_routers_pods_and_the_ports_they_have() -> None:
    found = router(networkPolicy={"enabled": True}, monitoring={"enabled": True, "labels": {"release": "prom"}})
    config = cluster_config(found, [deployment()])
    (running,) = (one for one in router_objects(found, config, image="i") if one["kind"] == "Deployment")
    template = running["spec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    assert ports == {"http": 8080, "admin": 9090}
    policy, monitor = router_network_policy(found, None), router_pod_monitor(found)
    assert policy is not None
    assert monitor is not None
    for selector in (policy["spec"]["podSelector"], monitor["spec"]["selector"]):
        assert selector["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "admin", "path": "/metrics", "interval": "15s"}]
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["metadata"]["ownerReferences"][0]["uid"] == "uid-2"


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [(frozenset(), ["NetworkPolicy"]), (frozenset({"PodMonitor"}), ["NetworkPolicy", "PodMonitor"])],
)
def test_a_router_gets_what_its_spec_asks_for_and_the_cluster_has(kinds: frozenset[str], wanted: list[str]) -> None:
    def made(**spec: Any) -> list[str]:
        served = deployment().model_dump(mode="json", by_alias=True, exclude_none=True)
        manifest = router(**spec).model_dump(mode="json", by_alias=True, exclude_none=True)
        snapshot = RouterSnapshot(manifest=manifest, deployments={"m3": served}, children={})
        decision = decide_router(snapshot, Installation(router_image="r", optional_kinds=kinds))
        assert decision.problem is None
        found = [str(action.manifest["kind"]) for action in decision.objects]
        return [kind for kind in found if kind in ("NetworkPolicy", "PodMonitor")]

    assert made(**BOTH) == wanted
    assert made() == []
