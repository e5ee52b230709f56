"""The router follows EndpointSlices of a real API server, with no more rights than it needs."""

import queue
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config

from m3_router.config import ServiceWorkers
from m3_router.workers.endpoints import EndpointWatch
from m3_router.workers.workers import WorkerAddress
from m3_testcluster.cluster import Cluster

Found = queue.SimpleQueue[list[WorkerAddress]]


def endpoint(pod: str, uid: str, address: str, **conditions: bool) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {"ready": True, **conditions},
        "targetRef": {"kind": "Pod", "name": pod, "uid": uid},
    }


def slice_of(name: str, *endpoints: dict[str, Any], service: str = "workers") -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": list(endpoints),
    }


@pytest.fixture
def account(control_plane: Cluster, namespace: str) -> str:
    """A service account that may list and watch EndpointSlices of its namespace, and nothing else."""
    subject = {"kind": "ServiceAccount", "name": "router", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "router"}
    rules = [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}]
    rbac = "rbac.authorization.k8s.io/v1"
    for manifest in (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "router"}},
        {"apiVersion": rbac, "kind": "Role", "metadata": {"name": "router"}, "rules": rules},
        {
            "apiVersion": rbac,
            "kind": "RoleBinding",
            "metadata": {"name": "router"},
            "roleRef": role,
            "subjects": [subject],
        },
    ):
        control_plane.apply(manifest, namespace=namespace)
    return "router"


@pytest.fixture
def found(control_plane: Cluster, namespace: str, account: str) -> Iterator[Found]:
    """What a running watch tells, list by list."""
    configuration = client.Configuration()
    config.load_kube_config(str(control_plane.kubeconfig_for(account, namespace)), client_configuration=configuration)
    told: Found = queue.SimpleQueue()
    with client.ApiClient(configuration) as api:
        service = ServiceWorkers(service="workers", namespace=namespace)
        watch = EndpointWatch(service, told.put, client.DiscoveryV1Api(api))
        watch.start()
        yield told
        watch.stop()


def test_workers_come_are_replaced_drain_and_go(control_plane: Cluster, namespace: str, found: Found) -> None:
    def names() -> list[tuple[str, str]]:
        return [(worker.name, worker.uid) for worker in found.get(timeout=30)]

    def apply(*endpoints: dict[str, Any]) -> None:
        control_plane.apply(slice_of("workers-1", *endpoints), namespace=namespace)

    assert names() == []
    control_plane.apply(slice_of("other-1", endpoint("other", "9", "10.9.0.9"), service="other"), namespace=namespace)
    apply(endpoint("tiny-g0-r0", "1", "10.9.0.1"))
    assert names() == [("tiny-g0-r0", "1")]
    apply(endpoint("tiny-g0-r0", "1", "10.9.0.1"), endpoint("tiny-g1-r0", "2", "10.9.0.2"))
    assert names() == [("tiny-g0-r0", "1"), ("tiny-g1-r0", "2")]
    apply(endpoint("tiny-g0-r0", "3", "10.9.0.3"), endpoint("tiny-g1-r0", "2", "10.9.0.2"))
    assert names() == [("tiny-g0-r0", "3"), ("tiny-g1-r0", "2")]
    apply(
        endpoint("tiny-g0-r0", "3", "10.9.0.3", terminating=True), endpoint("tiny-g1-r0", "2", "10.9.0.2", ready=False)
    )
    assert names() == []
    apply(endpoint("tiny-g1-r0", "2", "10.9.0.2"))
    assert names() == [("tiny-g1-r0", "2")]
    control_plane.kubectl("delete", "endpointslice", "workers-1", "-n", namespace)
    assert names() == []
