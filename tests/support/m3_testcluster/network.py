"""The network of a real cluster: one namespace for the control plane, one for each node, and a cable to this machine.

Owns the addresses and the links. All of it lies in one /16, so that several clusters fit on one machine:

    10.X.0.0/24     the switch, a bridge beside the control plane (.1); node i is .(10+i), this machine .254
    10.X.(16+i)/24  the pods of node i
    10.X.128.0/20   Services; this machine reaches them through node 1, whose kube-proxy translates
"""

import subprocess
from dataclasses import dataclass

FIRST_SUBNET = 200
SUBNETS = 32


class NetworkError(Exception):
    """A link, address or route could not be made; the message has the command and what it said."""


@dataclass(frozen=True)
class Network:
    """All names and addresses of one cluster. `prefix` is unique on the machine and at most 11 characters long."""

    prefix: str
    subnet: int
    nodes: int = 2

    @property
    def base(self) -> str:
        """The first two numbers of every address."""
        return f"10.{self.subnet}"

    @property
    def control_plane_namespace(self) -> str:
        """The network namespace of the control plane, the switch and DNS."""
        return f"{self.prefix}-cp"

    @property
    def control_plane_address(self) -> str:
        """Where API server and DNS listen."""
        return f"{self.base}.0.1"

    @property
    def machine_link(self) -> str:
        """The end of the cable in this machine's own namespace."""
        return f"{self.prefix}-h"

    @property
    def service_cidr(self) -> str:
        """The addresses of Services."""
        return f"{self.base}.128.0/20"

    @property
    def pod_cidr(self) -> str:
        """The addresses of all pods."""
        return f"{self.base}.16.0/20"

    @property
    def dns_service_address(self) -> str:
        """The Service that pods ask for names."""
        return f"{self.base}.128.10"

    @property
    def node_indices(self) -> range:
        """1, 2, ..."""
        return range(1, self.nodes + 1)

    def node_namespace(self, index: int) -> str:
        """The network namespace of a node."""
        return f"{self.prefix}-n{index}"

    def node_address(self, index: int) -> str:
        """The InternalIP of a node."""
        return f"{self.base}.0.{10 + index}"

    def node_pod_cidr(self, index: int) -> str:
        """The addresses of the pods of a node."""
        return f"{self.base}.{16 + index}.0/24"

    @property
    def namespaces(self) -> list[str]:
        """All network namespaces."""
        return [self.control_plane_namespace, *(self.node_namespace(i) for i in self.node_indices)]


def create(network: Network) -> None:
    """Makes namespaces, links, addresses and routes. `teardown` removes them."""
    for namespace in network.namespaces:
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        # /proc/sys/net shows the namespace of whoever looks at it.
        enter(namespace, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    switch = network.control_plane_namespace
    run("ip", "-n", switch, "link", "add", "sw0", "type", "bridge")
    run("ip", "-n", switch, "addr", "add", f"{network.control_plane_address}/24", "dev", "sw0")
    run("ip", "-n", switch, "link", "set", "sw0", "up")
    for index in network.node_indices:
        _plug_in_node(network, index)
    _plug_in_machine(network)


def _plug_in_node(network: Network, index: int) -> None:
    switch, node, port = network.control_plane_namespace, network.node_namespace(index), f"n{index}"
    run("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node)
    run("ip", "-n", switch, "link", "set", port, "master", "sw0", "up")
    run("ip", "-n", node, "addr", "add", f"{network.node_address(index)}/24", "dev", "eth0")
    run("ip", "-n", node, "link", "set", "eth0", "up")
    run("ip", "-n", node, "route", "add", "default", "via", network.control_plane_address)
    for other in network.node_indices:
        if other != index:
            route = (network.node_pod_cidr(other), "via", network.node_address(other))
            run("ip", "-n", node, "route", "add", *route)
    run("ip", "-n", switch, "route", "add", network.node_pod_cidr(index), "via", network.node_address(index))


def _plug_in_machine(network: Network) -> None:
    switch, link = network.control_plane_namespace, network.machine_link
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "host", "netns", switch)
    run("ip", "-n", switch, "link", "set", "host", "master", "sw0", "up")
    run("ip", "addr", "add", f"{network.base}.0.254/24", "dev", link)
    run("ip", "link", "set", link, "up")
    for index in network.node_indices:
        run("ip", "route", "add", network.node_pod_cidr(index), "via", network.node_address(index))
    run("ip", "route", "add", network.service_cidr, "via", network.node_address(1))


def is_subnet_free(subnet: int) -> bool:
    """Whether this machine has no route into 10.SUBNET.0.0/16 but its default route."""
    routes = run("ip", "-4", "route", "show", "table", "all", "root", f"10.{subnet}.0.0/16")
    return not routes.strip()


def enter(namespace: str, *command: str) -> str:
    """Runs a command in a network namespace and returns its standard output. Raises NetworkError."""
    return run("nsenter", f"--net=/run/netns/{namespace}", *command)


def run(*command: str) -> str:
    """Runs a command and returns its standard output. Raises NetworkError."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"`{' '.join(command)}` ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
