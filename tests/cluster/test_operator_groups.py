"""Groups on a real scheduler: all or none, one at a time behind gates, in one rack, alone, and with claimed GPUs."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from m3_testcluster.cluster import Cluster
from operator_process import Account, Operator

StartOperator = Callable[..., Operator]
RACK = "topology.kubernetes.io/rack"


def deployment(namespace: str, name: str = "m3", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": "MiniMax-M3", "source": {"hostPath": {"path": "/models/m3"}}},
            "parallelism": {"nodes": 2, "gpusPerNode": 8},
            "template": {"nodeSelector": {"pool": namespace}},
            **spec,
        },
    }


class World:
    """One test's namespace and nodes."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.nodes: list[str] = []

    def add_nodes(self, count: int, **labels: str) -> None:
        prefix = f"{self.namespace}-{len(self.nodes)}"
        self.nodes += self.cluster.fake_gpu_nodes(count, prefix=prefix, labels={"pool": self.namespace, **labels})

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}")

    def await_running(self, *pods: str) -> None:
        names = [f"pod/{pod}" for pod in pods]
        for name in names:  # of several that are not there, kubectl says so at once
            self.kubectl("wait", "--for=create", "--timeout=60s", name)
        self.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *names)

    def await_condition(self, condition: str, reason: str, name: str = "m3") -> dict[str, Any]:
        path = f'{{.status.conditions[?(@.type=="{condition}")].reason}}'
        self.kubectl("wait", f"--for=jsonpath={path}={reason}", "--timeout=60s", f"m3d/{name}")
        found: dict[str, Any] = self.cluster.get("m3d", name, f"--namespace={self.namespace}")["status"]
        return found

    def placed(self) -> dict[str, str | None]:
        pods = self.cluster.get("pods", f"--namespace={self.namespace}", "--selector=serving.m3.dev/deployment")
        return {pod["metadata"]["name"]: pod["spec"].get("nodeName") for pod in pods["items"]}

    def racks(self, *pods: str) -> set[str]:
        nodes = {self.placed()[pod] for pod in pods}
        return {self.cluster.get("node", str(node))["metadata"]["labels"][RACK] for node in nodes}


@pytest.fixture
def world(m3_cluster: Cluster, namespace: str) -> Iterator[World]:
    found = World(m3_cluster, namespace)
    yield found
    m3_cluster.delete_nodes(found.nodes)


def test_a_group_that_has_no_room_for_all_takes_no_node(world: World, start_operator: StartOperator) -> None:
    world.add_nodes(3)
    start_operator()
    world.cluster.apply(deployment(world.namespace, replicas=2))
    world.await_condition("Scheduled", "PodsWaiting")
    ready = world.cluster.kubectl(
        "wait", "--for=jsonpath={.status.readyReplicas}=1", "--timeout=60s", "m3d/m3", f"--namespace={world.namespace}"
    )
    assert "condition met" in ready

    nodes = world.placed()
    by_group = {group: [nodes[f"m3-g{group}-r{rank}"] for rank in (0, 1)] for group in (0, 1)}
    assert sorted(sum(node is not None for node in taken) for taken in by_group.values()) == [0, 2]
    groups = world.cluster.get("podgroups.scheduling.k8s.io", f"--namespace={world.namespace}")["items"]
    assert [group["spec"]["schedulingPolicy"] for group in groups] == [{"gang": {"minCount": 2}}] * 2

    world.add_nodes(1)
    world.await_running("m3-g0-r0", "m3-g0-r1", "m3-g1-r0", "m3-g1-r1")


