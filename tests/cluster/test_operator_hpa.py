"""A real HorizontalPodAutoscaler scales an M3Deployment by the scale subresource, from a metrics API over HTTPS.

The adapter is simulated; the autoscaler, the aggregation layer, the scheduler and the operator are the real ones.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from m3_metrics_api import MetricsApi, metrics_api
from m3_operator.names import FIELD_MANAGER
from m3_testcluster.cluster import Cluster
from m3_testcluster.control_plane import COMPONENTS
from m3_testcluster.watcher import Watcher
from operator_process import Account, Operator

DOWN_WINDOW_SECONDS = 8
UTILISATION, WAIT = "DCGM_FI_DEV_GPU_UTIL", "m3_router_lane_oldest_wait_seconds"


def deployment(node_selector: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3"},
        "spec": {
            "model": {"name": "MiniMax-M3", "source": {"tiny": {"seed": 1}}},
            "parallelism": {"nodes": 2, "gpusPerNode": 1},
            "template": {"nodeSelector": node_selector},
            "autoscaling": {
                "backend": "HPA",
                "minReplicas": 1,
                "maxReplicas": 4,
                "signals": [{"type": "GPUUtilization", "target": 0.5}, {"type": "QueueWait", "target": 2}],
                "gpuMetrics": {"source": "DCGM", "url": "http://{hostIP}:9400/metrics"},
                "up": {"windowSeconds": 0, "periodSeconds": 1},
                "down": {"windowSeconds": DOWN_WINDOW_SECONDS, "periodSeconds": 1, "maxGroups": 4},
            },
        },
    }


@pytest.fixture
def adapter(m3_cluster: Cluster, namespace: str) -> Iterator[MetricsApi]:
    with metrics_api(m3_cluster, namespace) as api:
        yield api


class ScalingWatcher(Watcher):
    """One test's view of its deployment."""

    def await_groups(self, count: int) -> None:
        """Wait until the autoscaler asks for this many groups, and they serve."""
        for field in (".spec.replicas", ".status.replicas", ".status.readyReplicas"):
            self._wait("m3d/m3", f"jsonpath={{{field}}}={count}")

    def await_scaling(self, is_active: bool) -> None:
        self._wait("hpa/m3", f"condition=ScalingActive={is_active}")

    def replicas(self) -> int:
        return int(self.get("m3d", "m3")["spec"]["replicas"])

    def _wait(self, what: str, condition: str) -> None:
        self.cluster.kubectl("wait", f"--for={condition}", what, f"--namespace={self.namespace}", "--timeout=60s")


def test_an_hpa_adds_groups_holds_them_when_metrics_are_stale_and_lets_them_go_after_its_window(
    m3_cluster: Cluster,
    account: Account,
    gpu_nodes: dict[str, str],
    start_operator: Callable[..., Operator],
    adapter: MetricsApi,
) -> None:
    watch = ScalingWatcher(m3_cluster, account.namespace)
    adapter.load[UTILISATION], adapter.values[WAIT] = 50, 0  # percent: one group at its target
    start_operator()
    m3_cluster.apply(deployment(gpu_nodes), namespace=account.namespace)
    m3_cluster.kubectl("wait", "--for=create", "hpa/m3", f"--namespace={account.namespace}", "--timeout=30s")
    watch.await_groups(1)
    watch.await_scaling(is_active=True)

    adapter.load[UTILISATION] = 150  # three groups bear it at their target
    watch.await_groups(3)
    (selector,) = adapter.pod_selectors
    counted = watch.get("pods", f"--selector={selector}")["items"]
    assert sorted(pod["metadata"]["name"] for pod in counted) == [f"m3-g{group}-r0" for group in range(3)]
    adapter.values[WAIT] = 6  # requests wait three times as long as they should
    watch.await_groups(4)
    assert adapter.external_selectors == {"pool=m3"}

    adapter.is_stale, adapter.load[UTILISATION], adapter.values[WAIT] = True, 50, 0
    watch.await_scaling(is_active=False)
    until = time.monotonic() + DOWN_WINDOW_SECONDS + 4
    while time.monotonic() < until:
        assert watch.replicas() == 4
        time.sleep(0.5)

    adapter.is_stale, adapter.load[UTILISATION] = False, 200  # as much as there are groups for, and visible
    watch.await_scaling(is_active=True)
    time.sleep(2)  # two rounds of the autoscaler
    adapter.load[UTILISATION], fell = 50, time.monotonic()
    watch.await_groups(1)
    assert time.monotonic() - fell >= DOWN_WINDOW_SECONDS - 2

    scaled = [event for event in m3_cluster.writes(COMPONENTS) if event.namespace == account.namespace]
    assert {event.subresource for event in scaled if event.resource == "m3deployments"} == {"scale"}
    assert not [event for event in account.writes() if event.subresource == "scale"]
    fields = watch.get("m3d", "m3", "--show-managed-fields")["metadata"]["managedFields"]
    ours = [entry["fieldsV1"] for entry in fields if entry["manager"] == FIELD_MANAGER]
    assert ours, "the operator has written nothing: the test is blind"
    assert not [entry for entry in ours if "f:spec" in entry], "the operator writes what the autoscaler owns"
