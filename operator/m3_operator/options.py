"""The command line of `m3-operator`, read and checked."""

import argparse
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from m3_operator.log import FORMATS
from m3_operator.names import FIELD_MANAGER

DEFAULT_LEASE: Final = FIELD_MANAGER
# Where the kubelet writes in which namespace a pod is.
_OWN_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class LeaseOptions:
    """The Lease that decides which replica acts, and who this one is."""

    namespace: str
    name: str
    identity: str


@dataclass(frozen=True)
class Options:
    """The command line. `namespace` None is all of them; `lease` None: whoever runs acts."""

    kubeconfig: Path | None
    namespace: str | None
    worker_image: str | None
    router_image: str | None
    health_host: str
    health_port: int
    metrics_host: str
    metrics_port: int
    log_level: str
    log_format: str
    lease: LeaseOptions | None
    own_namespace: str | None


def parse_options(
    arguments: Sequence[str], environment: Mapping[str, str], own_namespace: Path = _OWN_NAMESPACE
) -> Options:
    """The command line; images and the pod's name may also come from the environment. A bad one ends with code 2."""
    parser = _parser(environment)
    given = parser.parse_args(list(arguments))
    for flag, port in (("--health-port", given.health_port), ("--metrics-port", given.metrics_port)):
        if not 0 < port < 65536:
            parser.error(f"{flag} {port}: must be between 1 and 65535")
    lease = None
    if not given.no_leader_election:
        namespace = given.leader_namespace or _read(own_namespace) or given.namespace
        if namespace is None:
            parser.error("--all-namespaces outside of a pod: say --leader-namespace NS, or --no-leader-election")
        identity = given.leader_identity or environment.get("POD_NAME") or _random_identity()
        lease = LeaseOptions(namespace=namespace, name=given.leader_lease, identity=identity)
    return Options(
        kubeconfig=given.kubeconfig,
        namespace=given.namespace,
        worker_image=given.worker_image or None,
        router_image=given.router_image or None,
        health_host=given.health_host,
        health_port=given.health_port,
        metrics_host=given.metrics_host,
        metrics_port=given.metrics_port,
        log_level=given.log_level,
        log_format=given.log_format,
        lease=lease,
        own_namespace=_read(own_namespace),
    )


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="m3-operator", description="Reconcile M3Deployments, M3Routers, M3Tenants.")
    parser.add_argument("--kubeconfig", type=Path, help="default: $KUBECONFIG, or the service account of the pod")
    scope = parser.add_mutually_exclusive_group(required=True)
    scope.add_argument("--namespace", metavar="NS", help="serve one namespace")
    scope.add_argument("--all-namespaces", action="store_true", help="serve the whole cluster")
    parser.add_argument("--worker-image", default=environment.get("M3_WORKER_IMAGE"), help="or $M3_WORKER_IMAGE")
    parser.add_argument("--router-image", default=environment.get("M3_ROUTER_IMAGE"), help="or $M3_ROUTER_IMAGE")
    parser.add_argument("--health-host", default="127.0.0.1", help="address of /healthz (default %(default)s)")
    parser.add_argument("--health-port", type=int, default=8085, help="port of /healthz (default %(default)s)")
    parser.add_argument("--metrics-host", default="127.0.0.1", help="address of /metrics (default %(default)s)")
    parser.add_argument("--metrics-port", type=int, default=8086, help="port of /metrics (default %(default)s)")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    parser.add_argument("--log-format", choices=FORMATS, default="text", help="json: one object a line")
    election = parser.add_argument_group("leader election", "one replica acts, the others stand by")
    election.add_argument("--leader-lease", metavar="NAME", default=DEFAULT_LEASE, help="default %(default)s")
    election.add_argument(
        "--leader-namespace", metavar="NS", help="where the Lease is; default: the pod's own, else --namespace"
    )
    election.add_argument(
        "--leader-identity", metavar="ID", help="default: $POD_NAME, else the host's name and random letters"
    )
    election.add_argument("--no-leader-election", action="store_true", help="for a single operator, in development")
    return parser


def _read(path: Path) -> str | None:
    return path.read_text().strip() or None if path.is_file() else None


def _random_identity() -> str:
    """Never twice the same: outside of a pod, two operators may run on one host."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"
