"""Many M3Deployments with their pods on simulated nodes: the world of `bench.py`, and requests to its API server."""

import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import urllib3

from m3_testcluster.cluster import Cluster

GROUP = "/apis/serving.m3.dev/v1alpha1"
PODS_EACH = 5
PER_ROUTER = 10
GPUS_A_NODE = 100
_AT_ONCE = 50  # M3Deployments
_THREADS = 8


class Api:
    """The API server as the administrator, over kept connections; safe to use from several threads."""

    def __init__(self, cluster: Cluster) -> None:
        self._server = cluster.server
        self._headers = {"Authorization": f"Bearer {cluster.admin_token}"}
        self._pool = urllib3.PoolManager(ca_certs=str(cluster.ca), maxsize=32, retries=False)

    def call(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """The answer. Raises RuntimeError with the API server's words."""
        answer = self._pool.request(
            method,
            f"{self._server}{path}",
            body=None if body is None else json.dumps(body).encode(),
            headers={**self._headers, "Content-Type": content_type},
            timeout=60,
        )
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: HTTP {answer.status}: {answer.data[:500]!r}")
        parsed: dict[str, Any] = json.loads(answer.data)
        return parsed

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A merge patch."""
        return self.call("PATCH", path, body, "application/merge-patch+json")

    def watch(self, path: str, version: str, seconds: int) -> Iterable[dict[str, Any]]:
        """Watch events from this version on, for so long."""
        answer = self._pool.request(
            "GET",
            f"{self._server}{path}?watch=true&resourceVersion={version}&timeoutSeconds={seconds}",
            headers=self._headers,
            preload_content=False,
            timeout=urllib3.Timeout(connect=10, read=seconds + 10),
        )
        with answer:
            pending = b""
            for chunk in answer.stream(65536):
                *lines, pending = (pending + chunk).split(b"\n")
                yield from (json.loads(line) for line in lines if line)


@dataclass(frozen=True)
class Crowd:
    """`deployments` M3Deployments in one namespace: half of them five groups of one pod, half one group of five."""

    api: Api
    namespace: str
    deployments: int

    @property
    def path(self) -> str:
        """The URL path of the M3Deployments."""
        return f"{GROUP}/namespaces/{self.namespace}/m3deployments"

    @property
    def pods_path(self) -> str:
        """The URL path of the pods."""
        return f"/api/v1/namespaces/{self.namespace}/pods"

    @property
    def routers(self) -> int:
        """How many M3Routers serve them."""
        return -(-self.deployments // PER_ROUTER)

    def name(self, index: int) -> str:
        """The name of one of them."""
        return f"m3-{index:04}"

    def create(self) -> None:
        """Make all of them and their routers."""
        self._create_routers()
        self._create_deployments(range(self.deployments))

    def grow(self, timeout_seconds: float) -> None:
        """Make all of them, some at a time, so that the API server is not starved; returns when all are Ready."""
        deadline = time.monotonic() + timeout_seconds
        self._create_routers()
        for start in range(0, self.deployments, _AT_ONCE):
            end = min(start + _AT_ONCE, self.deployments)
            self._create_deployments(range(start, end))
            self._await_ready(end, deadline)

    def _create_routers(self) -> None:
        routers = f"{GROUP}/namespaces/{self.namespace}/m3routers"
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(lambda index: self.api.call("POST", routers, self._router(index)), range(self.routers)))

    def _create_deployments(self, indexes: range) -> None:
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(lambda index: self.api.call("POST", self.path, self._deployment(index)), indexes))

    def _await_ready(self, wanted: int, deadline: float) -> None:
        """Returns when so many are Ready. Raises TimeoutError that says how many are."""
        while (ready := sum(is_ready(one) for one in self.api.call("GET", self.path)["items"])) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{ready} of {wanted} M3Deployments are Ready, and time is up")
            time.sleep(2)

    def declare(self, index: int, memory_gib: int) -> int:
        """Change what is only declared of one: no pod changes, its status does. The new generation."""
        body = {"spec": {"accelerator": {"memoryGiB": memory_gib}}}
        return int(self.api.patch(f"{self.path}/{self.name(index)}", body)["metadata"]["generation"])

    def change(self, number: int, rate: int) -> tuple[str, int]:
        """The n-th change of a run at some rate: name and new generation of the next in turn, to a value of its own."""
        index = number % self.deployments
        return self.name(index), self.declare(index, 81 + 20 * rate + number // self.deployments)

    def _deployment(self, index: int) -> dict[str, Any]:
        is_wide = index % 2 == 1
        return {
            "apiVersion": "serving.m3.dev/v1alpha1",
            "kind": "M3Deployment",
            "metadata": {"name": self.name(index)},
            "spec": {
                "model": {"name": f"m3-{index}", "source": {"tiny": {"seed": 1}}},
                "parallelism": {"nodes": PODS_EACH if is_wide else 1, "gpusPerNode": 1},
                "replicas": 1 if is_wide else PODS_EACH,
                "accelerator": {"memoryGiB": 80},
                "router": {"name": f"router-{index // PER_ROUTER:03}"},
            },
        }

    def _router(self, index: int) -> dict[str, Any]:
        served = range(index * PER_ROUTER, min((index + 1) * PER_ROUTER, self.deployments))
        return {
            "apiVersion": "serving.m3.dev/v1alpha1",
            "kind": "M3Router",
            "metadata": {"name": f"router-{index:03}"},
            "spec": {"replicas": 1, "deployments": [{"name": self.name(one)} for one in served]},
        }


def is_ready(manifest: Mapping[str, Any]) -> bool:
    """Whether its status says so."""
    conditions = manifest.get("status", {}).get("conditions", ())
    return any(found["type"] == "Ready" and found["status"] == "True" for found in conditions)
