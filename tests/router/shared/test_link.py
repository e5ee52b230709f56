"""The link says whether Redis takes part, keeps every call within its budget, and raises nothing that Redis did."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from m3_redis import CALL_SECONDS, WITHIN_SECONDS, RedisServer, eventually, running_link
from m3_router.config import RedisSettings
from m3_router.shared.link import Failure, Link, Mode


@pytest.fixture
async def link(redis_server: RedisServer) -> AsyncIterator[Link]:
    async with running_link(RedisSettings(url=redis_server.url, call_seconds=CALL_SECONDS)) as link:
        yield link


async def ping_until_local(link: Link) -> Failure:
    async with asyncio.timeout(WITHIN_SECONDS):
        while True:
            reply = await link.call("ping", lambda redis: redis.ping())
            if link.mode == "local":
                assert isinstance(reply, Failure)
                return reply


async def test_a_call_gives_the_reply(link: Link) -> None:
    assert await link.call("set", lambda redis: redis.set("a", b"1")) is True
    assert await link.call("get", lambda redis: redis.get("a")) == b"1"
    assert link.counts["get"].answered == 1
    assert link.key("a", "b") == "{m3}:a:b"


async def test_before_the_first_probe_calls_fail_at_once_and_say_so() -> None:
    link = Link(RedisSettings(url="unix:///nowhere/redis.sock"), lambda mode, reason: None)
    assert await link.call("ping", lambda redis: redis.ping()) == Failure("away", "not connected yet")
    assert link.counts["ping"].skipped == 1


async def test_where_there_is_no_redis_the_reason_names_the_place() -> None:
    async with running_link(RedisSettings(url="unix:///nowhere/redis.sock"), is_shared=False) as link:
        await eventually(lambda: "/nowhere/redis.sock" in link.reason)
        assert link.mode == "local"


async def test_each_change_is_told_with_its_reason(redis_server: RedisServer) -> None:
    told: list[tuple[Mode, str]] = []
    settings = RedisSettings(url=redis_server.url, call_seconds=CALL_SECONDS)
    link = Link(settings, lambda mode, reason: told.append((mode, reason)))
    running = asyncio.create_task(link.run())
    await eventually(lambda: len(told) == 1)
    redis_server.kill()
    await ping_until_local(link)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    modes, reasons = zip(*told, strict=True)
    assert (modes, reasons[0], reasons[-1]) == (("shared", "local", "local"), "", "stopped")
    assert "redis.sock" in reasons[1] or "closed" in reasons[1]


async def test_a_killed_redis_opens_the_breaker_and_a_restarted_one_closes_it(
    redis_server: RedisServer, link: Link
) -> None:
    redis_server.kill()
    failure = await ping_until_local(link)
    assert failure.kind == "lost"
    assert failure.may_have_happened
    assert await link.call("ping", lambda redis: redis.ping()) == Failure("away", link.reason)
    redis_server.start()
    async with asyncio.timeout(WITHIN_SECONDS):
        await link.until_shared()
    assert await link.call("ping", lambda redis: redis.ping()) is True
    assert link.changes == 3


async def test_a_frozen_redis_costs_no_call_more_than_its_budget(redis_server: RedisServer, link: Link) -> None:
    redis_server.freeze()
    begun = time.monotonic()
    failure = await link.call("ping", lambda redis: redis.ping())
    took = time.monotonic() - begun
    assert failure == Failure("timeout", "no answer within 500 ms")
    assert CALL_SECONDS <= took < 20
    assert (await ping_until_local(link)).kind == "timeout"
    begun = time.monotonic()
    for _ in range(100):
        assert isinstance(await link.call("ping", lambda redis: redis.ping()), Failure)
    assert time.monotonic() - begun < 10 * CALL_SECONDS  # local: nothing is waited for
    redis_server.thaw()
    async with asyncio.timeout(WITHIN_SECONDS):
        await link.until_shared()
    assert await link.call("echo", lambda redis: redis.echo("its own answer")) == b"its own answer"


async def test_a_full_redis_is_local_at_its_first_refusal_and_shared_when_it_has_room(
    redis_server: RedisServer, link: Link
) -> None:
    redis_server.fill()
    failure = await link.call("set", lambda redis: redis.set("a", 1))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.may_have_happened) == ("unfit", False)
    assert (link.mode, "maxmemory" in link.reason) == ("local", True)
    await asyncio.sleep(0.3)  # several probes
    assert link.mode == "local"
    redis_server.make_room()
    async with asyncio.timeout(WITHIN_SECONDS):
        await link.until_shared()


async def test_a_wrong_command_is_refused_and_changes_no_mode(link: Link) -> None:
    await link.call("set", lambda redis: redis.set("a", "text"))
    for _ in range(5):
        failure = await link.call("incr", lambda redis: redis.incr("a"))
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.may_have_happened) == ("refused", False)
    assert link.mode == "shared"


async def test_an_answer_that_came_while_the_loop_was_busy_counts(redis_server: RedisServer, link: Link) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(3):
        loop.call_later(0.001, time.sleep, 1.5 * CALL_SECONDS)
        assert await link.call("block", lambda redis: redis.blpop(["nothing"], timeout=0.01)) is None
    assert link.mode == "shared"


async def test_a_waiting_call_is_bounded_and_holds_up_no_other(redis_server: RedisServer, link: Link) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(link.waiting_call("wait", lambda redis: redis.blpop(["queue"], timeout=5), 5))
            for _ in range(3)
        ]
        for _ in range(20):
            assert await link.call("ping", lambda redis: redis.ping()) is True
        for _ in waiting:
            await link.call("push", lambda redis: redis.rpush("queue", b"x"))
    assert [task.result() for task in waiting] == [(b"queue", b"x")] * 3
    redis_server.freeze()
    begun = time.monotonic()
    failure = await link.waiting_call("wait", lambda redis: redis.blpop(["queue"], timeout=0.1), 0.1)
    assert isinstance(failure, Failure)
    assert 1 <= time.monotonic() - begun < 20


async def test_the_password_is_read_from_its_file_at_each_connection(redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_server.client() as client:
        client.config_set("requirepass", "right")
    file = tmp_path / "password"
    file.write_text("wrong\n")
    settings = RedisSettings(url=redis_server.url, password_file=file, call_seconds=CALL_SECONDS)
    async with running_link(settings, is_shared=False) as link:
        await eventually(lambda: "invalid username-password pair" in link.reason)
        file.write_text("right\n")
        async with asyncio.timeout(WITHIN_SECONDS):
            await link.until_shared()


async def test_a_caller_that_is_cancelled_leaves_no_answer_behind(link: Link) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        calling = asyncio.create_task(link.waiting_call("wait", lambda redis: redis.blpop(["queue"], timeout=5), 5))
        await asyncio.sleep(0.02)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await link.waiting_call("echo", lambda redis: redis.echo("mine"), 1) == b"mine"
    assert link.mode == "shared"
