"""One fake worker for all tests of the HTTP API in a process, put back in order after each test."""

from collections.abc import Iterator

import httpx
import pytest

from m3_fakes.worker import FakeWorker, running_worker


@pytest.fixture(scope="session")
def shared_worker() -> Iterator[FakeWorker]:
    with running_worker() as worker:
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
