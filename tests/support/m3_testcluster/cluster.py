"""What a test can do with a running API server, whatever nodes stand behind it.

Owns the clients: kubectl, kubeconfigs, simulated nodes, and the reading of the audit log. Starting and stopping the
processes is `control_plane`'s and `real`'s.
"""

import json
import shutil
import ssl
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from m3_testcluster.audit import AuditEvent, read_events, select_writes
from m3_testcluster.build import Binaries

ADMIN = "admin"
KWOK_ANNOTATION = "kwok.x-k8s.io/node"
Manifest = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]


class KubectlError(Exception):
    """kubectl ended with a status other than 0; `stderr` is what it said."""

    def __init__(self, arguments: Sequence[str], status: int, stderr: str) -> None:
        super().__init__(f"kubectl {' '.join(arguments)} ended with status {status}: {stderr.strip()}")
        self.status = status
        self.stderr = stderr


def write_kubeconfig(path: Path, server: str, ca: Path, token: str, namespace: str = "default") -> Path:
    """Writes a kubeconfig with one context, readable by its owner only, and returns its path."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(ca)}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    return path


def to_yaml(manifest: Manifest) -> str:
    """YAML text of a manifest given as text, as one object or as several."""
    if isinstance(manifest, str):
        return manifest
    return yaml.safe_dump_all([manifest] if isinstance(manifest, Mapping) else list(manifest))


def fake_node(name: str, gpus: int, labels: Mapping[str, str], *, tainted: bool) -> dict[str, Any]:
    """A node that KWOK keeps Ready: 64 CPUs, 1 TiB of memory, `gpus` of `nvidia.com/gpu`."""
    resources = {"cpu": "64", "memory": "1Ti", "pods": "110", "ephemeral-storage": "1Ti", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {KWOK_ANNOTATION: "fake"},
            "labels": {"type": "kwok", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **labels},
        },
        "spec": {"taints": [{"key": KWOK_ANNOTATION, "value": "fake", "effect": "NoSchedule"}] if tainted else []},
        "status": {"allocatable": resources, "capacity": resources},
    }


@dataclass(frozen=True)
class Cluster:
    """A running API server. `kubeconfig` is the administrator's; `directory` holds all that belongs to this run."""

    binaries: Binaries
    directory: Path
    server: str
    ca: Path
    admin_token: str = field(repr=False)
    kubeconfig: Path

    @property
    def kubectl_path(self) -> str:
        """The path of the kubectl that belongs to this cluster."""
        return self.binaries["kubectl"]

    @property
    def logs(self) -> Path:
        """The directory with one log file for each process, and the audit log."""
        return self.directory / "logs"

    def kubectl(
        self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None, timeout_seconds: float = 120
    ) -> str:
        """Runs the real kubectl (as the administrator unless told otherwise) and returns its standard output.

        Raises KubectlError with what it wrote to standard error, and subprocess.TimeoutExpired.
        """
        done = subprocess.run(
            [
                self.kubectl_path,
                f"--kubeconfig={kubeconfig or self.kubeconfig}",
                f"--cache-dir={self.directory / 'kubectl-cache'}",
                *arguments,
            ],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        if done.returncode != 0:
            raise KubectlError(arguments, done.returncode, done.stderr)
        return done.stdout

    def apply(self, manifest: Manifest, *, namespace: str | None = None) -> str:
        """Server-side apply of YAML text, one object or several; later callers win over earlier ones."""
        where = [f"--namespace={namespace}"] if namespace else []
        flags = ["--server-side", "--force-conflicts", "--filename=-"]
        return self.kubectl("apply", *where, *flags, stdin=to_yaml(manifest))

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get ARGUMENTS` as the object (or the List) that it returns."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return found

    def create_namespace(self, name: str) -> None:
        """Creates a namespace and returns when pods can be made in it (its default service account exists)."""
        self.kubectl("create", "namespace", name)
        self.kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=30s")

    def fake_gpu_nodes(
        self,
        count: int,
        gpus: int = 8,
        *,
        prefix: str = "fake",
        labels: Mapping[str, str] | None = None,
        tainted: bool = False,
    ) -> list[str]:
        """Adds simulated nodes `PREFIX-0` ... and returns their names once they are Ready.

        On such a node every container counts as running at once and no process exists. `tainted` keeps pods away that
        do not tolerate the key `kwok.x-k8s.io/node`, for clusters that also have real nodes.
        """
        names = [f"{prefix}-{index}" for index in range(count)]
        self.apply([fake_node(name, gpus, labels or {}, tainted=tainted) for name in names])
        self.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *(f"node/{name}" for name in names))
        return names

    def delete_nodes(self, names: Iterable[str]) -> None:
        """Removes nodes; what ran there is removed by the cluster."""
        self.kubectl("delete", "node", "--ignore-not-found", *names)

    def kubeconfig_for(self, service_account: str, namespace: str) -> Path:
        """A kubeconfig with a fresh token of a service account, so that a client has exactly its rights."""
        token = self.kubectl("create", "token", service_account, f"--namespace={namespace}", "--duration=24h").strip()
        path = self.directory / f"kubeconfig-{namespace}-{service_account}"
        return write_kubeconfig(path, self.server, self.ca, token, namespace)

    def writes(self, user: str, since: datetime | None = None) -> list[AuditEvent]:
        """What `user` asked to be written, from the audit log; complete for all answered before this call.

        `user` is a user name as the API server sees it: `admin`, or `system:serviceaccount:NAMESPACE:NAME`. Refused
        requests and writes that change nothing count; access reviews and dry runs do not (but a dry run of a deletion
        does: it is told in the body, which the log lacks). `since` needs a time zone.
        """
        self._flush_audit_log()
        return select_writes(read_events(self.logs / "audit.log"), user, since)

    def requests(self, user: str) -> list[AuditEvent]:
        """Every request of `user` that was answered before this call; a watch is one when it has ended."""
        self._flush_audit_log()
        return [event for event in read_events(self.logs / "audit.log") if event.user == user]

    def _flush_audit_log(self, timeout_seconds: float = 10) -> None:
        """Sends a request with an audit id of its own, and returns when the log has it.

        An answer can reach its client an instant before its line reaches the log.
        """
        audit_id = str(uuid.uuid4())
        headers = {"Authorization": f"Bearer {self.admin_token}", "Audit-ID": audit_id}
        request = urllib.request.Request(f"{self.server}/version", headers=headers)
        with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=str(self.ca)), timeout=10):
            pass
        deadline = time.monotonic() + timeout_seconds
        while not any(event.audit_id == audit_id for event in read_events(self.logs / "audit.log")):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the audit log {self.logs / 'audit.log'} did not show a request after {timeout_seconds} s"
                )
            time.sleep(0.02)

    def copy_logs(self, target: Path) -> None:
        """Copies all logs to `target`, for a look after the cluster is gone."""
        shutil.copytree(self.logs, target, dirs_exist_ok=True)
