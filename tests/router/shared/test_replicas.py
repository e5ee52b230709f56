"""Replicas know of each other, and of what each has in flight, and keep what they know while Redis is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from m3_redis import CALL_SECONDS, RedisServer, eventually, running_link
from m3_router.config import RedisSettings
from m3_router.shared.link import Link
from m3_router.shared.replicas import SILENT_BEATS, STALE_BEATS, Neighbours, Replicas, Report


def report(beat: int, **tokens: int) -> Report:
    return Report(beat, "name", tokens)


def test_a_replica_is_live_while_its_beat_changes_and_gone_after_enough_silence() -> None:
    neighbours = Neighbours()
    for beat in range(5):
        assert neighbours.read({"a": report(beat + 1), "b": report(1)}) == []
    for _ in range(SILENT_BEATS - 6):
        neighbours.read({"a": report(5), "b": report(1)})
    assert set(neighbours.names) == {"a", "b"}
    neighbours.read({"a": report(6), "b": report(1)})
    assert neighbours.read({"a": report(7), "b": report(1)}) == ["b"]
    assert set(neighbours.names) == {"a"}


def test_who_said_goodbye_is_gone_at_once_and_may_be_deleted() -> None:
    neighbours = Neighbours()
    neighbours.read({"a": report(1, w=5)})
    assert neighbours.read({"a": report(-1)}) == ["a"]
    assert (neighbours.names, neighbours.tokens()) == ({}, {})


def test_a_redis_that_lost_everything_does_not_end_anybody_who_reports_again() -> None:
    neighbours = Neighbours()
    neighbours.read({"a": report(1), "b": report(1)})
    for _ in range(SILENT_BEATS - 1):
        assert neighbours.read({}) == []
    assert set(neighbours.names) == {"a", "b"}
    neighbours.read({"a": report(2)})
    assert set(neighbours.names) == {"a"}


def test_tokens_of_others_add_up_and_those_of_a_silent_one_are_forgotten_first() -> None:
    neighbours = Neighbours()
    neighbours.read({"a": report(1, w=5, x=1), "b": report(1, w=7)})
    assert neighbours.tokens() == {"w": 12, "x": 1}
    for beat in range(STALE_BEATS):
        neighbours.read({"a": report(1, w=5, x=1), "b": report(2 + beat, w=7)})
    assert neighbours.tokens() == {"w": 7}
    assert set(neighbours.names) == {"a", "b"}


class Replica:
    """One with what it was told."""

    def __init__(self, link: Link, name: str) -> None:
        self.own: dict[str, int] = {}
        self.counts: list[int] = []
        self.others: dict[str, int] = {}
        self.replicas = Replicas(link, name, lambda: self.own, on_count=self.counts.append, on_tokens=self._take_tokens)

    def _take_tokens(self, tokens: dict[str, int]) -> None:
        self.others = tokens


@asynccontextmanager
async def running_replica(settings: RedisSettings, name: str) -> AsyncIterator[Replica]:
    async with running_link(settings) as link:
        replica = Replica(link, name)
        running = asyncio.create_task(replica.replicas.run())
        try:
            yield replica
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await replica.replicas.leave()


@pytest.fixture
def settings(redis_server: RedisServer) -> RedisSettings:
    return RedisSettings(url=redis_server.url, call_seconds=CALL_SECONDS)


async def test_replicas_find_each_other_and_notice_who_leaves(settings: RedisSettings) -> None:
    async with running_replica(settings, "one") as one:
        async with running_replica(settings, "two") as two:
            await eventually(lambda: one.replicas.count == two.replicas.count == 2)
            assert sorted(one.replicas.names.values()) == ["one", "two"]
            one.own = {"w": 100, "idle": 0}
            await eventually(lambda: two.others == {"w": 100})
            one.own = {}
            await eventually(lambda: two.others == {})
        await eventually(lambda: one.replicas.count == 1)
        assert one.counts == [2, 1]


async def test_while_redis_is_away_the_count_stays_and_the_tokens_of_others_go(
    redis_server: RedisServer, settings: RedisSettings
) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running_replica(settings, "one"))
        two = await stack.enter_async_context(running_replica(settings, "two"))
        two.own = {"w": 7}
        await eventually(lambda: one.replicas.count == 2 and one.others == {"w": 7})
        redis_server.kill()
        await eventually(lambda: one.others == {})
        assert one.replicas.count == 2
        redis_server.start()
        await eventually(lambda: one.others == {"w": 7})
        assert one.counts == [2]


async def test_a_report_that_makes_no_sense_is_counted_and_harms_nobody(
    redis_server: RedisServer, settings: RedisSettings
) -> None:
    async with running_link(settings) as link:
        replica = Replica(link, "one")
        with redis_server.client() as client:
            client.hset(link.key("replicas"), mapping={"x": b"garbage", b"\xff": b"", "y": msgspec.msgpack.encode([1])})
        await replica.replicas.beat()
        assert (replica.replicas.malformed, replica.replicas.count) == (3, 1)


async def test_nothing_of_a_replica_stays_in_redis_for_ever(redis_server: RedisServer, settings: RedisSettings) -> None:
    async with running_link(settings) as link:
        await Replica(link, "one").replicas.beat()
        with redis_server.client() as client:
            for key in client.keys("*"):
                assert 0 < client.ttl(key) <= 60
