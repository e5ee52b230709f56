"""The redis-server that other tests rely on fails in the ways that it says."""

import pytest
import redis

from m3_redis import RedisServer, find_redis_server, running_redis


def test_it_starts_empty_after_it_was_killed(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.set("a", 1)
    redis_server.kill()
    with redis_server.client() as client, pytest.raises(redis.ConnectionError):
        client.ping()
    redis_server.start()
    with redis_server.client() as client:
        assert client.dbsize() == 0


def test_a_full_one_refuses_writes_and_answers_reads(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.set("a", 1)
        redis_server.fill()
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.xadd("stream", {"field": "value"})
        assert client.get("a") == b"1"
        redis_server.make_room()
        client.set("a", 2)
        assert client.get("a") == b"2"


def test_a_frozen_one_answers_nothing_until_it_is_thawed(redis_server: RedisServer) -> None:
    redis_server.freeze()
    with redis_server.client(timeout_seconds=0.05) as impatient:
        with pytest.raises(redis.TimeoutError):
            impatient.ping()
        redis_server.thaw()
    with redis_server.client() as client:
        assert client.ping()


def test_nothing_of_it_is_left_in_the_end() -> None:
    with running_redis() as server:
        directory = server.socket_path.parent
        assert directory.exists()
    assert not directory.exists()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = server.pid


def test_a_server_is_found_here() -> None:
    found = find_redis_server()
    assert found is not None
    assert found.is_file()
