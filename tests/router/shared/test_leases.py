"""Limits over several replicas, in simulated time: never exceeded, not refused in vain, whatever comes and goes."""

from decimal import Decimal

import pytest

from m3_leases import Store, World
from m3_leases.world import Replica
from m3_router.config import PlanSettings

MINUTE = 1_795_000_020.0  # a minute of UTC begins here
PLAN = PlanSettings(
    tokens_per_day=200_000,
    tokens_per_minute=20_000,
    requests_per_minute=300,
    concurrent_requests=40,
    budget_usd=Decimal("0.05"),
)


def world_of(plan: PlanSettings = PLAN, seed: int = 0, wall: float = MINUTE) -> World:
    world = World(plan, None, seed, wall)
    world.store = Store(world.milliseconds)
    return world


async def world_with(replicas: int, plan: PlanSettings = PLAN, seed: int = 0) -> World:
    world = world_of(plan, seed)
    for _ in range(replicas):
        await world.add()
    return world


async def steps(world: World, count: int) -> None:
    for _ in range(count):
        await world.step()


def headroom(replica: Replica, name: str) -> int:
    return next(meter.allowance - meter.used for meter in replica.meters() if meter.name == name)


# ---- properties


@pytest.mark.parametrize("seed", range(6))
async def test_no_limit_is_exceeded_while_replicas_come_and_go_and_answers_are_lost(seed: int) -> None:
    world = await world_with(1, seed=seed)
    world.requests_per_second, world.largest_tokens, world.lost_share = 60.0, 400, 0.1
    for _ in range(12):
        await steps(world, 40)
        if len(world.replicas) < 4 and world.random.random() < 0.6:
            await world.add()
        elif len(world.replicas) > 1:
            await world.remove(world.random.choice(world.replicas))
    assert world.admitted > 100
    assert world.refusals  # the limits were reached


@pytest.mark.parametrize("seed", range(4))
async def test_no_limit_is_exceeded_when_the_store_goes_away_and_comes_back_empty(seed: int) -> None:
    world = await world_with(3, seed=seed)
    world.requests_per_second, world.largest_tokens = 60.0, 400
    for _ in range(6):
        await steps(world, 40)
        world.is_store_away = True
        await steps(world, world.random.randint(1, 120))
        world.is_store_away = False
        if world.random.random() < 0.7:
            world.store.clear()
    assert world.admitted > 100
    assert world.refusals


@pytest.mark.parametrize("seed", range(4))
async def test_a_killed_replica_adds_no_more_than_its_last_second(seed: int) -> None:
    world = await world_with(3, seed=seed)
    world.requests_per_second, world.largest_tokens = 20.0, 200
    # a second at a third of 20 requests of 200 tokens each, for each kill, of the smallest limit it can meet
    world.allowed_share = 3 * 1.2 * 20 / 3 * 200 / 20_000
    for _ in range(3):
        await steps(world, 60)
        world.kill(world.random.choice(world.replicas))
        await steps(world, 30)
        await world.add()
    await steps(world, 100)
    assert world.admitted > 100


@pytest.mark.parametrize("seed", range(4))
async def test_a_replica_that_alone_lost_the_store_adds_no_more_than_one_share(seed: int) -> None:
    world = await world_with(3, seed=seed)
    world.requests_per_second, world.largest_tokens = 60.0, 400
    world.allowed_share = 1 / 3
    for _ in range(3):
        alone = world.random.choice(world.replicas)
        alone.mode = "local"
        await steps(world, 150)  # longer than it takes to be given up by the others
        alone.mode = "shared"
        await steps(world, 30)
    assert world.admitted > 100
    assert world.refusals


async def both_spend_all_they_may(world: World) -> int:
    for replica in world.replicas:
        while replica.reserve(100) is None:
            pass
    world.check()
    return sum(world.used().values())


async def test_what_a_replica_gave_back_without_hearing_the_answer_is_not_used_twice() -> None:
    world = await world_with(2, PlanSettings(tokens_per_day=100_000))
    first, deaf = world.replicas
    deaf.is_deaf = True
    assert first.reserve(80_000) is not None  # asks for what the other holds
    await steps(world, 20)
    assert first.reserve(80_000) is not None  # which cannot know that it was asked
    deaf.is_deaf = False
    assert first.reserve(80_000) is not None
    await steps(world, 20)
    assert first.reserve(80_000) is None
    deaf.is_deaf = True
    await steps(world, 20)
    assert await both_spend_all_they_may(world) <= 100_000


