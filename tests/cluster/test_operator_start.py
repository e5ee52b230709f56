"""What the operator says when it cannot start: one line, and exit code 1."""

import subprocess
from pathlib import Path

import pytest
import yaml

from m3_testcluster.cluster import Cluster, write_kubeconfig
from operator_process import BIN, Account

ALONE = "--no-leader-election"


def run(*flags: str, kubeconfig: Path) -> tuple[int, list[str]]:
    """Exit code and standard error, by line."""
    command = [BIN / "m3-operator", f"--kubeconfig={kubeconfig}", "--log-level=error", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.splitlines()


def test_without_the_crds_it_says_how_to_install_them(control_plane: Cluster, tmp_path: Path) -> None:
    """A server without our kinds: the same one, under a path where the group does not exist."""
    config = yaml.safe_load(control_plane.kubeconfig.read_text())
    names = control_plane.kubectl("get", "crds", "--output=name").split()
    ours = [name for name in names if name.endswith("serving.m3.dev")]
    saved = [control_plane.get(name) for name in ours]
    try:
        if ours:
            control_plane.kubectl("delete", *ours, "--timeout=60s")
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        code, lines = run("--all-namespaces", ALONE, kubeconfig=path)
    finally:
        for definition in saved:
            metadata = {key: definition["metadata"][key] for key in ("name", "labels")}
            control_plane.apply({**{k: definition[k] for k in ("apiVersion", "kind", "spec")}, "metadata": metadata})
        if ours:
            control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *ours)
    assert code == 1
    assert lines == [
        "m3-operator: the API server does not know M3Deployment: install the CRDs first "
        "(m3 crd | kubectl apply --server-side -f -)"
    ]


def test_without_rights_it_names_the_first_that_lacks(m3_cluster: Cluster, namespace: str) -> None:
    m3_cluster.kubectl("create", "serviceaccount", "nobody", f"--namespace={namespace}")
    account = Account(m3_cluster, namespace, "nobody")
    for flags, missing in (([], 'cannot get resource "leases"'), ([ALONE], 'cannot list resource "m3deployments"')):
        code, lines = run(f"--namespace={namespace}", *flags, kubeconfig=account.kubeconfig)
        assert code == 1
        (line,) = lines
        assert line.startswith("m3-operator: lacks a permission: ")
        assert missing in line


def test_an_api_server_that_does_not_answer_is_named(m3_cluster: Cluster, tmp_path: Path) -> None:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:9", m3_cluster.ca, "token")
    code, lines = run("--all-namespaces", ALONE, kubeconfig=kubeconfig)
    assert code == 1
    (line,) = lines
    assert line.startswith("m3-operator: cannot reach the API server: ")
    assert "127.0.0.1" in line


def test_a_wrong_token_is_said_to_be_refused(m3_cluster: Cluster, tmp_path: Path) -> None:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", m3_cluster.server, m3_cluster.ca, "wrong")
    code, lines = run("--all-namespaces", ALONE, kubeconfig=kubeconfig)
    assert code == 1
    assert lines == ["m3-operator: lacks a permission: Unauthorized"]


@pytest.mark.parametrize("text", [None, "no: kubeconfig"], ids=["absent", "not a kubeconfig"])
def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    code, lines = run("--all-namespaces", ALONE, kubeconfig=path)
    assert code == 1
    (line,) = lines
    assert line.startswith(f"m3-operator: the kubeconfig {path} cannot be used: ")
