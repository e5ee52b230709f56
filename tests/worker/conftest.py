"""One fake worker for all tests of the HTTP API in a process, put back in order after each test.

What a client may rely on holds through the router too: a test marked `either_way` runs against a worker, and against
a router before two of them. What a router decides itself, or what looks into a worker, is marked `worker_only` with
the reason.
"""

from collections.abc import Iterator

import httpx
import pytest

from m3_fakes.worker import FakeWorker, StartWorker, running_worker
from m3_routed import routed_workers


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    node = metafunc.definition
    kept = node.get_closest_marker("worker_only")
    if kept is not None and not kept.args:
        pytest.fail(f"{node.nodeid}: worker_only takes the reason", pytrace=False)
    if "way" in metafunc.fixturenames and node.get_closest_marker("either_way") and kept is None:
        metafunc.parametrize("way", ["direct", "routed"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def way(request: pytest.FixtureRequest) -> str:
    """`direct`, or `routed`."""
    return str(getattr(request, "param", "direct"))


@pytest.fixture(scope="session")
def start_worker(way: str) -> StartWorker:
    """Starts a worker, or two behind a router."""
    return running_worker if way == "direct" else routed_workers


@pytest.fixture(scope="session")
def shared_worker(start_worker: StartWorker) -> Iterator[FakeWorker]:
    with start_worker() as worker:
        yield worker


@pytest.fixture
def worker(shared_worker: FakeWorker) -> Iterator[FakeWorker]:
    """A worker named `fake`: greedy by default, 256 tokens of context, bodies of up to 64 KiB."""
    yield shared_worker
    shared_worker.reset()


@pytest.fixture
def client(worker: FakeWorker) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=worker.url, timeout=30) as client:
        yield client
