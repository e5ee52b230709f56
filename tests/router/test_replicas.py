"""Routers that share a Redis: the same placement for the same requests, one quota, and no request lost with Redis."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from m3_mock import MockEngine
from m3_mock.running import Running, StartRouter, eventually, eventually_answers
from m3_promise import takes_less_than
from m3_redis import CALL_SECONDS, RedisServer, running_redis

# A loop that several routers and mock engines share is late more often than a router's own; that is not Redis' fault.
BLOCK_BYTES = 64
WITHIN_SECONDS = 20.0
KEYS = [f"m3-key-{number}" for number in range(5)]


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def three() -> AsyncIterator[list[MockEngine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(MockEngine().running()) for _ in range(3)]


StartReplica = Callable[..., Any]


@pytest.fixture
def start_replica(start_router: StartRouter, redis_server: RedisServer, three: list[MockEngine]) -> StartReplica:
    """Starts a router before the three engines, and waits until it calls itself ready."""

    async def start(**settings: Any) -> Running:
        redis = {"url": redis_server.url, "callSeconds": CALL_SECONDS}
        replica = await start_router(three, redis=redis, affinity={"blockBytes": BLOCK_BYTES}, **settings)
        await eventually_answers(lambda: replica.admin.get("/readyz"), 200)
        return replica

    return start


def prompt_of(number: int, *, turns: int = 1) -> list[dict[str, str]]:
    """A conversation that no other number begins like."""
    words = hashlib.sha256(str(number).encode()).hexdigest() * 8
    return [{"role": "user", "content": f"{turn} {words}"} for turn in range(turns)]


async def worker_of(replica: Running, messages: list[dict[str, str]], **headers: str) -> str:
    """Who answered. One token, so that what another replica has just had in flight there does not outweigh a prefix."""
    body = {"model": "mock", "messages": messages, "max_tokens": 1}
    answer = await replica.http.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-m3-worker"])


async def newest_decision(replica: Running, request_id: str) -> dict[str, Any]:
    return next(bill for bill in await replica.ledger() if bill["request_id"] == request_id)


async def gauge(replica: Running, name: str) -> float | None:
    text = (await replica.admin.get("/metrics")).text
    values = [line.split(" ")[1] for line in text.splitlines() if line.startswith(f"m3_router_{name} ")]
    return float(values[0]) if values else None


async def until_gauge(replica: Running, name: str, value: float) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        while await gauge(replica, name) != value:  # noqa: ASYNC110 - a scrape is asked for
            await asyncio.sleep(0.02)


def blocks_of(replica: Running) -> int:
    """How many blocks the index of a replica holds."""
    return sum(len(pool.affinity) for pool in replica.router._pools if pool.affinity is not None)


def digests_of(replica: Running) -> set[int]:
    """The blocks that the index of a replica holds."""
    indexes = [pool.affinity for pool in replica.router._pools if pool.affinity is not None]
    return {digest for index in indexes for generation in (index._young, index._old) for digest in generation}


async def until_held(replica: Running, digests: set[int]) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        while not digests <= digests_of(replica):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)


def load_of(*replicas: Running) -> int:
    """Tokens in flight, as all of them see it: a load would outweigh a prefix."""
    return sum(worker.load_tokens() for replica in replicas for worker in replica.pool().workers)


async def until_alike(*replicas: Running, blocks: int) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        while not all(blocks_of(replica) >= blocks for replica in replicas):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def until_told(*replicas: Running) -> None:
    """Until each of these has told the others what it dispatched, and has been told what they did."""
    sharings = [replica.router._sharing for replica in replicas]
    logs = [sharing.affinity_log for sharing in sharings if sharing is not None and sharing.affinity_log is not None]
    async with asyncio.timeout(WITHIN_SECONDS):
        while any(log._notes or log.waiting_entries for log in logs):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        entries = sum(log.sent_entries for log in logs)
        while any(log.sent_entries + log.read_entries < entries for log in logs):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)


async def test_replicas_place_alike_and_a_fresh_one_does_when_it_is_ready(start_replica: StartReplica) -> None:
    one, other = await start_replica(), await start_replica()
    numbers = range(12)
    first = {number: await worker_of((one, other)[number % 2], prompt_of(number)) for number in numbers}
    await until_told(one, other)
    assert len(set(first.values())) > 1, "or it would be easy to place alike"
    longer = {number: prompt_of(number, turns=2) for number in numbers}
    for number in numbers:
        for replica in (one, other):
            assert await worker_of(replica, longer[number], **{"x-request-id": f"again-{number}"}) == first[number]
            decision = await newest_decision(replica, f"again-{number}")
            assert decision["reason"] == "prefix"
            assert decision["predicted_cached_tokens"] > 0
    fresh = await start_replica()
    for number in numbers:
        assert await worker_of(fresh, longer[number], **{"x-request-id": f"fresh-{number}"}) == first[number]
        assert (await newest_decision(fresh, f"fresh-{number}"))["reason"] == "prefix"


async def test_a_prefix_is_followed_to_a_worker_that_rendezvous_hashing_would_not_name(
    start_replica: StartReplica,
) -> None:
    one, other = await start_replica(), await start_replica()
    named = await worker_of(one, prompt_of(1))
    await until_alike(other, blocks=blocks_of(one))  # or it would hear of it after it was told to forget
    for replica in (one, other):
        assert (await replica.admin.post("/api/acts/reset-affinity", json={})).status_code == 200
    assert (await one.admin.post("/api/acts/drain", json={"pool": "mock", "worker": named})).status_code == 200
    owner = await worker_of(one, prompt_of(1))
    assert owner != named
    await until_alike(other, blocks=1)
    assert await worker_of(other, prompt_of(1)) == owner


async def test_no_request_is_lost_with_redis_and_replicas_agree_again_after_it(
    start_replica: StartReplica, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "m3_router")
    replicas = [await start_replica(), await start_replica()]
    is_over = False
    statuses: list[int] = []
    settled = [0, 0]

    async def load(place: int, number: int) -> None:
        while not is_over:
            number += 1
            statuses.append((await replicas[place].chat(messages=prompt_of(number))).status_code)
            settled[place] += 1
            await asyncio.sleep(0.005)

    clients = [asyncio.create_task(load(place % 2, 1000 * place)) for place in range(4)]
    await eventually(lambda: len(statuses) > 40, "load")
    redis_server.kill()
    for replica in replicas:
        await until_gauge(replica, "redis_shared", 0)
    without = len(statuses)
    await eventually(lambda: len(statuses) > without + 40, "load without Redis")
    assert "Redis: going on alone" in caplog.text
    alone = await worker_of(replicas[0], prompt_of(-1))
    caplog.clear()
    await asyncio.to_thread(redis_server.start)
    for replica in replicas:
        await until_gauge(replica, "redis_shared", 1)
        await until_gauge(replica, "replicas", 2)
    assert "Redis: shared with the other replicas" in caplog.text
    is_over = True
    await asyncio.gather(*clients)
    assert set(statuses) == {200}
    for replica, count in zip(replicas, (settled[0] + 1, settled[1]), strict=True):  # one was `alone`
        await until_billed(replica, count)
    await until_held(replicas[1], digests_of(replicas[0]))
    await eventually(lambda: load_of(*replicas) == 0, "each has heard that the other has nothing in flight")
    assert await worker_of(replicas[1], prompt_of(-1, turns=2), **{"x-request-id": "after"}) == alone
    assert (await newest_decision(replicas[1], "after"))["reason"] == "prefix"


async def until_billed(replica: Running, count: int) -> None:
    """So many requests have a line of their own in the log, all of them answered."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while len(replica.log.lines) < count:  # noqa: ASYNC110 - a thread writes them
            await asyncio.sleep(0.05)
    assert [line["outcome"] for line in replica.log.lines] == ["ok"] * count
    assert len({line["request_id"] for line in replica.log.lines}) == count


