"""A model that is downloaded once, on a real scheduler: groups wait for the Job, and the volume outlives all of it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from m3_testcluster.cluster import Cluster
from operator_process import Operator

StartOperator = Callable[..., Operator]


@pytest.fixture
def volume(m3_cluster: Cluster, namespace: str) -> Iterator[Callable[[], None]]:
    """Makes the volume that a claim of the test's own storage class is bound to."""
    name = f"{namespace}-models"

    def make() -> None:
        spec = {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "storageClassName": namespace,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": "/models"},
        }
        m3_cluster.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})

    yield make
    m3_cluster.kubectl("delete", "persistentvolume", name, "--ignore-not-found", "--wait=false")


def deployment(namespace: str, selector: dict[str, str]) -> dict[str, Any]:
    source = {"huggingFace": {"repo": "acme/model", "revision": "0123456789abcdef0123456789abcdef01234567"}}
    cache = {"size": "1Gi", "storageClassName": namespace}
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": namespace},
        "spec": {
            "model": {"name": "MiniMax-M3", "source": source, "cache": cache},
            "parallelism": {"nodes": 2, "gpusPerNode": 8},
            "template": {"nodeSelector": selector},
        },
    }


def test_groups_are_made_when_the_model_is_in_its_volume_which_stays(
    m3_cluster: Cluster,
    namespace: str,
    gpu_nodes: dict[str, str],
    start_operator: StartOperator,
    volume: Callable[[], None],
) -> None:
    def kubectl(*arguments: str) -> str:
        return m3_cluster.kubectl(*arguments, f"--namespace={namespace}")

    def await_weights(reason: str) -> None:
        path = '{.status.conditions[?(@.type=="WeightsReady")].reason}'
        kubectl("wait", f"--for=jsonpath={path}={reason}", "--timeout=60s", "m3d/m3")

    start_operator()
    m3_cluster.apply(deployment(namespace, gpu_nodes))
    await_weights("ClaimNotBound")
    assert not m3_cluster.get("pods", f"--namespace={namespace}", "--selector=serving.m3.dev/group")["items"]
    (claim,) = m3_cluster.get("persistentvolumeclaims", f"--namespace={namespace}")["items"]
    (job,) = m3_cluster.get("jobs", f"--namespace={namespace}")["items"]

    volume()  # and the simulated node lets the Job's pod succeed
    await_weights("Downloaded")
    kubectl("wait", "--for=jsonpath={.status.readyReplicas}=1", "--timeout=60s", "m3d/m3")
    pods = m3_cluster.get("pods", f"--namespace={namespace}", "--selector=serving.m3.dev/group")["items"]
    claimed = {"claimName": claim["metadata"]["name"], "readOnly": True}
    for pod in pods:
        assert {"name": "model", "persistentVolumeClaim": claimed} in pod["spec"]["volumes"]

    kubectl("delete", "m3d/m3", "--wait")
    kubectl("wait", "--for=delete", "--timeout=60s", f"job/{job['metadata']['name']}")
    (left,) = m3_cluster.get("persistentvolumeclaims", f"--namespace={namespace}")["items"]
    assert left["metadata"]["uid"] == claim["metadata"]["uid"]
    assert "deletionTimestamp" not in left["metadata"]
