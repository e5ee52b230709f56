"""Fixtures that give tests a real Kubernetes, and the marks that go with them; what is set for every test's process.

A test that asks for `control_plane` is marked `cluster`, one that asks for `real_cluster` is marked `real_cluster`;
each kind runs in one xdist worker (`--dist loadgroup`), so that one cluster of a kind runs at a time.
"""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from m3_testcluster.cluster import Cluster
from m3_testcluster.control_plane import control_plane as run_control_plane
from m3_testcluster.image_set import PROJECT_IMAGES, write_project_images
from m3_testcluster.preflight import preflight
from m3_testcluster.progress import to_stderr
from m3_testcluster.real import RealCluster
from m3_testcluster.real import real_cluster as run_real_cluster

# The same examples in every run, however slow the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

CLUSTER_FIXTURES = {"control_plane": "cluster", "real_cluster": "real_cluster"}


def pytest_configure(config: pytest.Config) -> None:
    """Where bytecode may not be written beside sources, as in many containers, it is kept in pytest's cache instead.

    The suite starts far more than a hundred Pythons: without it, importing torch costs each of them 4 seconds more.
    """
    if "PYTHONDONTWRITEBYTECODE" in os.environ and (cache := getattr(config, "cache", None)) is not None:
        del os.environ["PYTHONDONTWRITEBYTECODE"]
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(cache.mkdir("bytecode"))
        sys.dont_write_bytecode = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by fixture, so that no test forgets it; before pytest selects by `-m` and xdist forms its groups."""
    for item in items:
        for fixture in CLUSTER_FIXTURES.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(CLUSTER_FIXTURES[fixture])
            item.add_marker(pytest.mark.xdist_group(fixture))
            if item.get_closest_marker("timeout") is None:
                # The first test of a session also waits for the cluster; that has time limits of its own.
                item.add_marker(pytest.mark.timeout(300, func_only=True))


def keep_logs(cluster: Cluster, kind: str) -> None:
    """Copies the logs of all processes and containers below `$M3_TEST_CLUSTER_LOGS`, where that is set."""
    if target := os.environ.get("M3_TEST_CLUSTER_LOGS"):
        cluster.copy_logs(Path(target) / kind / cluster.directory.name)


@pytest.fixture(autouse=True)
def log_handlers_end_with_their_test() -> Iterator[None]:
    """A command's main(), called in a test, has the root logger write to a stream that is closed after that test."""
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def visible_report(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Progress lines that pytest's capture does not swallow: a first build takes minutes."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def report(line: str) -> None:
        with capture.global_and_fixture_disabled():
            to_stderr(line)

    return report


@pytest.fixture(scope="session")
def control_plane(visible_report: Callable[[str], None]) -> Iterator[Cluster]:
    """A real API server, scheduler and controller manager; add simulated GPU nodes with `fake_gpu_nodes`."""
    with run_control_plane(visible_report) as cluster:
        yield cluster
        keep_logs(cluster, "control_plane")


@pytest.fixture(scope="session")
def real_cluster(visible_report: Callable[[str], None]) -> Iterator[RealCluster]:
    """The same with two nodes that run containers; skips with the reason where this machine cannot."""
    if reason := preflight(visible_report):
        pytest.skip(f"no real nodes on this machine: {reason}")
    with run_real_cluster(visible_report) as cluster:
        yield cluster
        keep_logs(cluster, "real_cluster")


@pytest.fixture(scope="session")
def project_images(real_cluster: RealCluster, visible_report: Callable[[str], None]) -> dict[str, str]:
    """The images of this project as it is now, known to every real node: names by `operator`, `router`, `worker`."""
    real_cluster.import_images([write_project_images(real_cluster.directory, visible_report)])
    return PROJECT_IMAGES


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace in the cluster that the test uses (the real one where it uses both)."""
    fixture = "real_cluster" if "real_cluster" in request.fixturenames else "control_plane"
    cluster: Cluster = request.getfixturevalue(fixture)
    name = f"test-{secrets.token_hex(4)}"
    cluster.create_namespace(name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
