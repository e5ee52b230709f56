"""One node that runs containers: containerd, kubelet and kube-proxy in namespaces of their own.

Owns their configuration and start. The three share a network namespace (made by `network`) and a mount namespace, in
which the directories that they insist on are the node's own; all mounts of the node vanish with its last process.
"""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3_testcluster.build import Binaries
from m3_testcluster.cgroups import make_cgroup
from m3_testcluster.image_set import PAUSE_IMAGE
from m3_testcluster.network import Network
from m3_testcluster.process import Daemon, StartError, await_ready
from m3_testcluster.runtime import Runtime

# Directories outside of their own that kubelet, containerd and the CNI plugins write to.
PRIVATE_DIRECTORIES = ("/run/containerd", "/var/lib/kubelet", "/var/lib/cni", "/opt/containerd")

CONTAINERD_CONFIGURATION = """\
version = 2
root = "{directory}/containerd"
state = "{directory}/state"
[grpc]
  address = "{directory}/containerd.sock"
[ttrpc]
  address = "{directory}/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  # Lowering oom_score_adj needs CAP_SYS_RESOURCE, which root in a container often lacks.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{cni_plugins}"
  conf_dir = "{directory}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  BinaryName = "{runc}"
  SystemdCgroup = false
"""


@dataclass(frozen=True)
class Node:
    """A node by its index 1, 2 ...; `name` is its name in Kubernetes."""

    index: int
    directory: Path
    logs: Path
    network: Network
    binaries: Binaries
    runtime: Runtime
    token: str = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the Node object."""
        return f"node-{self.index}"

    @property
    def namespace(self) -> str:
        """The network namespace, whose name is also that of the control group."""
        return self.network.node_namespace(self.index)

    @property
    def address(self) -> str:
        """The InternalIP."""
        return self.network.node_address(self.index)

    @property
    def token_line(self) -> str:
        """The kubelet's line in the API server's token file."""
        return f'{self.token},system:node:{self.name},{self.name},"system:nodes"'

    def ctr(self, *arguments: str) -> str:
        """Runs containerd's own client. Raises StartError with what it said."""
        command = [self.runtime.program("ctr"), f"--address={self.directory / 'containerd.sock'}", "--namespace=k8s.io"]
        environment = {**os.environ, **self.runtime.environment}
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            raise StartError(f"ctr {' '.join(arguments)} on {self.name} failed: {done.stderr.strip()}")
        return done.stdout

    def import_image(self, archive: Path) -> None:
        """Makes the images of an OCI archive known to the node."""
        self.ctr("images", "import", str(archive))

    def container_pid(self, container_id: str) -> int:
        """The process id, on this machine, of the first process of a container (`containerd://...` or the bare id).

        Raises LookupError where it has ended: the API server may not know it yet.
        """
        bundle = self.directory / "state" / "io.containerd.runtime.v2.task" / "k8s.io" / container_id.rpartition("/")[2]
        try:
            return int((bundle / "init.pid").read_text())
        except FileNotFoundError:
            raise LookupError(f"container {container_id} has ended") from None

    def kill_container(self, container_id: str, signal_number: int = signal.SIGKILL) -> None:
        """Sends a signal to the first process of a container. Raises LookupError where it has ended."""
        try:
            os.kill(self.container_pid(container_id), signal_number)
        except ProcessLookupError:
            raise LookupError(f"container {container_id} has ended") from None


def start_runtime(node: Node, stack: ExitStack) -> Daemon:
    """Starts containerd in a new mount namespace and waits until it answers; images can be imported then."""
    node.directory.mkdir()
    _write_cni_configuration(node)
    configuration = node.directory / "containerd.toml"
    configuration.write_text(
        CONTAINERD_CONFIGURATION.format(
            directory=node.directory,
            sandbox_image=PAUSE_IMAGE,
            cni_plugins=node.runtime.cni_directory,
            runc=node.runtime.program("runc"),
        )
    )
    # `slave`: what this machine unmounts (the network namespaces of other clusters) goes here too.
    isolate = ("unshare", "--mount", "--propagation", "slave", "sh", "-ec", _private_directories_script(node), "sh")
    command = [*isolate, node.runtime.program("containerd"), "--config", str(configuration)]
    containerd = _run(node, stack, "containerd", command)
    await_ready("containerd", lambda: _answers(node), [containerd], timeout_seconds=30)
    return containerd