async def test_what_is_used_while_an_answer_is_on_its_way_is_not_given_to_another() -> None:
    for calls_before in range(4):  # in the middle of which call the other takes what there is
        world = await world_with(2, PlanSettings(tokens_per_day=100_000))
        first, second = world.replicas
        assert first.reserve(80_000) is not None
        await first.leases.round()

        async def others_go_on(world: World = world, first: Replica = first) -> None:
            for _ in range(3):
                await first.leases.round()
            first.reserve(80_000)
            await both_spend_all_they_may(world)

        second.calls_before_meanwhile = calls_before
        second.meanwhile = others_go_on
        for _ in range(5):
            await second.leases.round()
        assert second.meanwhile is None
        assert await both_spend_all_they_may(world) <= 100_000


async def test_a_newcomer_waits_for_a_replica_that_is_slow_to_adapt() -> None:
    world = await world_with(1, PlanSettings(tokens_per_day=100_000))
    slow = world.replicas[0]
    slow.is_stalled = True
    until = world.wall + 4.0

    def goes_on() -> bool:
        if world.wall >= until and slow.is_stalled:
            assert slow.reserve(100_000) is None  # it may: nobody has told it otherwise
            slow.is_stalled = False
        return True

    world.each_step = goes_on
    joined = await world.add()
    assert world.wall >= until
    assert headroom(joined, "tokensPerDay") == 0


# ---- nothing is refused in vain


async def test_below_its_limits_nobody_is_refused_wherever_the_requests_go() -> None:
    world = await world_with(3, PlanSettings(tokens_per_minute=20_000, requests_per_minute=300), seed=1)
    world.requests_per_second, world.largest_tokens = 2.0, 150  # 9,000 tokens and 120 requests a minute, about
    await steps(world, 1500)
    assert world.refusals == []
    assert world.admitted > 200


async def test_one_busy_replica_gets_the_whole_limit_from_idle_ones() -> None:
    world = await world_with(4, PlanSettings(tokens_per_day=100_000))
    busy = world.replicas[0]
    for _ in range(960):
        assert busy.reserve(100) is None
        await world.step()
    await steps(world, 10)
    assert headroom(busy, "tokensPerDay") >= 250  # asks again at a quarter of its share of the 4,000 left
    assert sum(headroom(replica, "tokensPerDay") for replica in world.replicas) <= 4_000


async def test_a_request_above_its_replicas_share_is_admitted_at_its_retry() -> None:
    world = await world_with(2, PlanSettings(tokens_per_day=100_000))
    first, second = world.replicas
    refusal = first.reserve(80_000)
    assert refusal is not None
    assert refusal.retry_after_seconds == 1
    await steps(world, 8)  # less than a second
    assert first.reserve(80_000) is None
    await steps(world, 60)
    refusal = second.reserve(15_000)
    assert refusal is not None
    await steps(world, 8)
    assert second.reserve(15_000) is None


@pytest.mark.parametrize("steps_between", [1, 2, 3, 5])
async def test_two_that_need_what_only_one_can_have_do_not_take_it_from_each_other(steps_between: int) -> None:
    world = await world_with(2, PlanSettings(tokens_per_day=5))
    for _ in range(40):
        for replica in world.replicas:
            if replica.reserve(5) is None:
                return
            await steps(world, steps_between)
    raise AssertionError("five tokens were left, and nobody got them")


async def test_what_a_request_needed_and_did_not_come_back_for_is_free_again() -> None:
    world = await world_with(2, PlanSettings(tokens_per_day=100_000))
    first, second = world.replicas
    assert first.reserve(90_000) is not None
    await steps(world, 8)
    assert headroom(second, "tokensPerDay") <= 10_000
    await steps(world, 60)
    assert second.reserve(40_000) is not None  # asks for its part of what was kept
    await steps(world, 8)
    assert second.reserve(40_000) is None


async def test_idle_tenants_cost_the_store_nothing_after_the_join() -> None:
    world = await world_with(3)
    world.store.clear()
    await steps(world, 100)
    assert world.store.hashes == {}


