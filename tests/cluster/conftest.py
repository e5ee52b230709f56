"""Fixtures of the tests that run the operator against the control plane."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from m3_operator import crd
from m3_testcluster.cluster import Cluster
from operator_process import Account, Operator, install_account, running_operator


@pytest.fixture(scope="session")
def m3_cluster(control_plane: Cluster) -> Cluster:
    """The control plane with our custom resources."""
    control_plane.apply("---\n".join(crd.render_all().values()))
    names = [f"crd/{plural}.serving.m3.dev" for plural in crd.PLURALS.values()]
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    return control_plane


@pytest.fixture
def account(m3_cluster: Cluster, namespace: str) -> Account:
    """The operator's ServiceAccount with the chart's Role, in the test's namespace."""
    return install_account(m3_cluster, namespace)


@pytest.fixture
def start_operator(account: Account, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """Starts operators, which end with the test."""
    with ExitStack() as stack:
        yield lambda *flags, **how: stack.enter_context(running_operator(account, tmp_path, *flags, **how))


@pytest.fixture
def gpu_nodes(m3_cluster: Cluster, namespace: str) -> Iterator[dict[str, str]]:
    """Four nodes of eight simulated GPUs that only this test's pods select; the selector."""
    selector = {"pool": namespace}
    nodes = m3_cluster.fake_gpu_nodes(4, gpus=8, prefix=namespace, labels=selector)
    yield selector
    m3_cluster.delete_nodes(nodes)
