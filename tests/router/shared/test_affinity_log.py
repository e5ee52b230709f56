"""Every replica comes to know what any replica knows, whatever happens to Redis on the way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from m3_redis import CALL_SECONDS, RedisServer, eventually, running_link
from m3_router.config import AffinitySettings, RedisSettings
from m3_router.shared import affinity_log
from m3_router.shared.affinity_log import AffinityLog, stream_entries
from m3_router.shared.link import Link

KEY = "{m3}:affinity"
Known = set[tuple[str, str, int]]


class Index:
    """The plainest index: what was told."""

    def __init__(self) -> None:
        self.known: Known = set()

    def apply(self, uid: str, epoch: str, digests: list[int]) -> None:
        self.known.update((uid, epoch, digest) for digest in digests)

    def drop(self, uid: str, epoch: str, digests: list[int]) -> None:
        self.known.difference_update((uid, epoch, digest) for digest in digests)


class Replica:
    """A replica that records what it dispatches, as the relay does."""

    def __init__(self, link: Link, name: str, **settings: Any) -> None:
        self.index = Index()
        self.link = link
        self.log = AffinityLog(link, name, {"pool": self.index}, AffinitySettings(**settings))

    @property
    def known(self) -> Known:
        return self.index.known

    def dispatch(self, uid: str, chain: list[int], epoch: str = "e") -> None:
        self.index.apply(uid, epoch, chain)
        self.log.note("pool", uid, epoch, chain)

    def hear_of_loss(self, uid: str, digests: list[int], epoch: str = "e") -> None:
        self.index.drop(uid, epoch, digests)
        self.log.gone("pool", uid, epoch, digests)


@asynccontextmanager
async def running_replica(
    redis: RedisSettings, name: str, *, is_shared: bool = True, **settings: Any
) -> AsyncIterator[Replica]:
    async with running_link(redis, is_shared=is_shared) as link:
        replica = Replica(link, name, **settings)
        running = asyncio.create_task(replica.log.run())
        try:
            if is_shared:
                await eventually(lambda: replica.log.is_caught_up)
            yield replica
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def settings(redis_server: RedisServer) -> RedisSettings:
    return RedisSettings(url=redis_server.url, call_seconds=CALL_SECONDS)


@pytest.fixture
async def pair(settings: RedisSettings) -> AsyncIterator[tuple[Replica, Replica]]:
    async with AsyncExitStack() as stack:
        yield (
            await stack.enter_async_context(running_replica(settings, "one")),
            await stack.enter_async_context(running_replica(settings, "two")),
        )


async def dispatch_until(replica: Replica, first: int, holds: Callable[[], bool]) -> None:
    """Dispatch chain after chain, as clients do whatever Redis does."""
    number = first

    def go_on() -> bool:
        nonlocal number
        number += 1
        replica.dispatch("w", [number])
        return holds()

    await eventually(go_on)


async def test_what_one_replica_dispatched_the_other_knows(pair: tuple[Replica, Replica]) -> None:
    one, two = pair
    one.dispatch("w1", [1, 2, 3])
    two.dispatch("w2", [1, 2, 2**64 - 1])
    one.dispatch("w1", list(range(100, 20_000)), epoch="later")
    await eventually(lambda: one.known == two.known and len(one.known) == 6 + 19_900)
    await eventually(lambda: two.log.read_entries == one.log.sent_entries)


async def test_a_new_replica_knows_all_when_it_says_that_it_is_caught_up(
    settings: RedisSettings, pair: tuple[Replica, Replica]
) -> None:
    one, two = pair
    for number in range(2_000):
        (one, two)[number % 2].dispatch(f"w{number % 3}", [number, number + 10_000])
        if number % 20 == 0:
            await asyncio.sleep(0.001)  # some entries more
    await eventually(lambda: one.log.waiting_entries + two.log.waiting_entries == 0 and one.known == two.known)
    async with running_link(settings) as link:
        three = Replica(link, "three")
        running = asyncio.create_task(three.log.run())
        assert not three.log.is_caught_up
        await eventually(lambda: three.log.is_caught_up)
        assert three.known == one.known
        running.cancel()


async def test_what_a_worker_lost_and_got_again_is_told_in_that_order(
    settings: RedisSettings, pair: tuple[Replica, Replica]
) -> None:
    one, two = pair
    one.dispatch("w", [1, 2, 3, 4])
    one.hear_of_loss("w", [2, 3, 4])
    one.dispatch("w", [1, 2])
    await eventually(lambda: two.known == {("w", "e", 1), ("w", "e", 2)})
    assert one.known == two.known
    one.hear_of_loss("w", [2])
    await eventually(lambda: two.known == {("w", "e", 1)})
    two.dispatch("w", [1, 2, 3])
    await eventually(lambda: one.known == {("w", "e", 1), ("w", "e", 2), ("w", "e", 3)})
    one.hear_of_loss("w", [3])
    await eventually(lambda: two.known == one.known and len(one.known) == 2)
    two.dispatch("w", [1, 2, 3])  # again: what it has told itself is no longer true
    await eventually(lambda: two.known == one.known and len(one.known) == 3)
    async with running_replica(settings, "three") as three:
        assert three.known == two.known


async def test_a_new_replica_reads_no_further_back_than_it_is_told_to(
    redis_server: RedisServer, settings: RedisSettings, pair: tuple[Replica, Replica]
) -> None:
    one, _ = pair
    one.dispatch("w", [1])
    await eventually(lambda: one.log.sent_entries == 1)
    with redis_server.client() as client:
        (entry, fields) = client.xrange(KEY)[0]
        client.delete(KEY)
        client.xadd(KEY, fields, id=f"{int(entry.split(b'-')[0]) - 10_000}-0")  # the same, ten seconds older
        client.xadd(KEY, {**fields, b"r": b"another"}, id=entry)
    async with running_replica(settings, "three", replay_seconds=5) as three:
        assert three.log.read_entries == 1


@pytest.mark.parametrize(
    ("index_blocks", "entry_blocks", "entries"),
    [(1_000_000, 100.0, 20_000), (1_000_000, 0.0, 500_000), (1_000, 100.0, 1_000)],
)
def test_the_stream_holds_what_an_index_can(index_blocks: int, entry_blocks: float, entries: int) -> None:
    assert stream_entries(index_blocks, entry_blocks) == entries


async def test_the_stream_is_trimmed_and_goes_when_nobody_is_left(
    redis_server: RedisServer, settings: RedisSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affinity_log, "MAX_ENTRIES", 100)
    monkeypatch.setattr(affinity_log, "LIFE_SECONDS", 0.1)
    monkeypatch.setattr(affinity_log, "BATCH_SECONDS", 0)
    monkeypatch.setattr(affinity_log, "SEND_PAUSE_SECONDS", 0)
    async with running_replica(settings, "one", replay_seconds=60) as one:
        await dispatch_until(one, 0, lambda: one.log.sent_entries >= 500)
        with redis_server.client() as client:
            assert 100 <= client.xlen(KEY) < 300  # whole nodes, of 100 entries each, are trimmed
            await eventually(lambda: all(0 < client.ttl(key) <= 121 for key in (KEY, KEY + ":life")))


async def test_a_killed_redis_that_is_back_empty_is_told_everything_again(
    redis_server: RedisServer, settings: RedisSettings, pair: tuple[Replica, Replica]
) -> None:
    one, two = pair
    one.dispatch("w1", [1, 2, 3])
    two.dispatch("w2", [7, 8])
    await eventually(lambda: one.known == two.known and len(one.known) == 5)
    redis_server.kill()
    await dispatch_until(one, 1_000, lambda: one.link.mode == two.link.mode == "local")
    two.dispatch("w2", [9])
    redis_server.start()
    await eventually(lambda: one.known == two.known and ("w2", "e", 9) in one.known)
    await eventually(lambda: one.log.waiting_entries + two.log.waiting_entries == 0)
    async with running_replica(settings, "three") as three:
        await eventually(lambda: three.known == one.known)


async def test_a_redis_that_was_emptied_without_a_word_is_told_everything_again(
    redis_server: RedisServer, settings: RedisSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affinity_log, "LIFE_SECONDS", 0.1)
    async with running_replica(settings, "one") as one:
        one.dispatch("w", [1, 2])
        await eventually(lambda: one.log.sent_entries == 1)
        with redis_server.client() as client:
            client.flushall()
        await eventually(lambda: one.log.sent_entries == 2)
        async with running_replica(settings, "late") as late:
            assert late.known == one.known


async def test_while_redis_is_frozen_nothing_waits_and_afterwards_all_is_told(
    redis_server: RedisServer, pair: tuple[Replica, Replica]
) -> None:
    one, two = pair
    redis_server.freeze()
    await dispatch_until(one, 0, lambda: one.link.mode == "local")
    one.dispatch("w", [2**40])
    redis_server.thaw()
    await eventually(lambda: ("w", "e", 2**40) in two.known and one.known == two.known)
    assert one.log.dropped_entries == 0


async def test_a_full_redis_is_gone_without_and_told_when_it_has_room(
    redis_server: RedisServer, pair: tuple[Replica, Replica]
) -> None:
    one, two = pair
    redis_server.fill()
    await dispatch_until(one, 0, lambda: one.link.mode == "local")
    one.dispatch("w", [2**40])
    redis_server.make_room()
    await eventually(lambda: one.known == two.known and ("w", "e", 2**40) in two.known)


async def test_a_replica_without_redis_goes_on_alone_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity_log, "ALONE_SECONDS", 0.5)
    nowhere = RedisSettings(url="unix:///nowhere/redis.sock")
    async with running_replica(nowhere, "one", is_shared=False) as one:
        one.dispatch("w", [1])
        assert not one.log.is_caught_up
        await eventually(lambda: one.log.is_caught_up)
        await eventually(lambda: one.log.waiting_entries == 1)


async def test_entries_that_make_no_sense_are_counted_and_the_next_ones_read(
    redis_server: RedisServer, pair: tuple[Replica, Replica]
) -> None:
    one, two = pair
    with redis_server.client() as client:
        client.xadd(KEY, {b"r": b"another", b"d": b"garbage"})
        client.xadd(KEY, {b"something": b"else"})
    one.log.note("pool that two has not", "w", "e", [5])
    one.dispatch("w", [1])
    await eventually(lambda: two.known == {("w", "e", 1)})
    assert two.log.malformed == 2
