"""A control plane on loopback with simulated nodes: etcd, API server, controller manager, scheduler and KWOK.

Owns how these processes are configured and started; `real` uses the same start with another address. Needs no root.
Everything lives in one temporary directory and is killed at the end of the `with` block.
"""

import json
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from m3_testcluster.audit import POLICY
from m3_testcluster.build import CONTROL_PLANE, Binaries, ensure_built
from m3_testcluster.cluster import ADMIN, Cluster, write_kubeconfig
from m3_testcluster.process import Daemon, ReservedPort, await_ready
from m3_testcluster.progress import Report, to_stderr
from m3_testcluster.scratch import scratch_directory

COMPONENTS = "cluster-components"
"""The user of controller manager, scheduler and KWOK, so that the administrator's writes are the tests' own."""
STAGES = Path(__file__).with_name("stages.yaml")
FEATURE_GATES = "--feature-gates=GenericWorkload=true"
CLIENT_RATE = ("--kube-api-qps=200", "--kube-api-burst=400")


@dataclass(frozen=True)
class Endpoint:
    """Where the control plane listens. `netns` names the network namespace of its processes; None is this one."""

    address: str
    api_port: int
    etcd_client_port: int
    etcd_peer_port: int
    netns: str | None = None

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://{self.address}:{self.api_port}"


@dataclass(frozen=True)
class Settings:
    """What the two kinds of cluster choose differently."""

    service_cidr: str = "10.96.0.0/16"
    extra_tokens: Sequence[str] = ()
    """Further lines of the API server's token file."""
    api_server_flags: Sequence[str] = ()


@contextmanager
def control_plane(report: Report = to_stderr) -> Iterator[Cluster]:
    """A running control plane without nodes; `Cluster.fake_gpu_nodes` adds some.

    Raises BuildError where a binary is missing and StartError, with the end of the log, where a process does not
    come up.
    """
    binaries = ensure_built(CONTROL_PLANE, report)
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        ports = [ReservedPort("127.0.0.1") for _ in range(3)]
        for port in ports:
            stack.callback(port.release)
        endpoint = Endpoint("127.0.0.1", ports[0].number, ports[1].number, ports[2].number)
        yield start(binaries, directory, endpoint, Settings(), stack)


def start(binaries: Binaries, directory: Path, endpoint: Endpoint, settings: Settings, stack: ExitStack) -> Cluster:
    """Starts all processes of a control plane in `directory`; `stack` kills them when it unwinds."""
    logs = directory / "logs"
    logs.mkdir(exist_ok=True)
    admin_token, components_token = secrets.token_hex(16), secrets.token_hex(16)
    _write_configuration(directory, {admin_token: ADMIN, components_token: COMPONENTS}, settings)
    ca = directory / "pki" / "apiserver.crt"
    cluster = Cluster(
        binaries=binaries,
        directory=directory,
        server=endpoint.server,
        ca=ca,
        admin_token=admin_token,
        kubeconfig=write_kubeconfig(directory / "kubeconfig", endpoint.server, ca, admin_token),
    )
    components = write_kubeconfig(directory / f"kubeconfig-{COMPONENTS}", endpoint.server, ca, components_token)

    def run(name: str, *flags: str) -> Daemon:
        daemon = Daemon(name, [binaries[name], *flags], logs / f"{name}.log", netns=endpoint.netns)
        stack.callback(daemon.kill)
        return daemon

    etcd = run("etcd", *_etcd_flags(directory, endpoint))
    api_server = run("kube-apiserver", *_api_server_flags(directory, endpoint, settings))
    await_ready("API server", lambda: _answers_ok(cluster), [etcd, api_server], timeout_seconds=90)
    rest = [
        run("kube-controller-manager", *_controller_manager_flags(cluster, components)),
        run("kube-scheduler", *_scheduler_flags(components)),
        run("kwok", *_kwok_flags(components)),
    ]
    await_ready(
        "default service account", lambda: _has_default_account(cluster), [etcd, api_server, *rest], timeout_seconds=60
    )
    return cluster


