"""One test's view of its namespace of a test cluster, by the real kubectl."""

from typing import Any

from m3_testcluster.cluster import Cluster

_READY_REASON = ".status.conditions[?(@.type=='Ready')].reason"
_READY_MESSAGE = ".status.conditions[?(@.type=='Ready')].message"


class Watcher:
    """Applies, reads, and waits for what is to happen. Every method may raise KubectlError."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def kubectl(self, *arguments: str) -> str:
        """Standard output of kubectl."""
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}")

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Server-side apply of these objects."""
        self.cluster.apply(manifests, namespace=self.namespace)

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a List of them."""
        return self.cluster.get(*arguments, f"--namespace={self.namespace}")

    def pods(self, selector: str = "serving.m3.dev/deployment=m3") -> dict[str, dict[str, Any]]:
        """The pods that a label selector picks, by name."""
        return {pod["metadata"]["name"]: pod for pod in self.get("pods", f"--selector={selector}")["items"]}

    def uids(self) -> dict[str, str]:
        """The uids of the deployment's pods, by name."""
        return {name: pod["metadata"]["uid"] for name, pod in self.pods().items()}

    def await_ready(self, *names: str) -> None:
        """Wait until these are Ready."""
        self.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *names)

    def await_value(self, name: str, path: str, value: object) -> None:
        """Wait until a field has this value."""
        self.kubectl("wait", f"--for=jsonpath={{{path}}}={value}", "--timeout=60s", name)

    def await_reason(self, name: str, reason: str) -> str:
        """Wait until Ready has this reason, which is to take 30 s at most; its sentence."""
        self.kubectl("wait", f"--for=jsonpath={{{_READY_REASON}}}={reason}", "--timeout=30s", name)
        return self.kubectl("get", name, f"--output=jsonpath={{{_READY_MESSAGE}}}")
