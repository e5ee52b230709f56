"""The life of an M3Deployment on a real API server: created, scaled, broken, changed, deleted."""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from m3_testcluster.cluster import Cluster
from m3_testcluster.watcher import Watcher
from operator_process import Operator

StartOperator = Callable[..., Operator]


def deployment(name: str, node_selector: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"name": "MiniMax-M3", "source": {"hostPath": {"path": "/models/m3"}}},
            "parallelism": {"nodes": 2, "gpusPerNode": 8},
            "template": {"nodeSelector": node_selector},
            **spec,
        },
    }


@pytest.fixture
def watch(m3_cluster: Cluster, namespace: str) -> Watcher:
    return Watcher(m3_cluster, namespace)


def test_a_deployment_becomes_groups_of_pods_with_a_router_in_front(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    start_operator()
    watch.apply(deployment("m3", gpu_nodes, replicas=2))
    watch.await_ready("m3d/m3", "m3r/m3")

    pods = watch.pods()
    assert sorted(pods) == ["m3-g0-r0", "m3-g0-r1", "m3-g1-r0", "m3-g1-r1"]
    assert len({pod["spec"]["nodeName"] for pod in pods.values()}) == 4
    for name, pod in pods.items():
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env["M3_NODE_RANK"] == name[-1]
        assert env["M3_NODES"] == "2"
        assert env["MASTER_ADDR"] == f"{name[:5]}-r0.{name[:5]}"
    status = watch.get("m3d", "m3")["status"]
    counts = {key: status[key] for key in ("replicas", "readyReplicas", "updatedReplicas", "gpus")}
    assert counts == {"replicas": 2, "readyReplicas": 2, "updatedReplicas": 2, "gpus": 32}
    assert status["endpoint"] == f"http://m3-router.{watch.namespace}.svc"
    slices = watch.get("endpointslices", "--selector=kubernetes.io/service-name=m3-workers")["items"]
    served = [endpoint["targetRef"]["name"] for one in slices for endpoint in one["endpoints"]]
    assert sorted(served) == ["m3-g0-r0", "m3-g1-r0"]
    config = yaml.safe_load(watch.get("configmap", "m3-router")["data"]["router.yaml"])
    assert config["pools"][0]["workers"] == {"service": "m3-workers", "namespace": watch.namespace, "port": "http"}
    row = watch.kubectl("get", "m3d", "m3").splitlines()
    assert row[0].split() == ["NAME", "READY", "GROUPS", "DESIRED", "GPUS", "BALANCE", "REASON", "AGE"]
    assert row[1].split()[:6] == ["m3", "True", "2", "2", "32", "AllGroupsReady"]


def test_the_generated_key_is_in_a_secret_once_and_in_no_log_or_event(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    operator = start_operator()
    watch.apply(deployment("m3", gpu_nodes))
    watch.await_ready("m3d/m3")

    data = {key: base64.b64decode(value).decode() for key, value in watch.get("secret", "m3-keys")["data"].items()}
    (entry,) = yaml.safe_load(data["keys.yaml"])
    assert entry["sha256"] == hashlib.sha256(data["api-key"].encode()).hexdigest()
    assert len(data["api-key"]) >= 43  # 32 random bytes
    told = operator.log.read_text() + watch.kubectl("get", "events,m3d,m3r,pods,configmaps", "--output=json")
    assert data["api-key"] not in told
    watch.kubectl("rollout", "restart", "deployment/m3-router")
    watch.kubectl("scale", "m3r/m3", "--replicas=2")
    watch.await_value("m3r/m3", ".status.readyReplicas", 2)
    assert base64.b64decode(watch.get("secret", "m3-keys")["data"]["api-key"]).decode() == data["api-key"]


def test_scaling_up_and_down_leaves_the_groups_that_stay_alone(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    start_operator()
    watch.apply(deployment("m3", gpu_nodes))
    watch.await_ready("m3d/m3")
    first = watch.uids()

    watch.kubectl("scale", "m3d/m3", "--replicas=2")
    watch.await_value("m3d/m3", ".status.readyReplicas", 2)
    assert sorted(watch.uids()) == ["m3-g0-r0", "m3-g0-r1", "m3-g1-r0", "m3-g1-r1"]
    watch.kubectl("scale", "m3d/m3", "--replicas=1")
    watch.await_value("m3d/m3", ".status.replicas", 1)
    watch.kubectl("wait", "--for=delete", "service/m3-g1", "pod/m3-g1-r0", "pod/m3-g1-r1", "--timeout=30s")
    assert watch.uids() == first
    scale = json.loads(watch.kubectl("get", "m3d", "m3", "--subresource=scale", "--output=json"))
    assert scale["spec"]["replicas"] == scale["status"]["replicas"] == 1
    assert scale["status"]["selector"] == "serving.m3.dev/deployment=m3,serving.m3.dev/rank=0"


@pytest.mark.parametrize("how", ["deleted", "failed"])
def test_a_group_that_loses_a_member_is_replaced_as_a_whole(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator, how: str
) -> None:
    operator = start_operator()
    watch.apply(deployment("m3", gpu_nodes, replicas=2))
    watch.await_ready("m3d/m3")
    before = watch.uids()

    if how == "deleted":
        watch.kubectl("delete", "pod", "m3-g1-r1", "--wait=false")
    else:
        ended = {"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"}
        patch = json.dumps({"status": ended})
        watch.kubectl("patch", "pod", "m3-g1-r1", "--subresource=status", "--type=merge", f"--patch={patch}")
    operator.await_line("Created group 1", count=2)
    watch.await_ready("m3d/m3")

    after = watch.uids()
    assert {name for name in after if after[name] != before[name]} == {"m3-g1-r0", "m3-g1-r1"}
    group = watch.get("m3d", "m3")["status"]["groups"][1]
    assert group["restarts"] == (1 if how == "failed" else 0)
    if how == "failed":
        assert "the node was low on memory" in group["lastFailure"]["reason"]


def test_a_changed_spec_replaces_the_groups_one_after_the_other(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    start_operator()
    watch.apply(deployment("m3", gpu_nodes, replicas=2))
    watch.await_ready("m3d/m3")
    before, revision = watch.uids(), watch.get("m3d", "m3")["status"]["revision"]

    watch.apply(deployment("m3", gpu_nodes, replicas=2, engine={"maxConcurrent": 128}))
    watch.kubectl("wait", "--for=condition=Progressing", "m3d/m3", "--timeout=30s")
    watch.kubectl("wait", "--for=condition=Progressing=False", "m3d/m3", "--timeout=60s")

    assert not set(before.values()) & set(watch.uids().values())
    revisions = {pod["metadata"]["labels"]["serving.m3.dev/revision"] for pod in watch.pods().values()}
    assert len(revisions) == 1
    assert revision not in revisions
    gone = watch.get("events", "--field-selector=reason=DeletedPods")["items"]
    order = [event["note"] if "note" in event else event["message"] for event in sorted(gone, key=_time_of)]
    assert [text.split()[1].rstrip(":") for text in order if "replaces it" in text] == ["m3-g1-r0", "m3-g0-r0"]


def test_deleting_a_deployment_leaves_nothing_behind_even_without_an_operator(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    operator = start_operator()
    watch.apply(deployment("m3", gpu_nodes))
    watch.await_ready("m3d/m3")
    assert watch.get("m3d", "m3")["metadata"].get("finalizers") is None
    assert operator.stop() == 0

    watch.kubectl("delete", "m3d", "m3", "--timeout=30s")
    kinds = "m3r,pods,services,configmaps,secrets,pdb,deployments,serviceaccounts,roles,rolebindings,endpointslices"
    ours = "--selector=app.kubernetes.io/managed-by=m3-operator"
    watch.kubectl("wait", "--for=delete", kinds, ours, "--timeout=60s")
    assert watch.get(kinds, ours)["items"] == []
    assert watch.pods("serving.m3.dev/router=m3") == {}


def test_a_hand_made_change_to_a_child_is_taken_back(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    start_operator()
    watch.apply(deployment("m3", gpu_nodes))
    watch.await_ready("m3d/m3")

    patch = '{"spec":{"selector":{"serving.m3.dev/rank":"7"}}}'
    watch.kubectl("patch", "service", "m3-workers", "--type=merge", f"--patch={patch}")
    watch.await_value("service/m3-workers", r".spec.selector.serving\.m3\.dev/rank", 0)
    watch.kubectl("delete", "role", "m3-router")
    watch.kubectl("wait", "--for=create", "role/m3-router", "--timeout=30s")
    watch.kubectl("scale", "deployment/m3-router", "--replicas=5")
    watch.await_value("deployment/m3-router", ".spec.replicas", 1)


def _time_of(event: dict[str, Any]) -> str:
    return str(event.get("eventTime"))


def test_refusals_are_told_as_conditions(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    start_operator()
    lost = deployment("lost", gpu_nodes, router={"name": "nowhere"})
    bad = deployment("bad", gpu_nodes)
    bad["spec"]["template"] = {"volumeMounts": [{"name": "absent", "mountPath": "/x"}]}
    router = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Router",
        "metadata": {"name": "front"},
        "spec": {"deployments": [{"name": "ghost"}]},
    }
    watch.apply(lost, bad, router)
    expected = {"m3d/lost": "RouterNotFound", "m3d/bad": "TemplateRefused", "m3r/front": "DeploymentNotFound"}
    for name, reason in expected.items():
        watch.await_value(name, ".status.conditions[?(@.type=='Ready')].reason", reason)
    told = {name: watch.kubectl("get", name, "--output=jsonpath={.status.conditions[0].message}") for name in expected}
    assert "nowhere" in told["m3d/lost"]
    assert "absent" in told["m3d/bad"]
    assert "ghost" in told["m3r/front"]


def test_of_two_deployments_with_one_model_behind_one_router_the_older_is_served(
    watch: Watcher, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    start_operator()
    router = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Router",
        "metadata": {"name": "front"},
        "spec": {"deployments": [{"name": "two"}, {"name": "one"}]},
    }
    # Created together or one after the other: `one` is the first by age or by name.
    for name in ("one", "two"):
        watch.apply(deployment(name, gpu_nodes, router={"name": "front"}))
    watch.apply(router)
    watch.await_value("m3d/two", ".status.conditions[?(@.type=='Ready')].reason", "ModelNameTaken")
    watch.await_ready("m3r/front", "m3d/one")
    watch.await_value("m3r/front", ".status.conditions[?(@.type=='Configured')].reason", "ModelNameTaken")
    config = yaml.safe_load(watch.get("configmap", "front-router")["data"]["router.yaml"])
    assert [pool["name"] for pool in config["pools"]] == ["one"]
    watch.kubectl("delete", "m3d/one")
    watch.await_ready("m3d/two")