def start_kubelet(node: Node, containerd: Daemon, kubeconfig: Path, stack: ExitStack) -> Daemon:
    """Starts the kubelet beside a running containerd; the Node object appears soon after."""
    make_cgroup(node.namespace)
    configuration = node.directory / "kubelet.json"
    configuration.write_text(json.dumps(_kubelet_configuration(node)))
    inside = ("nsenter", f"--mount=/proc/{containerd.pid}/ns/mnt")
    kubelet = [
        node.binaries["kubelet"],
        f"--config={configuration}",
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        f"--root-dir={node.directory / 'kubelet'}",
        f"--cert-dir={node.directory / 'kubelet-pki'}",
    ]
    return _run(node, stack, "kubelet", [*inside, *kubelet])


def start_proxy(node: Node, kubeconfig: Path, stack: ExitStack) -> Daemon:
    """Starts kube-proxy, which makes Services work on the node and for those who route through it."""
    configuration = node.directory / "kube-proxy.json"
    configuration.write_text(json.dumps(_proxy_configuration(node, kubeconfig)))
    return _run(node, stack, "kube-proxy", [node.binaries["kube-proxy"], f"--config={configuration}"])


def _run(node: Node, stack: ExitStack, name: str, command: Sequence[str]) -> Daemon:
    log = node.logs / f"{node.name}-{name}.log"
    daemon = Daemon(f"{name} of {node.name}", command, log, netns=node.namespace, environment=node.runtime.environment)
    stack.callback(daemon.kill)
    return daemon


def _private_directories_script(node: Node) -> str:
    """Shell that mounts what only this node sees, then becomes the command in its arguments."""
    images = node.directory / "containerd"
    # Images and containers live in memory: the disk is the slowest part of an import, and nothing is left to delete.
    lines = [f"mkdir {images}; mount -t tmpfs tmpfs {images}"]
    for shared in PRIVATE_DIRECTORIES:
        private = node.directory / "private" / shared.lstrip("/")
        lines.append(f"mkdir -p {shared} {private}; mount --bind {private} {shared}")
    return "\n".join([*lines, 'exec "$@"'])


def _answers(node: Node) -> bool:
    try:
        node.ctr("version")
    except StartError:
        return False
    return True


def _write_cni_configuration(node: Node) -> None:
    """Pods hang on the node by a cable each (`ptp`): all their traffic is routed, so Services work among neighbours."""
    address_range = [[{"subnet": node.network.node_pod_cidr(node.index)}]]
    ipam = {
        "type": "host-local",
        "dataDir": str(node.directory / "ipam"),
        "ranges": address_range,
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [{"type": "ptp", "ipMasq": False, "ipam": ipam}]
    (node.directory / "cni").mkdir()
    conflist = node.directory / "cni" / "10-ptp.conflist"
    conflist.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}))


def _kubelet_configuration(node: Node) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.namespace}",
        "cgroupsPerQOS": True,
        "clusterDNS": [node.network.dns_service_address],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{node.directory / 'containerd.sock'}",
        "enforceNodeAllocatable": ["pods"],
        "evictionHard": {
            "imagefs.available": "0%",
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
        },
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": True,
        "makeIPTablesUtilChains": False,
        "podLogsDir": str(node.logs / f"{node.name}-pods"),
        "resolvConf": "",
        "volumePluginDir": str(node.directory / "volume-plugins"),
    }


def _proxy_configuration(node: Node, kubeconfig: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 50, "burst": 100},
        # What comes from elsewhere, as from this machine, is sent on under the node's address, so that answers return.
        "clusterCIDR": node.network.pod_cidr,
        "conntrack": {"maxPerCore": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
        "hostnameOverride": node.name,
        "mode": "nftables",
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }
