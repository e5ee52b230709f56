"""A whole Kubernetes on this machine: the control plane, DNS, and two nodes that run containers. Needs root.

Owns the order of start and end, and what a test can do with such a cluster. Everything lives in namespaces of its own;
the only things in this machine's are one cable and its routes, by which a test reaches pods and Services directly.
"""

import secrets
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from m3_testcluster import network as wiring
from m3_testcluster.build import Binaries, ensure_built
from m3_testcluster.cluster import Cluster, write_kubeconfig
from m3_testcluster.control_plane import COMPONENTS, Endpoint, Settings, start
from m3_testcluster.image_set import write_pause_image
from m3_testcluster.network import Network
from m3_testcluster.node import Node, start_kubelet, start_proxy, start_runtime
from m3_testcluster.process import Daemon, await_ready
from m3_testcluster.progress import Report, step, to_stderr
from m3_testcluster.runtime import Runtime, ensure_runtime
from m3_testcluster.scratch import scratch_directory
from m3_testcluster.teardown import claim

PROXY_USER = "system:kube-proxy"
COREFILE = """\
.:53 {{
  bind {address}
  errors
  kubernetes cluster.local {{
    kubeconfig {kubeconfig}
  }}
}}
"""


@dataclass(frozen=True)
class RealCluster(Cluster):
    """A running cluster with real nodes. Simulated nodes can be added; give them `tainted=True`."""

    nodes: tuple[Node, ...]
    network: Network

    def import_images(self, archives: Iterable[Path]) -> None:
        """Makes the images of OCI archives known to every node, for pods whose `imagePullPolicy` is not `Always`."""
        archives = list(archives)

        def import_all(node: Node) -> None:
            for archive in archives:
                node.import_image(archive)

        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(import_all, self.nodes))

    def service_url(self, namespace: str, name: str, port: int | str | None = None) -> str:
        """`http://ADDRESS:PORT` of a Service, reachable from this process.

        This machine routes the addresses of Services through the first node, whose kube-proxy translates them as for
        a pod; pod addresses are reachable just so. `port` is a number or name of the Service's ports, by default the
        first. Where a direct connection is not wanted, `port_forward` goes through the API server.
        """
        spec = self.get("service", name, f"--namespace={namespace}")["spec"]
        found = [p["port"] for p in spec["ports"] if port is None or port in (p["port"], p.get("name"))]
        if not found or spec["clusterIP"] == "None":
            raise LookupError(f"Service {namespace}/{name} has no address with port {port}: {spec['ports']}")
        return f"http://{spec['clusterIP']}:{found[0]}"

    @contextmanager
    def port_forward(self, namespace: str, target: str, port: int) -> Iterator[str]:
        """`http://127.0.0.1:PORT` that leads, by `kubectl port-forward`, to a port of `pod/NAME` or `service/NAME`."""
        command = [self.kubectl_path, f"--kubeconfig={self.kubeconfig}", "port-forward", f"--namespace={namespace}"]
        log = self.logs / f"port-forward-{secrets.token_hex(4)}.log"
        daemon = Daemon("port-forward", [*command, target, f":{port}"], log)
        try:
            await_ready(
                f"port-forward to {target}", lambda: "Forwarding from" in log.read_text(), [daemon], timeout_seconds=30
            )
            address = log.read_text().split("Forwarding from ", 1)[1].split()[0]
            yield f"http://{address}"
        finally:
            daemon.kill()

    def exec(self, namespace: str, pod: str, *command: str) -> str:
        """Runs a command in a pod and returns its standard output. Raises KubectlError."""
        return self.kubectl("exec", f"--namespace={namespace}", pod, "--", *command)

    def container_pid(self, namespace: str, pod: str, container: str | None = None) -> int:
        """The process id, on this machine, of a container of a pod (by default its first)."""
        node, container_id = self._locate(namespace, pod, container)
        return node.container_pid(container_id)

    def kill_container_process(
        self, namespace: str, pod: str, container: str | None = None, signal_number: int = signal.SIGKILL
    ) -> None:
        """Kills the first process of a container, as a crash or the kernel's OOM killer would."""
        node, container_id = self._locate(namespace, pod, container)
        node.kill_container(container_id, signal_number)

    def _locate(self, namespace: str, pod: str, container: str | None) -> tuple[Node, str]:
        found = self.get("pod", pod, f"--namespace={namespace}")
        statuses = found["status"].get("containerStatuses", [])
        ids = [s["containerID"] for s in statuses if s.get("containerID") and container in (None, s["name"])]
        if not ids:
            raise LookupError(f"pod {namespace}/{pod} has no running container {container or ''}: {statuses}")
        return next(node for node in self.nodes if node.name == found["spec"]["nodeName"]), ids[0]


@contextmanager
def real_cluster(report: Report = to_stderr) -> Iterator[RealCluster]:
    """A running cluster with two Ready nodes, node-1 and node-2, and DNS; removed without a trace at the end.

    Raises BuildError, RuntimeUnavailableError, NetworkError or StartError; `preflight` tells beforehand whether this
    machine can do it at all.
    """
    binaries, runtime = ensure_built(report=report), ensure_runtime(report)
    with scratch_directory() as directory, claim(directory) as mine, ExitStack() as stack:
        with step("test cluster: starting the control plane and two nodes", report):
            network = Network(mine.prefix, mine.subnet)
            wiring.create(network)
            cluster = _start(directory, network, binaries, runtime, stack)
            cluster.import_images([write_pause_image(directory, report)])
        yield cluster


def _start(directory: Path, network: Network, binaries: Binaries, runtime: Runtime, stack: ExitStack) -> RealCluster:
    """Starts everything on a network that is there; the containerds while the API server starts."""
    logs = directory / "logs"
    logs.mkdir()
    nodes = tuple(
        Node(index, directory / f"node-{index}", logs, network, binaries, runtime, secrets.token_hex(16))
        for index in network.node_indices
    )
    containerds = [start_runtime(node, stack) for node in nodes]
    proxy_token = secrets.token_hex(16)
    settings = Settings(
        service_cidr=network.service_cidr,
        extra_tokens=[*(node.token_line for node in nodes), f"{proxy_token},{PROXY_USER},{PROXY_USER}"],
        api_server_flags=["--kubelet-preferred-address-types=InternalIP", "--enable-admission-plugins=NodeRestriction"],
    )
    endpoint = Endpoint(network.control_plane_address, 6443, 2379, 2380, network.control_plane_namespace)
    base = start(binaries, directory, endpoint, settings, stack)
    cluster = RealCluster(**{f.name: getattr(base, f.name) for f in fields(base)}, nodes=nodes, network=network)

    def kubeconfig(name: str, token: str) -> Path:
        return write_kubeconfig(directory / f"kubeconfig-{name}", cluster.server, cluster.ca, token)

    proxy_kubeconfig = kubeconfig("kube-proxy", proxy_token)
    daemons = [_start_dns(cluster, stack)]
    for node, containerd in zip(nodes, containerds, strict=True):
        daemons.append(start_kubelet(node, containerd, kubeconfig(node.name, node.token), stack))
        daemons.append(start_proxy(node, proxy_kubeconfig, stack))
    await_ready("nodes", lambda: _ready_nodes(cluster) == {n.name for n in nodes}, daemons, timeout_seconds=90)
    return cluster


def _start_dns(cluster: RealCluster, stack: ExitStack) -> Daemon:
    """CoreDNS as a process beside the API server, behind the Service that the kubelets tell to pods."""
    network = cluster.network
    corefile = cluster.directory / "Corefile"
    kubeconfig = cluster.directory / f"kubeconfig-{COMPONENTS}"
    corefile.write_text(COREFILE.format(address=network.control_plane_address, kubeconfig=kubeconfig))
    command = [cluster.binaries["coredns"], "-conf", str(corefile)]
    daemon = Daemon("coredns", command, cluster.logs / "coredns.log", netns=network.control_plane_namespace)
    stack.callback(daemon.kill)
    cluster.apply(_dns_service(network))
    return daemon


def _dns_service(network: Network) -> list[dict[str, Any]]:
    ports = [
        {"name": name, "port": 53, "protocol": protocol} for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
    ]
    labels = {"kubernetes.io/service-name": "kube-dns"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": network.dns_service_address, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [network.control_plane_address]}],
            "ports": ports,
        },
    ]


def _ready_nodes(cluster: Cluster) -> set[str]:
    nodes = cluster.get("nodes")["items"]
    return {
        node["metadata"]["name"]
        for node in nodes
        if any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))
    }