def test_without_a_gang_scheduler_groups_are_opened_one_at_a_time(
    world: World, account: Account, start_operator: StartOperator
) -> None:
    """As on a cluster without PodGroups: the operator may not see them, says so, and uses gates."""
    role = json.loads(world.kubectl("get", "role", "--output=json"))["items"][0]
    rules = [rule for rule in role["rules"] if "podgroups" not in rule["resources"]]
    world.cluster.apply({**role, "rules": rules})
    world.add_nodes(3)
    operator = start_operator()
    operator.await_line("podgroups are not used")
    world.cluster.apply(deployment(world.namespace, replicas=3, placement={"gang": {"timeoutSeconds": 3600}}))
    world.await_running("m3-g0-r0", "m3-g0-r1")
    operator.await_line("Let group 1 to the scheduler")

    nodes = world.placed()
    assert (nodes["m3-g0-r0"] is None, nodes["m3-g2-r0"], nodes["m3-g2-r1"]) == (False, None, None)
    gates = {
        pod["metadata"]["name"]: bool(pod["spec"].get("schedulingGates"))
        for pod in world.cluster.get("pods", f"--namespace={world.namespace}", "--selector=serving.m3.dev/group")[
            "items"
        ]
    }
    assert gates == {f"m3-g{group}-r{rank}": group == 2 for group in range(3) for rank in (0, 1)}

    world.add_nodes(3)
    world.await_running("m3-g1-r0", "m3-g1-r1", "m3-g2-r0", "m3-g2-r1")


def test_a_group_shares_a_rack_with_itself_and_with_nobody_else(world: World, start_operator: StartOperator) -> None:
    for rack in ("r0", "r1"):
        world.add_nodes(4, **{RACK: f"{world.namespace}-{rack}"})
    start_operator()
    placement = {"required": "Rack", "exclusive": True}
    world.cluster.apply(deployment(world.namespace, replicas=2, placement=placement))
    world.await_running("m3-g0-r0", "m3-g0-r1", "m3-g1-r0", "m3-g1-r1")

    first, second = world.racks("m3-g0-r0", "m3-g0-r1"), world.racks("m3-g1-r0", "m3-g1-r1")
    assert (len(first), len(second), len(first | second)) == (1, 1, 2)

    world.cluster.apply(deployment(world.namespace, "other", placement={"required": "Rack"}))
    status = world.await_condition("Scheduled", "PodsWaiting", "other")
    assert status["readyReplicas"] == 0


def test_gpus_are_claimed_from_a_dra_driver(world: World, start_operator: StartOperator) -> None:
    world.add_nodes(1)
    device_class = f"gpus.{world.namespace}"
    driver = f"driver.{world.namespace}"
    slices = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{world.namespace}-gpus"},
        "spec": {
            "driver": driver,
            "nodeName": world.nodes[0],
            "pool": {"name": world.nodes[0], "generation": 1, "resourceSliceCount": 1},
            "devices": [
                {"name": f"gpu-{index}", "capacity": {"memory": {"value": "141Gi" if index < 4 else "80Gi"}}}
                for index in range(6)
            ],
        },
    }
    selector = {"cel": {"expression": f"device.driver == '{driver}'"}}
    classes = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": device_class},
        "spec": {"selectors": [selector]},
    }
    world.cluster.apply([classes, slices])
    large = f"device.capacity['{driver}'].memory.compareTo(quantity('140Gi')) >= 0"
    try:
        start_operator()
        accelerator = {"mode": "DRA", "deviceClassName": device_class, "selectors": [large]}
        parallelism = {"nodes": 1, "gpusPerNode": 2}
        world.cluster.apply(deployment(world.namespace, replicas=3, accelerator=accelerator, parallelism=parallelism))
        world.kubectl("wait", "--for=jsonpath={.status.readyReplicas}=2", "--timeout=60s", "m3d/m3")
        assert sorted(node is not None for node in world.placed().values()) == [False, True, True]
        claims = world.cluster.get("resourceclaims", f"--namespace={world.namespace}")["items"]
        taken = [
            result["device"]
            for claim in claims
            for result in claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results", ())
        ]
        assert sorted(taken) == ["gpu-0", "gpu-1", "gpu-2", "gpu-3"]
    finally:
        world.kubectl("delete", "m3d", "m3", "--ignore-not-found")
        world.cluster.kubectl("delete", "resourceslice", f"{world.namespace}-gpus", "--ignore-not-found")
        world.cluster.kubectl("delete", "deviceclass", device_class, "--ignore-not-found")