# ---- coming, going, and the edges of time


async def test_a_replica_that_joins_has_its_part_of_the_open_windows_before_it_is_ready() -> None:
    world = await world_with(1, PlanSettings(tokens_per_day=100_000))
    assert world.replicas[0].reserve(60_000) is None
    joined = await world.add()
    assert headroom(joined, "tokensPerDay") >= 10_000
    assert sum(headroom(replica, "tokensPerDay") for replica in world.replicas) <= 40_000


async def test_the_only_replica_has_all_that_earlier_ones_have_left() -> None:
    world = await world_with(1, PlanSettings(tokens_per_day=100_000, concurrent_requests=10))
    first = world.replicas[0]
    assert first.reserve(30_000) is None
    first.settle(0, 25_000)
    await world.remove(first)
    second = await world.add()
    assert headroom(second, "tokensPerDay") == 75_000
    assert headroom(second, "concurrentRequests") == 10


async def test_what_a_killed_replica_held_is_free_once_it_is_given_up() -> None:
    world = await world_with(2, PlanSettings(tokens_per_day=100_000, concurrent_requests=10))
    killed, other = world.replicas
    assert killed.reserve(30_000) is None
    await steps(world, 15)
    world.kill(killed)
    await steps(world, 70)
    for _ in range(20):
        other.reserve(69_000)
        other.reserve(1)
        await world.step()
    assert world.used()["tokensPerDay", int(world.wall // 86_400)] >= 99_000
    assert headroom(other, "concurrentRequests") + len(other.running) == 10


async def test_windows_begin_with_equal_shares_without_the_store() -> None:
    world = await world_with(2, PlanSettings(tokens_per_minute=1000))
    world.is_store_away = True
    world.wall += 60
    assert [replica.reserve(500) for replica in world.replicas] == [None, None]
    assert [replica.reserve(1) is not None for replica in world.replicas] == [True, True]
    world.check()


async def test_the_first_request_of_a_minute_needs_no_lease() -> None:
    world = await world_with(2, PlanSettings(tokens_per_minute=1000))
    for _ in range(5):
        world.wall += 60
        assert [replica.reserve(500) for replica in world.replicas] == [None, None]


async def test_replicas_whose_clocks_differ_share_each_window() -> None:
    world = await world_with(2, PlanSettings(tokens_per_minute=1000))
    ahead, behind = world.replicas
    minute = int(world.wall // 60)
    quota = ahead.quotas.get("acme")
    assert quota is not None
    world.wall = 60.0 * (minute + 1) - 1
    assert behind.reserve(500) is None
    quota.reserve(500, 0, world.wall + 2, 0.0)  # its clock says that the next minute has begun
    world.wall += 2
    assert behind.reserve(500) is None
    assert behind.reserve(1) is not None
    assert ahead.reserve(1) is not None
    assert world.used()["tokensPerMinute", minute + 1] == 1000


async def test_what_departed_replicas_used_survives_a_store_that_lost_its_data() -> None:
    world = await world_with(2, PlanSettings(tokens_per_day=100_000))
    leaver, stayer = world.replicas
    assert leaver.reserve(40_000) is None
    leaver.settle(0, 40_000)
    await steps(world, 15)
    await world.remove(leaver)
    assert stayer.reserve(1_000) is None
    await steps(world, 15)
    world.store.clear()
    assert stayer.reserve(1_000) is None
    await steps(world, 15)
    joined = await world.add()
    assert sum(headroom(replica, "tokensPerDay") for replica in (stayer, joined)) <= 58_000


async def test_without_the_store_a_replica_begins_alone_and_shares_once_it_is_back() -> None:
    world = world_of(PlanSettings(tokens_per_day=100_000))
    world.is_store_away = True
    first = Replica(world, "a")
    world.replicas.append(first)
    assert not await first.leases.join(within_seconds=0.01)
    first.is_ready = True
    assert first.reserve(30_000) is None
    world.is_store_away = False
    second = await world.add()
    await steps(world, 30)
    assert sum(headroom(replica, "tokensPerDay") for replica in (first, second)) <= 70_000
    assert headroom(second, "tokensPerDay") > 10_000