def access(**plan: Any) -> dict[str, Any]:
    keys = [{"tenant": "acme", "sha256": digest_of(key)} for key in KEYS]
    return {"auth": {"plans": {"p": plan}, "tenants": [{"name": "acme", "plan": "p"}], "keys": keys}}


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


async def ask(replica: Running, key: str = KEYS[0]) -> httpx.Response:
    body = {"model": "mock", "prompt": [1, 2], "max_tokens": 3}
    answer: httpx.Response = await replica.http.post(
        "/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}
    )
    return answer


async def test_a_key_revoked_on_one_replica_is_refused_by_the_others_within_two_seconds(
    start_replica: StartReplica,
) -> None:
    one, other = await start_replica(**access()), await start_replica(**access())
    assert [(await ask(replica)).status_code for replica in (one, other)] == [200, 200]
    loop = asyncio.get_running_loop()

    async def revoke(number: int) -> float:
        key = KEYS[number]
        begun = loop.time()
        revoked = await one.admin.post("/api/acts/revoke", json={"sha256": digest_of(key)})
        assert revoked.status_code == 200, revoked.text
        assert (await ask(one, key)).status_code == 401
        async with asyncio.timeout(WITHIN_SECONDS):
            while (await ask(other, key)).status_code != 401:  # noqa: ASYNC110 - as a client would
                await asyncio.sleep(0.05)
        return loop.time() - begun

    await takes_less_than(2.0, revoke, len(KEYS))


async def test_a_quota_holds_over_both_replicas(start_replica: StartReplica) -> None:
    plan = access(tokens_per_day=400)
    one, other = await start_replica(**plan), await start_replica(**plan)
    admitted = 0
    spent: set[int] = set()
    async with asyncio.timeout(60):
        while len(spent) < 2:
            for number, replica in enumerate((one, other)):
                answer = await ask(replica)
                if answer.status_code == 200:
                    admitted += 1
                    continue
                assert answer.status_code == 429
                assert answer.json()["error"]["code"] == "rate_limit_exceeded"
                assert int(answer.headers["x-ratelimit-limit-tokens"]) == 400
                if answer.headers["retry-after"] != "1":  # 1: some are left with the other one
                    spent.add(number)
                await asyncio.sleep(0.05)
    assert admitted == 400 // 5, "each took 2 + 3 tokens"
