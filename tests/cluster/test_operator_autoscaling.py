"""The built-in autoscaler of a real operator: it asks workers, a router and a DCGM exporter over HTTP.

Simulated nodes run no processes, so one server on loopback speaks for all of them, and pods are said to live there.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from m3_testcluster.cluster import Cluster
from m3_testcluster.watcher import Watcher
from operator_process import Account, Operator

DOWN_WINDOW_SECONDS = 5
LOOK_SECONDS = 15  # between two looks of the autoscaler
WORKER_PORT, EXPORTER_PORT = 8000, 9400


class Processes:
    """What workers, the router and the exporter of one test say, at an address of loopback of their own."""

    def __init__(self) -> None:
        self.address = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
        self.worker = "m3_worker_requests_running 4\nm3_worker_requests_waiting 0\n"
        self.router = ""
        self.exporter: str | None = ""
        """None: it does not answer."""

    def page(self, port: int) -> str | None:
        return {WORKER_PORT: self.worker, EXPORTER_PORT: self.exporter}.get(port, self.router)


@pytest.fixture
def serve() -> Iterator[Callable[[Processes, int], None]]:
    """Lets a test's processes listen on one more port, until the test ends."""
    with ExitStack() as stack:

        def start(processes: Processes, port: int) -> None:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    page = processes.page(port)
                    self.send_response(503 if page is None else 200)
                    self.end_headers()
                    self.wfile.write((page or "").encode())

                def log_message(self, *_: Any) -> None:
                    pass

            server = stack.enter_context(ThreadingHTTPServer((processes.address, port), Handler))
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)

        yield start


class ScalingWatcher(Watcher):
    """One test's deployment, whose pods are given the address of its processes."""

    def __init__(self, cluster: Cluster, namespace: str, processes: Processes) -> None:
        super().__init__(cluster, namespace)
        self.processes = processes

    def move_in(self) -> None:
        """Say that every pod that runs listens at the processes' address."""
        address = self.processes.address
        patch = json.dumps({"status": {"podIP": address, "podIPs": [{"ip": address}]}})
        for pod in self.get("pods")["items"]:
            if pod["status"].get("podIP", address) != address:
                where = (f"--namespace={self.namespace}", "--subresource=status", "--type=merge", f"--patch={patch}")
                self.cluster.kubectl("patch", "pod", pod["metadata"]["name"], *where)

    def utilise(self, percent: int) -> None:
        """Let the GPUs of all groups be busy for this share of time."""
        self.processes.exporter = "".join(
            f'DCGM_FI_DEV_GPU_UTIL{{gpu="0",namespace="{self.namespace}",pod="m3-g{group}-r0"}} {percent}\n'
            for group in range(3)
        )

    def autoscaling(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("m3d", "m3").get("status", {}).get("autoscaling", {})
        return found

    def active(self) -> tuple[str, str]:
        """Status and reason of ScalingActive."""
        conditions = self.get("m3d", "m3").get("status", {}).get("conditions", [])
        return next(((c["status"], c["reason"]) for c in conditions if c["type"] == "ScalingActive"), ("", ""))

    def await_that(self, holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s: {self.autoscaling()}"
            self.move_in()
            time.sleep(0.3)

    def await_desired(self, count: int) -> None:
        self.await_that(lambda: self.autoscaling().get("desired") == count, f"a wish for {count} groups")

    def await_groups(self, count: int) -> None:
        self.await_that(lambda: self.get("m3d", "m3")["status"].get("readyReplicas") == count, f"{count} groups")


def manifests(node_selector: dict[str, str], processes: Processes) -> list[dict[str, Any]]:
    template = {"nodeSelector": node_selector}
    spec = {
        "model": {"name": "MiniMax-M3", "source": {"tiny": {"seed": 1}}},
        "parallelism": {"nodes": 1, "gpusPerNode": 1},
        "template": template,
        "router": {"name": "m3"},
        "autoscaling": {
            "minReplicas": 1,
            "maxReplicas": 3,
            "signals": [{"type": "GPUUtilization", "target": 0.8}, {"type": "QueueWait", "target": 2}],
            "gpuMetrics": {"source": "DCGM", "url": f"http://{processes.address}:{EXPORTER_PORT}/metrics"},
            "up": {"windowSeconds": 0, "periodSeconds": 1},
            "down": {"windowSeconds": DOWN_WINDOW_SECONDS, "periodSeconds": 1, "maxGroups": 3},
        },
    }
    router = {"deployments": [{"name": "m3"}], "template": template}
    return [
        {"apiVersion": "serving.m3.dev/v1alpha1", "kind": kind, "metadata": {"name": "m3"}, "spec": found}
        for kind, found in (("M3Deployment", spec), ("M3Router", router))
    ]


def test_waiting_requests_and_busy_gpus_add_groups_which_are_held_when_metrics_are_stale_and_go_when_idle(
    m3_cluster: Cluster,
    account: Account,
    gpu_nodes: dict[str, str],
    start_operator: Callable[..., Operator],
    serve: Callable[[Processes, int], None],
) -> None:
    processes = Processes()
    watch = ScalingWatcher(m3_cluster, account.namespace, processes)
    watch.utilise(55)  # 0.69 of its target: between the bands
    serve(processes, WORKER_PORT)
    serve(processes, EXPORTER_PORT)
    start_operator()
    m3_cluster.apply(manifests(gpu_nodes, processes), namespace=account.namespace)
    watch.await_that(lambda: bool(watch.get("pods", "--selector=serving.m3.dev/router=m3")["items"]), "a router")
    (router, *_) = watch.get("pods", "--selector=serving.m3.dev/router=m3")["items"]
    ports = [port for container in router["spec"]["containers"] for port in container["ports"]]
    (admin,) = (port["containerPort"] for port in ports if port["name"] == "admin")
    serve(processes, admin)
    watch.await_that(lambda: watch.active() == ("True", "SignalsRead"), "a decision by the signals")
    assert watch.autoscaling()["desired"] == 1

    waiting = 'm3_router_lane_requests_waiting{pool="m3"} 1\nm3_router_lane_oldest_wait_seconds{pool="m3"} 1.2\n'
    processes.router = waiting  # 0.6 of its target: just above the band, so that one more is enough
    watch.await_desired(2)
    assert watch.autoscaling()["history"][-1]["reason"] == "QueueWait is above its target"
    processes.router = ""
    watch.utilise(100)
    watch.await_groups(2)
    watch.await_desired(3)
    assert watch.autoscaling()["history"][-1]["reason"] == "GPUUtilization is above its target"

    processes.worker, processes.exporter = processes.worker.replace("4", "0"), None
    watch.await_groups(3)
    watch.await_that(lambda: watch.active() == ("False", "MetricsStale"), "a word on stale metrics")
    until = time.monotonic() + LOOK_SECONDS + DOWN_WINDOW_SECONDS
    watch.await_that(lambda: time.monotonic() > until, "time")
    assert watch.autoscaling()["desired"] == 3

    watch.utilise(5)
    watch.await_desired(1)
    watch.await_groups(1)
    assert [(entry["from"], entry["to"]) for entry in watch.autoscaling()["history"]][:2] == [(1, 2), (2, 3)]
    assert watch.get("m3d", "m3")["spec"]["replicas"] == 1, "the operator wrote spec.replicas"