def _write_configuration(directory: Path, masters: Mapping[str, str], settings: Settings) -> None:
    """Writes the audit policy and the token file; each token of `masters` is that of a user who may do everything."""
    lines = [f'{token},{user},{user},"system:masters"' for token, user in masters.items()]
    tokens = directory / "tokens.csv"
    tokens.touch(mode=0o600)
    tokens.write_text("\n".join([*lines, *settings.extra_tokens, ""]))
    (directory / "audit-policy.json").write_text(json.dumps(POLICY))


def _etcd_flags(directory: Path, endpoint: Endpoint) -> list[str]:
    client = f"http://127.0.0.1:{endpoint.etcd_client_port}"
    peer = f"http://127.0.0.1:{endpoint.etcd_peer_port}"
    return [
        f"--data-dir={directory / 'etcd'}",
        "--unsafe-no-fsync",
        "--socket-reuse-port",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
    ]


def _api_server_flags(directory: Path, endpoint: Endpoint, settings: Settings) -> list[str]:
    # The API server makes its own certificate and key in --cert-dir when it starts; the same key signs the tokens of
    # service accounts, which saves the need for a program that makes keys.
    key = directory / "pki" / "apiserver.key"
    return [
        f"--etcd-servers=http://127.0.0.1:{endpoint.etcd_client_port}",
        f"--bind-address={endpoint.address}",
        f"--secure-port={endpoint.api_port}",
        "--permit-port-sharing",
        f"--cert-dir={directory / 'pki'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        f"--token-auth-file={directory / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        f"--service-cluster-ip-range={settings.service_cidr}",
        FEATURE_GATES,
        "--runtime-config=scheduling.k8s.io/v1beta1=true",
        f"--audit-policy-file={directory / 'audit-policy.json'}",
        f"--audit-log-path={directory / 'logs' / 'audit.log'}",
        *settings.api_server_flags,
    ]


def _controller_manager_flags(cluster: Cluster, kubeconfig: Path) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        f"--service-account-private-key-file={cluster.directory / 'pki' / 'apiserver.key'}",
        f"--root-ca-file={cluster.ca}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        "--secure-port=0",
        "--horizontal-pod-autoscaler-sync-period=1s",
        # It would publish the authority behind the serving certificate; there is none, and it would try for ever.
        "--controllers=*,-kube-apiserver-serving-clustertrustbundle-publisher-controller",
        *CLIENT_RATE,
        FEATURE_GATES,
    ]


def _scheduler_flags(kubeconfig: Path) -> list[str]:
    listening = ("--leader-elect=false", "--bind-address=127.0.0.1", "--secure-port=0")
    return [f"--kubeconfig={kubeconfig}", *listening, *CLIENT_RATE, FEATURE_GATES]


def _kwok_flags(kubeconfig: Path) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        # Its default is to write no Lease at all: the node controller then gives every simulated node up after 40 s.
        "--node-lease-duration-seconds=40",
        "--node-ip=198.51.100.1",  # of the range for documentation: nothing listens on a simulated node
        f"--config={STAGES}",
    ]


def _answers_ok(cluster: Cluster) -> bool:
    """Whether /readyz says ok. The certificate does not exist at first."""
    try:
        context = ssl.create_default_context(cafile=str(cluster.ca))
        request = urllib.request.Request(
            f"{cluster.server}/readyz", headers={"Authorization": f"Bearer {cluster.admin_token}"}
        )
        with urllib.request.urlopen(request, context=context, timeout=2) as answer:
            return bool(answer.read() == b"ok")
    except (OSError, urllib.error.URLError):
        return False


def _has_default_account(cluster: Cluster) -> bool:
    return "default" in cluster.kubectl(
        "get", "serviceaccounts", "--namespace=default", "--output=name", "--ignore-not-found"
    )
