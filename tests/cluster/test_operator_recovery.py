"""On a real API server and scheduler: lost nodes, evictions within the budget, and what each bad reference gets."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from m3_testcluster.cluster import Cluster, KubectlError
from m3_testcluster.watcher import Watcher
from operator_process import Operator, chart_permissions, install_account, running_operator

StartOperator = Callable[..., Operator]


def deployment(name: str, node_selector: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"name": name, "source": {"hostPath": {"path": "/models/m3"}}},
            "parallelism": {"nodes": 1, "gpusPerNode": 8},
            "template": {"nodeSelector": node_selector},
            **spec,
        },
    }


@pytest.fixture
def watch(m3_cluster: Cluster, namespace: str) -> Watcher:
    return Watcher(m3_cluster, namespace)


def test_each_bad_reference_has_its_own_reason_and_loses_it_when_it_is_mended(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    start_operator()
    claim = {"model": {"name": "claim", "source": {"pvc": {"claimName": "weights"}}}}
    keys = {"auth": {"secretName": "our-keys"}, "template": {"nodeSelector": {"pool": "nowhere"}}}
    router = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Router",
        "metadata": {"name": "front"},
        "spec": {"deployments": [{"name": "claim"}], **keys},
    }
    watch.apply(
        {**deployment("claim", gpu_nodes), "spec": {**deployment("claim", gpu_nodes)["spec"], **claim}},
        deployment("lost", {"pool": "nowhere"}),
        deployment("huge", gpu_nodes, parallelism={"nodes": 1, "gpusPerNode": 16}),
        router,
    )
    assert "there is no PersistentVolumeClaim weights" in watch.await_reason("m3d/claim", "ClaimNotFound")
    assert "label a node" in watch.await_reason("m3d/lost", "NodeSelectorMatchesNothing")
    assert "4 Insufficient nvidia.com/gpu" in watch.await_reason("m3d/huge", "Unschedulable")
    assert "there is no Secret our-keys" in watch.await_reason("m3r/front", "SecretNotFound")

    watch.kubectl("create", "secret", "generic", "our-keys", "--from-literal=keys.yaml=[]")
    assert "of 1 routers answer" in watch.await_reason("m3r/front", "NodeSelectorMatchesNothing")  # the Secret is there
    watch.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "weights"},
            "spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}},
        }
    )
    watch.await_reason("m3d/claim", "ClaimNotBound")


def test_a_quota_has_its_own_reason_until_it_is_raised(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    watch.kubectl("create", "quota", "few", "--hard=pods=1")
    watch.kubectl("wait", "--for=jsonpath={.status.hard.pods}=1", "quota/few", "--timeout=30s")
    start_operator()
    watch.apply(deployment("m3", gpu_nodes, replicas=2))
    assert "exceeded quota: few" in watch.await_reason("m3d/m3", "QuotaExceeded")
    watch.kubectl("delete", "quota", "few")
    watch.kubectl("wait", "--for=condition=Ready", "m3d/m3", "--timeout=60s")


def test_evictions_take_one_serving_group_at_a_time(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    operator = start_operator()
    watch.apply(deployment("m3", gpu_nodes, replicas=2))
    watch.kubectl("wait", "--for=condition=Ready", "m3d/m3", "--timeout=60s")
    watch.kubectl("wait", "--for=jsonpath={.status.disruptionsAllowed}=1", "pdb/m3-workers", "--timeout=30s")
    assert operator.stop() == 0
    _evict(watch, "m3-g0-r0")
    with pytest.raises(KubectlError, match="disruption budget"):
        _evict(watch, "m3-g1-r0")


def test_a_group_of_a_node_that_is_lost_comes_back_elsewhere(
    watch: Watcher, gpu_nodes: dict[str, str], tmp_path: Path
) -> None:
    """An operator of the whole cluster: one of a namespace may not see nodes."""
    account = install_account(watch.cluster, watch.namespace, "cluster")
    try:
        with running_operator(account, tmp_path, all_namespaces=True):
            watch.apply(deployment("m3", gpu_nodes, recovery={"nodeLostSeconds": 5}))
            watch.kubectl("wait", "--for=condition=Ready", "m3d/m3", "--timeout=60s")
            lost = watch.get("pod", "m3-g0-r0")["spec"]["nodeName"]
            _lose(watch.cluster, lost)
            watch.kubectl("wait", "--for=jsonpath={.status.groups[0].restarts}=1", "m3d/m3", "--timeout=60s")
            watch.kubectl("wait", "--for=condition=Ready", "m3d/m3", "--timeout=60s")
    finally:
        for found in chart_permissions(watch.namespace, "cluster"):
            if found["kind"].startswith("Cluster"):
                watch.cluster.kubectl("delete", found["kind"], found["metadata"]["name"], "--ignore-not-found")
    assert watch.get("pod", "m3-g0-r0")["spec"]["nodeName"] != lost
    status = watch.get("m3d", "m3")["status"]
    assert [node["name"] for node in status["avoidedNodes"]] == [lost]
    assert status["groups"][0]["lastFailure"]["reason"] == f"node {lost} has not been ready for 5 s"


def test_an_operator_of_one_namespace_does_without_nodes_and_says_so(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    operator = start_operator()
    operator.await_line("nodes are not watched")
    watch.apply(deployment("m3", gpu_nodes))
    watch.kubectl("wait", "--for=condition=Ready", "m3d/m3", "--timeout=60s")


def _evict(watch: Watcher, name: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": watch.namespace}}
    path = f"/api/v1/namespaces/{watch.namespace}/pods/{name}/eviction"
    watch.cluster.kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(body))


def _lose(cluster: Cluster, node: str) -> None:
    """Nobody simulates the node any more, and it says so."""
    cluster.kubectl("annotate", f"node/{node}", "kwok.x-k8s.io/node-")
    ready = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "gone"}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # a pod that became ready later would mean that it is back
    patch = json.dumps({"status": {"conditions": [{**ready, "lastTransitionTime": now}]}})
    cluster.kubectl("patch", f"node/{node}", "--subresource=status", f"--patch={patch}")
