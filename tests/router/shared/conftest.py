"""A redis-server of its own for each test of what replicas share."""

from collections.abc import Iterator

import pytest

from m3_redis import RedisServer, running_redis


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server
