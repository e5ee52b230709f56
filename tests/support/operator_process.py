"""The operator as its users run it: a process, under a ServiceAccount that has the chart's Role and nothing else."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from m3_testcluster.audit import AuditEvent
from m3_testcluster.cluster import Cluster, to_yaml
from m3_testcluster.process import DIE_WITH_PARENT

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
RELEASE = "m3serve"
WORKER_IMAGE, ROUTER_IMAGE = "worker.test/m3:1", "router.test/m3:1"


@dataclass(frozen=True)
class Account:
    """Who the operator is to the API server."""

    cluster: Cluster
    namespace: str
    name: str

    @property
    def user(self) -> str:
        """Its user name in the audit log."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    def writes(self, since: datetime | None = None) -> list[AuditEvent]:
        """What it asked to be written, but the renewals of its Lease, which go on whatever happens."""
        return [event for event in self.cluster.writes(self.user, since) if event.resource != "leases"]

    @property
    def kubeconfig(self) -> Path:
        """Credentials of exactly this account."""
        return self.cluster.kubeconfig_for(self.name, self.namespace)


def chart_permissions(namespace: str, scope: str = "namespace") -> list[dict[str, Any]]:
    """The chart's ServiceAccount, roles and bindings, as Helm renders them for this `rbac.scope`."""
    where = [f"--namespace={namespace}", f"--set=rbac.scope={scope}"]
    command = [BIN / "helm", "template", RELEASE, ROOT / "charts/m3serve", *where]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    objects = [found for found in yaml.safe_load_all(rendered) if found]
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    return [found for found in objects if found["kind"] in kinds and "helm.sh/hook" not in _annotations(found)]


def install_account(cluster: Cluster, namespace: str, scope: str = "namespace") -> Account:
    """Apply the chart's ServiceAccount and its permissions."""
    wanted = chart_permissions(namespace, scope)
    for found in wanted:
        of_namespace = [] if found["kind"].startswith("Cluster") else [f"--namespace={namespace}"]
        flags = ["--server-side", "--force-conflicts", "--filename=-"]
        cluster.kubectl("apply", *of_namespace, *flags, stdin=to_yaml(found))
    (account,) = (found for found in wanted if found["kind"] == "ServiceAccount")
    return Account(cluster, namespace, account["metadata"]["name"])


class Operator:
    """A running `m3-operator`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, health: str, metrics: str) -> None:
        self.process = process
        self.log = log
        self.health = health
        self.metrics = metrics

    def await_line(self, pattern: str, *, count: int = 1, timeout_seconds: float = 60) -> None:
        """Returns when this many lines of the log match."""
        deadline = time.monotonic() + timeout_seconds
        while len(re.findall(pattern, self.log.read_text())) < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no line like {pattern!r} (x{count}) in the log:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of loopback that nobody else is given until the block ends."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@contextmanager
def running_operator(
    account: Account, directory: Path, *flags: str, first_line: str = "serving ", all_namespaces: bool = False
) -> Iterator[Operator]:
    """The operator for the account's namespace (or all), from the line that it serves until the block ends.

    As in the chart it needs the Lease: one that was killed is followed after 12 s, one that was stopped at once.
    """
    with reserved_port() as port, reserved_port() as metrics_port:
        log = directory / f"operator-{port}.log"
        command = [
            *DIE_WITH_PARENT,
            BIN / "m3-operator",
            f"--kubeconfig={account.kubeconfig}",
            "--all-namespaces" if all_namespaces else f"--namespace={account.namespace}",
            f"--leader-namespace={account.namespace}",
            f"--worker-image={WORKER_IMAGE}",
            f"--router-image={ROUTER_IMAGE}",
            f"--health-port={port}",
            f"--metrics-port={metrics_port}",
            "--log-level=debug",
            *flags,
        ]
        with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
            try:
                base = "http://127.0.0.1"
                operator = Operator(process, log, f"{base}:{port}/healthz", f"{base}:{metrics_port}/metrics")
                operator.await_line(first_line)
                yield operator
            finally:
                process.kill()


def _annotations(manifest: dict[str, dict[str, dict[str, str]]]) -> dict[str, str]:
    return manifest["metadata"].get("annotations") or {}
