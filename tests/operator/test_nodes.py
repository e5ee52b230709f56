"""Nodes in the store: a change of one wakes those whose pods are on it, and nobody else."""

from typing import Any

from m3_operator.observed import Key
from m3_operator.resources import RESOURCES
from m3_operator.store import Store

M3, OTHER = Key("M3Deployment", "ns", "m3"), Key("M3Deployment", "ns", "other")


def node(version: int, status: str = "True", heartbeat: str = "1", **spec: Any) -> dict[str, Any]:
    ready = {"type": "Ready", "status": status, "lastHeartbeatTime": heartbeat}
    metadata = {"name": "n0", "uid": "uid-n0", "resourceVersion": str(version)}
    return {"kind": "Node", "metadata": metadata, "spec": spec, "status": {"conditions": [ready]}}


def worker(version: int, name: str = "m3", on: str | None = "n0") -> dict[str, Any]:
    labels = {"serving.m3.dev/deployment": name, "serving.m3.dev/group": "0", "serving.m3.dev/rank": "0"}
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-g0-r0",
            "namespace": "ns",
            "uid": f"pod-{name}",
            "resourceVersion": str(version),
            "labels": labels,
            "ownerReferences": [{"uid": f"uid-{name}", "controller": True}],
        },
        "spec": {} if on is None else {"nodeName": on},
        "status": {"phase": "Running"},
    }


def deployment(name: str = "m3") -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": "1"}
    return {"kind": "M3Deployment", "metadata": metadata, "spec": {}}


def store() -> Store:
    found = Store()
    found.put("M3Deployment", deployment())
    found.put("Pod", worker(1))
    found.put("Pod", worker(1, "other", on="n1"))
    return found


def test_a_node_that_changes_wakes_the_deployments_with_pods_on_it() -> None:
    found = store()
    assert found.put("Node", node(1)) == {M3}
    assert found.put("Node", node(2, heartbeat="2")) == set(), "a heartbeat is no change"
    assert found.put("Node", node(3, status="Unknown")) == {M3}
    assert found.put("Node", node(4, status="Unknown", unschedulable=True)) == {M3}
    assert found.remove("Node", node(5)) == {M3}


def test_a_snapshot_shows_the_nodes_of_its_own_pods() -> None:
    found = store()
    assert found.deployment_snapshot(M3).nodes == {}  # type: ignore[union-attr]
    found.put("Node", node(1, status="False"))
    snapshot = found.deployment_snapshot(M3)
    assert snapshot is not None
    assert not snapshot.nodes["n0"].is_ready


def test_a_pod_that_came_to_a_node_counts_and_one_that_is_gone_does_not() -> None:
    found = Store()
    found.put("Pod", worker(1, on=None))
    found.put("Node", node(1))
    assert found.put("Node", node(2, status="False")) == set()
    found.put("Pod", worker(2))
    assert found.put("Node", node(3)) == {M3}
    found.remove("Pod", worker(3))
    assert found.put("Node", node(4, status="False")) == set()


def test_a_full_list_forgets_nodes_that_are_gone() -> None:
    found = store()
    found.put("Node", node(1))
    assert found.replace("Node", [], found.identities("Node")) == {M3}
    assert found.deployment_snapshot(M3).nodes == {}  # type: ignore[union-attr]


def test_nodes_have_one_address_whatever_namespace_is_served() -> None:
    assert RESOURCES["Node"].path("ns") == RESOURCES["Node"].path(None) == "/api/v1/nodes"
    assert RESOURCES["Pod"].path("ns") == "/api/v1/namespaces/ns/pods"
