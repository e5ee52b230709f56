"""The control plane that operator tests run against: a real API server, with simulated GPU nodes and an audit log."""

import json
from datetime import UTC, datetime

import pytest

from m3_testcluster.cluster import Cluster, KubectlError

WIDGETS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.cluster.test}
spec:
  group: cluster.test
  scope: Namespaced
  names: {kind: Widget, plural: widgets, singular: widget}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              required: [min, max]
              properties: {min: {type: integer}, max: {type: integer}}
              x-kubernetes-validations: [{rule: self.min <= self.max, message: min must not exceed max}]
"""


def gpu_pod(name: str, namespace: str, gpus: int, node_selector: dict[str, str]) -> dict[str, object]:
    container = {"name": "main", "image": "none", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [container], "nodeSelector": node_selector},
    }


def config_map(name: str, namespace: str, value: str) -> dict[str, object]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"value": value}}


def test_api_server_and_kubectl_are_the_pinned_kubernetes(control_plane: Cluster) -> None:
    versions = json.loads(control_plane.kubectl("version", "--output=json"))

    assert versions["serverVersion"]["gitVersion"] == "v1.37.1"
    assert versions["clientVersion"]["gitVersion"] == "v1.37.1"


def test_pods_run_on_simulated_nodes_until_the_gpus_are_taken(control_plane: Cluster, namespace: str) -> None:
    nodes = control_plane.fake_gpu_nodes(2, gpus=4, prefix=namespace, labels={"pool": namespace})
    try:
        control_plane.apply([gpu_pod(f"p{i}", namespace, 4, {"pool": namespace}) for i in range(3)])
        control_plane.kubectl(
            "wait", "--for=jsonpath={.status.conditions[?(@.type=='PodScheduled')].reason}=Unschedulable",
            "pods", "--field-selector=status.phase=Pending", "--all", f"--namespace={namespace}", "--timeout=30s",
        )  # fmt: skip
        control_plane.kubectl(
            "wait", "--for=condition=Ready", "pods", "--field-selector=spec.nodeName!=", "--all",
            f"--namespace={namespace}", "--timeout=30s",
        )  # fmt: skip
        pods = control_plane.get("pods", f"--namespace={namespace}")["items"]
    finally:
        control_plane.delete_nodes(nodes)

    running = {pod["spec"]["nodeName"] for pod in pods if pod["status"]["phase"] == "Running"}
    assert running == set(nodes)
    assert len(pods) == 3


def test_rules_of_a_custom_resource_are_enforced_with_their_message(control_plane: Cluster, namespace: str) -> None:
    control_plane.apply(WIDGETS)
    control_plane.kubectl("wait", "--for=condition=Established", "crd/widgets.cluster.test", "--timeout=30s")
    widget = {"apiVersion": "cluster.test/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": namespace}}

    control_plane.apply({**widget, "spec": {"min": 1, "max": 2}})
    with pytest.raises(KubectlError, match="min must not exceed max"):
        control_plane.apply({**widget, "spec": {"min": 3, "max": 2}})


def test_writes_are_told_by_user_and_time(control_plane: Cluster, namespace: str) -> None:
    control_plane.apply(config_map("before", namespace, "1"))
    since = datetime.now(UTC)
    control_plane.apply(config_map("after", namespace, "1"))
    control_plane.get("configmaps", f"--namespace={namespace}")
    control_plane.kubectl("auth", "can-i", "create", "pods")
    control_plane.kubectl("create", "configmap", "tried", f"--namespace={namespace}", "--dry-run=server")

    written = [(w.verb, w.resource, w.name, w.code) for w in control_plane.writes("admin", since)]
    assert written == [("patch", "configmaps", "after", 201)]


def test_service_account_kubeconfig_has_only_the_rights_of_its_role(control_plane: Cluster, namespace: str) -> None:
    where = f"--namespace={namespace}"
    control_plane.kubectl("create", "serviceaccount", "reader", where)
    control_plane.kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps", where)
    control_plane.kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader", where
    )
    kubeconfig = control_plane.kubeconfig_for("reader", namespace)

    assert "kube-root-ca.crt" in control_plane.kubectl("get", "configmaps", "--output=name", kubeconfig=kubeconfig)
    with pytest.raises(KubectlError, match=r"configmaps is forbidden"):
        control_plane.kubectl("create", "configmap", "mine", kubeconfig=kubeconfig)
    refused = control_plane.writes(f"system:serviceaccount:{namespace}:reader")
    assert [(w.verb, w.resource, w.code) for w in refused] == [("create", "configmaps", 403)]
