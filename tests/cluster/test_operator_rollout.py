"""Rollouts on a real API server, watched and steered by `m3 rollout`."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from m3_testcluster.cluster import Cluster
from operator_process import BIN, Operator

StartOperator = Callable[..., Operator]


class Deployment:
    """An M3Deployment named m3, as its user sees it."""

    def __init__(self, cluster: Cluster, namespace: str, node_selector: dict[str, str]) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.node_selector = node_selector

    def apply(self, **spec: Any) -> None:
        manifest = {
            "apiVersion": "serving.m3.dev/v1alpha1",
            "kind": "M3Deployment",
            "metadata": {"name": "m3"},
            "spec": {
                "model": {"name": "MiniMax-M3", "source": {"hostPath": {"path": "/models/m3"}}},
                "parallelism": {"nodes": 1, "gpusPerNode": 8},
                "template": {"nodeSelector": self.node_selector},
                "replicas": 2,
                **spec,
            },
        }
        self.cluster.apply(manifest, namespace=self.namespace)

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}")

    def m3(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        where = ("--kubeconfig", str(self.cluster.kubeconfig), "--namespace", self.namespace)
        command = [BIN / "m3", "rollout", *arguments, "m3", *where]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)

    def rolled_out(self) -> None:
        """Returns when the spec is rolled out to all groups."""
        result = self.m3("status", "--timeout", "60")
        assert result.returncode == 0, result.stderr

    def get(self, *arguments: str) -> dict[str, Any]:
        return self.cluster.get(*arguments, f"--namespace={self.namespace}")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("m3d", "m3")["status"]
        return found

    def running(self) -> list[str]:
        """The revisions of the pods."""
        pods = self.get("pods", "--selector=serving.m3.dev/deployment=m3")["items"]
        return sorted(pod["metadata"]["labels"]["serving.m3.dev/revision"] for pod in pods)


@pytest.fixture
def m3d(m3_cluster: Cluster, namespace: str, gpu_nodes: dict[str, str], start_operator: StartOperator) -> Deployment:
    start_operator()
    return Deployment(m3_cluster, namespace, gpu_nodes)


def test_a_change_is_rolled_out_kept_and_taken_back(m3d: Deployment) -> None:
    m3d.apply()
    m3d.rolled_out()
    first = m3d.status()["currentRevision"]
    m3d.apply(engine={"maxConcurrent": 7, "args": ["--x"]}, rollout={"strategy": "Surge"})
    m3d.rolled_out()
    second = m3d.status()["currentRevision"]
    assert second != first
    assert m3d.running() == [second, second]
    history = m3d.m3("history").stdout.splitlines()
    assert [row.split()[:2] for row in history[1:]] == [["1", first], ["2", second]]

    undone = m3d.m3("undo")
    assert (undone.returncode, undone.stderr) == (0, "")
    m3d.rolled_out()
    assert m3d.status()["currentRevision"] == first
    assert m3d.running() == [first, first]
    found = json.loads(m3d.kubectl("get", "m3d", "m3", "--output=json", "--show-managed-fields"))
    assert found["spec"]["engine"]["maxConcurrent"] == 64
    assert found["spec"]["rollout"]["strategy"] == "Surge"
    assert "m3-cli" in {entry["manager"] for entry in found["metadata"]["managedFields"]}
    owners = {one["metadata"]["ownerReferences"][0]["kind"] for one in m3d.get("controllerrevisions")["items"]}
    assert owners == {"M3Deployment"}


def test_a_rollout_that_is_stuck_goes_back_by_itself(m3d: Deployment) -> None:
    rollout = {"progressDeadlineSeconds": 10, "autoRollback": True}
    m3d.apply(rollout=rollout)
    m3d.rolled_out()
    first = m3d.status()["currentRevision"]
    m3d.apply(rollout=rollout, template={"nodeSelector": {"no": "such-node"}})
    failed = m3d.m3("status", "--timeout", "60")
    assert failed.returncode == 1
    assert f"groups go back to revision {first}" in failed.stderr
    m3d.kubectl("wait", "--for=condition=Ready", "m3d/m3", "--timeout=60s")
    m3d.kubectl("wait", "--for=condition=RolledBack", "m3d/m3", "--timeout=10s")
    assert m3d.running() == [first, first]
    assert m3d.get("m3d", "m3")["spec"]["template"]["nodeSelector"] == {"no": "such-node"}


def test_a_partition_is_recreated_from_the_revision_that_was_kept(m3d: Deployment) -> None:
    m3d.apply()
    m3d.rolled_out()
    first = m3d.status()["currentRevision"]
    m3d.apply(engine={"maxConcurrent": 7}, rollout={"partition": 1})
    m3d.rolled_out()
    second = m3d.status()["updateRevision"]
    assert m3d.running() == sorted([first, second])
    m3d.kubectl("delete", "pods", f"--selector=serving.m3.dev/revision={first}", "--wait=true")
    m3d.kubectl("wait", "--for=condition=Ready", "m3d/m3", "--timeout=60s")
    assert m3d.running() == sorted([first, second])
    (old,) = m3d.get("pods", f"--selector=serving.m3.dev/revision={first}")["items"]
    assert not [flag for flag in old["spec"]["containers"][0]["args"] if "concurrent" in flag]
