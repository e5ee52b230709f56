"""The lease scripts on a real redis-server: they do what the plain Python says, and limits hold through its faults."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import pytest
import redis.asyncio

from m3_leases import Store
from m3_redis import CALL_SECONDS, WITHIN_SECONDS, RedisServer, eventually, running_link
from m3_router.config import PlanSettings, RedisSettings
from m3_router.errors import Refusal
from m3_router.shared.lease_script import KNOWN, LEAVE, NEED_MILLISECONDS, REGISTER, VIEW, Claim, decode_reply
from m3_router.shared.leases import Leases
from m3_router.shared.link import Link
from m3_router.shared.replicas import Replicas
from m3_router.tenants.quotas import Quota, Quotas

ASKED = "{m3}:quota:asked"
VIEWS = "{m3}:quota:views"
NAMES = ("a", "b", "c", "d")


async def hash_of(client: "redis.asyncio.Redis", key: str) -> dict[str, str]:
    return {field.decode(): value.decode() for field, value in (await client.hgetall(key)).items()}  # type: ignore[misc]


@pytest.mark.parametrize("seed", range(3))
async def test_the_scripts_do_what_their_definition_in_plain_python_does(redis_server: RedisServer, seed: int) -> None:
    random = Random(seed)
    need_milliseconds = random.choice((0, 10**9))  # of real time: whose turn it is must not hang on this machine
    register = REGISTER.replace(f"= {NEED_MILLISECONDS}", f"= {need_milliseconds}")
    assert register != REGISTER
    store = Store(lambda: 10**12, need_milliseconds)  # one moment, so nothing asked for is forgotten
    keys = [f"{{m3}}:quota:t{number}:tokensPerDay:7" for number in range(4)]
    client = redis.asyncio.Redis(unix_socket_path=str(redis_server.socket_path))
    try:
        for _ in range(400):
            me = random.choice(NAMES)
            if random.random() < 0.05:
                keys_left = random.sample(keys, random.randint(1, 4))
                values: list[str | int] = [me]
                for _key in keys_left:
                    values += [random.choice((0, random.randint(1, 10**12))), 100]
                expected: Any = await store.eval(LEAVE, len(keys_left), *keys_left, *values)
                assert await client.eval(LEAVE, len(keys_left), *keys_left, *values) == expected  # type: ignore[misc]
                continue
            live = sorted({me, *random.sample(NAMES, random.randint(0, 3))})
            claims = [any_claim(random, key) for key in random.sample(keys, random.randint(0, 4))]
            arguments: list[str | int] = [me, ",".join(live), random.randint(0, 1)]
            for claim in claims:
                arguments += claim.arguments()
            call = (1 + len(claims), ASKED, *(claim.key for claim in claims), *arguments)
            asked, granted = decode_reply(await client.eval(register, *call))  # type: ignore[misc]
            expected_asked, expected_granted = decode_reply(await store.eval(REGISTER, *call))  # type: ignore[arg-type]
            assert granted == expected_granted
            assert asked.keys() == expected_asked.keys()
            known: Any = await client.eval(KNOWN, len(keys), *keys)  # type: ignore[misc]
            assert known == await store.eval(KNOWN, len(keys), *keys)
            if random.random() < 0.2:
                await client.eval(VIEW, 1, VIEWS, me, ",".join(live), 100)  # type: ignore[misc]
                await store.eval(VIEW, 1, VIEWS, me, ",".join(live), 100)
                assert await hash_of(client, VIEWS) == store.views
            for key in keys:
                assert without_times(await hash_of(client, key)) == without_times(store.hashes.get(key, {}))
                assert not await client.exists(key) or await client.ttl(key) > 0
    finally:
        await client.aclose()


def without_times(fields: dict[str, str]) -> dict[str, str]:
    """The hash of a window, but for since when somebody is in need."""
    return {name: value.rpartition(" ")[0] if name == "?" else value for name, value in fields.items()}


def any_claim(random: Random, key: str) -> Claim:
    limit = random.choice((1, 7, 100_000, 10**15))
    used = random.randint(0, limit)
    held = random.randint(0, limit)
    return Claim(
        key=key,
        limit=limit,
        used=used,
        keep=max(used, held),
        held=held,
        want=random.choice((0, 0, random.randint(1, limit))),
        gone=random.choice((0, random.randint(0, limit))),
        seconds=100,
        counts_gone=random.random() < 0.8,
        asks=random.random() < 0.5,
    )


class Running:
    """One replica with everything real: link, reports, leases."""

    def __init__(
        self, link: Link, replicas: Replicas, leases: Leases, quota: Quota, tasks: list["asyncio.Task[None]"]
    ) -> None:
        self.link = link
        self.replicas = replicas
        self.leases = leases
        self.quota = quota
        self.tasks = tasks

    async def leave(self) -> None:
        """As a router that ends: once it reports no more, or the next report would bring it back."""
        for task in self.tasks:
            await cancel(task)
        await self.leases.leave()
        await self.replicas.leave()

    def reserve(self, tokens: int) -> Refusal | None:
        try:
            self.quota.reserve(tokens, 0, time.time(), time.monotonic())
        except Refusal as refusal:
            return refusal
        return None

    @property
    def used(self) -> int:
        return self.quota.meters[0].used


@asynccontextmanager
async def running_replica(server: RedisServer, plan: PlanSettings) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(running_link(RedisSettings(url=server.url, call_seconds=CALL_SECONDS)))
        replicas = Replicas(link, "name", dict, on_count=lambda _: None, on_tokens=lambda _: None)
        reporting = asyncio.create_task(replicas.run())
        stack.push_async_callback(cancel, reporting)
        quotas = Quotas()
        quotas.replace({"acme": plan})
        leases = Leases(link, replicas, quotas, clock=time.monotonic, wall_clock=time.time)
        assert await leases.join(within_seconds=WITHIN_SECONDS)
        leasing = asyncio.create_task(leases.run())
        stack.push_async_callback(cancel, leasing)
        quota = quotas.get("acme")
        assert quota is not None
        yield Running(link, replicas, leases, quota, [reporting, leasing])


async def cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def spend(replicas: list[Running], tokens: int) -> int:
    """Ask each until it refuses. Returns what all have used."""
    for replica in replicas:
        while replica.reserve(tokens) is None:
            pass
    return sum(replica.used for replica in replicas)


PLAN = PlanSettings(tokens_per_day=100_000)


async def test_two_replicas_use_one_limit_to_its_end_and_no_further(redis_server: RedisServer) -> None:
    async with running_replica(redis_server, PLAN) as one, running_replica(redis_server, PLAN) as other:
        assert one.reserve(45_000) is None
        await eventually(lambda: spend([one], 1000) >= 95_000)  # the other's share comes over, bit by bit
        await eventually(lambda: spend([one, other], 1) == 100_000)


async def test_limits_hold_while_redis_is_frozen_and_after(redis_server: RedisServer) -> None:
    async with running_replica(redis_server, PLAN) as one, running_replica(redis_server, PLAN) as other:
        redis_server.freeze()
        try:
            await eventually(lambda: one.link.mode == other.link.mode == "local")
            assert spend([one, other], 1000) <= 100_000
            assert one.used >= 40_000  # its share, but for what is not a whole request
        finally:
            redis_server.thaw()
        await eventually(lambda: one.link.mode == other.link.mode == "shared")
        await eventually(lambda: spend([one, other], 1) == 100_000)


async def test_limits_hold_when_redis_is_killed_and_comes_back_empty(redis_server: RedisServer) -> None:
    async with running_replica(redis_server, PLAN) as one, running_replica(redis_server, PLAN) as other:
        assert one.reserve(40_000) is None
        await eventually(lambda: one.quota.meters[0].is_leased and other.quota.meters[0].others_used == 0)
        redis_server.restart()
        await eventually(lambda: spend([one], 500) >= 90_000)
        await eventually(lambda: spend([one, other], 1) == 100_000)


async def test_a_limit_outlives_the_processes(redis_server: RedisServer) -> None:
    async with running_replica(redis_server, PLAN) as one:
        assert one.reserve(70_000) is None
        await one.leave()
    async with running_replica(redis_server, PLAN) as next_one:
        refusal = next_one.reserve(31_000)
        assert refusal is not None
        assert "70000 tokens are used and 30000 tokens left" in refusal.message
        assert next_one.reserve(30_000) is None


async def test_a_full_redis_leaves_each_replica_its_share(redis_server: RedisServer) -> None:
    async with running_replica(redis_server, PLAN) as one, running_replica(redis_server, PLAN) as other:
        redis_server.fill()
        assert one.reserve(30_000) is None
        await eventually(lambda: one.link.mode == "local")
        assert other.reserve(30_000) is None
        redis_server.make_room()
        await eventually(lambda: spend([one, other], 1) == 100_000)
