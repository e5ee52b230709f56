"""The custom and external metrics APIs of Kubernetes, as an adapter serves them, behind the real aggregation layer.

    with metrics_api(cluster, namespace) as api:
        api.load["DCGM_FI_DEV_GPU_UTIL"] = 150     # shared by the pods that the asker's selector finds
        api.values["queue_wait"] = 6               # of no pod
        api.is_stale = True                        # as an adapter whose Prometheus has nothing recent

Owns the server, which listens on loopback with the API server's own certificate, and its registration, which ends with
the block: an APIService that does not answer would keep namespaces from being deleted.
"""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from m3_testcluster.cluster import Cluster

CUSTOM: Final = "custom.metrics.k8s.io/v1beta2"
EXTERNAL: Final = "external.metrics.k8s.io/v1beta1"


@dataclass
class MetricsApi:
    """What the adapter knows, to be changed by the test while it serves."""

    cluster: Cluster
    load: dict[str, float] = field(default_factory=dict)
    """By metric of pods: its sum, of which every pod that is asked about has an equal share."""
    values: dict[str, float] = field(default_factory=dict)
    """By external metric: its value."""
    is_stale: bool = False
    """Whether every metric is unknown, as all series are once nobody is scraped any more."""
    pod_selectors: set[str] = field(default_factory=set)
    """With which selectors pods were asked about."""
    external_selectors: set[str] = field(default_factory=set)
    """With which selectors external metrics were asked for."""

    def answer(self, url: str) -> dict[str, Any] | None:
        """The object at this URL; None: there is none."""
        parts = urlsplit(url)
        selector = parse_qs(parts.query).get("labelSelector", [""])[0]
        match [unquote(part) for part in parts.path.strip("/").split("/")]:
            case ["apis", "custom.metrics.k8s.io", "v1beta2"]:
                return _resources(CUSTOM, "pods/any", "MetricValueList")
            case ["apis", "external.metrics.k8s.io", "v1beta1"]:
                return _resources(EXTERNAL, "any", "ExternalMetricValueList")
            case ["apis", "custom.metrics.k8s.io", "v1beta2", "namespaces", namespace, "pods", "*", metric]:
                self.pod_selectors.add(selector)
                return self._of_pods(namespace, selector, metric)
            case ["apis", "external.metrics.k8s.io", "v1beta1", "namespaces", _, metric]:
                self.external_selectors.add(selector)
                return self._external(metric)
        return None

    def _of_pods(self, namespace: str, selector: str, metric: str) -> dict[str, Any] | None:
        if self.is_stale or metric not in self.load:
            return None
        listed = self.cluster.get("pods", f"--namespace={namespace}", f"--selector={selector}")["items"]
        names = [pod["metadata"]["name"] for pod in listed]
        items = [
            {
                "describedObject": {"kind": "Pod", "namespace": namespace, "name": name, "apiVersion": "/v1"},
                "metric": {"name": metric, "selector": None},
                **_measured(self.load[metric] / len(names)),
            }
            for name in names
        ]
        return {"kind": "MetricValueList", "apiVersion": CUSTOM, "metadata": {}, "items": items}

    def _external(self, metric: str) -> dict[str, Any] | None:
        if self.is_stale or metric not in self.values:
            return None
        item = {"metricName": metric, "metricLabels": {}, **_measured(self.values[metric])}
        return {"kind": "ExternalMetricValueList", "apiVersion": EXTERNAL, "metadata": {}, "items": [item]}


@contextmanager
def metrics_api(cluster: Cluster, namespace: str) -> Iterator[MetricsApi]:
    """Serves both APIs to the cluster until the block ends. `cluster` listens on loopback."""
    api = MetricsApi(cluster)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = api.answer(self.path)
            status = 404 if found is None else 200
            body = json.dumps(found or _not_found(self.path)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cluster.ca, cluster.ca.with_suffix(".key"))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    services = [_api_service(version, namespace, server.server_port) for version in (CUSTOM, EXTERNAL)]
    names = [f"apiservice/{service['metadata']['name']}" for service in services]
    try:
        cluster.apply([_service(namespace, server.server_port), *services])
        cluster.kubectl("wait", "--for=condition=Available", "--timeout=30s", *names)
        yield api
    finally:
        cluster.kubectl("delete", "--ignore-not-found", *names)
        server.shutdown()
        server.server_close()
        thread.join()


def _service(namespace: str, port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "metrics-api", "namespace": namespace},
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
    }


def _api_service(group_version: str, namespace: str, port: int) -> dict[str, Any]:
    group, version = group_version.split("/")
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
        "spec": {
            "group": group,
            "version": version,
            "service": {"name": "metrics-api", "namespace": namespace, "port": port},
            "insecureSkipTLSVerify": True,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    }


def _resources(group_version: str, name: str, kind: str) -> dict[str, Any]:
    resource = {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get"]}
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": [resource]}


def _measured(value: float) -> dict[str, str]:
    return {"timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "value": f"{round(value * 1000)}m"}


def _not_found(path: str) -> dict[str, Any]:
    message = f"there is nothing at {path}"
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": "NotFound",
        "code": 404,
        "message": message,
    }
