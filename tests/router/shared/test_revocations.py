"""A key revoked on one replica is refused on all of them, and stays revoked for as long as a table has it."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from m3_promise import takes_less_than
from m3_redis import CALL_SECONDS, RedisServer, eventually, running_link
from m3_router.config import Access, KeySettings, RedisSettings
from m3_router.errors import Refusal
from m3_router.shared.link import Link
from m3_router.shared.revocations import ENTRY_SECONDS, Revocations
from m3_router.tenants.tenants import Tenants

SECRETS = [f"sk-{number}".encode() for number in range(5)]
DIGESTS = [hashlib.sha256(secret).digest() for secret in SECRETS]
DIGEST = DIGESTS[0]
KEYS = Access(keys=tuple(KeySettings(tenant="acme", sha256=digest.hex()) for digest in DIGESTS))
EMPTY = Access(keys=(KeySettings(tenant="acme", sha256="0" * 64),))


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def headers(secret: bytes = SECRETS[0]) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + secret}


def is_refused(tenants: Tenants, secret: bytes = SECRETS[0]) -> bool:
    try:
        tenants.identify(headers(secret))
    except Refusal:
        return True
    return False


@asynccontextmanager
async def linked(server: RedisServer) -> AsyncIterator[Link]:
    async with running_link(RedisSettings(url=server.url, call_seconds=CALL_SECONDS)) as link:
        yield link


async def test_a_key_revoked_on_one_replica_is_refused_on_the_other_within_two_seconds(
    redis_server: RedisServer,
) -> None:
    one, other = Tenants(KEYS), Tenants(KEYS)
    kept = other.identify(headers())
    async with linked(redis_server) as first, linked(redis_server) as second:

        async def revoke(number: int) -> float:
            begun = time.monotonic()
            assert await Revocations(first, one, time.time).revoke(DIGESTS[number])
            assert is_refused(one, SECRETS[number])
            await eventually(lambda: is_refused(other, SECRETS[number]))
            return time.monotonic() - begun

        task = asyncio.create_task(Revocations(second, other, time.time).run())
        try:
            await takes_less_than(2.0, revoke, len(SECRETS))
            assert kept.version != other.version
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_replica_that_begins_later_refuses_it_from_its_first_poll(redis_server: RedisServer) -> None:
    async with linked(redis_server) as link:
        await Revocations(link, Tenants(KEYS), time.time).revoke(DIGEST)
        late = Tenants(KEYS)
        assert await Revocations(link, late, time.time).poll()
        assert is_refused(late)


async def test_it_stays_revoked_for_as_long_as_a_table_has_it_and_is_forgotten_after(redis_server: RedisServer) -> None:
    clock = Clock()
    tenants, late = Tenants(KEYS), Tenants(KEYS)
    async with linked(redis_server) as link:
        revocations = Revocations(link, tenants, clock)
        await revocations.revoke(DIGEST)
        for _ in range(5):  # renewed each time, also when Redis has lost it
            clock.now += 0.7 * ENTRY_SECONDS
            with redis_server.client() as client:
                client.flushall()
            await revocations.poll()
        await Revocations(link, late, clock).poll()
        assert is_refused(late)
        tenants.swap(EMPTY)
        clock.now += 1.1 * ENTRY_SECONDS
        await revocations.poll()
        assert tenants.revoked == frozenset()


async def test_without_redis_it_holds_here_and_is_told_when_redis_is_back(redis_server: RedisServer) -> None:
    one, other = Tenants(KEYS), Tenants(KEYS)
    async with linked(redis_server) as link:
        redis_server.kill()
        revocations = Revocations(link, one, time.time)
        assert not await revocations.revoke(DIGEST)
        assert not await revocations.poll()
        assert is_refused(one)
        redis_server.start()
        await eventually(lambda: link.mode == "shared")
        assert await revocations.poll()
        await Revocations(link, other, time.time).poll()
        assert is_refused(other)


async def test_the_entries_have_an_end(redis_server: RedisServer) -> None:
    async with linked(redis_server) as link:
        await Revocations(link, Tenants(KEYS), time.time).revoke(DIGEST)
        with redis_server.client() as client:
            assert client.ttl("{m3}:revoked") == pytest.approx(ENTRY_SECONDS, abs=60)
