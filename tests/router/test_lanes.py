"""Lanes: bounds, order, ageing, claims, preemption, expiry, and the life of every ticket."""

import pytest

from m3_router.config import LaneSettings, PoolSettings, ServiceTier
from m3_router.lanes.lane import MAX_RETRY_AFTER_SECONDS
from m3_router.lanes.lanes import LANES, NO_CHANGES, LaneBounds, Lanes, Order, QueueFullError, Ticket


def lanes_of(
    *,
    tokens: int = 100,
    share: int = 75,
    queue: int = 10,
    wait: float = 30.0,
    preemption: bool = False,
    workers: int = 1,
) -> Lanes:
    bounds = LaneBounds(
        tokens_in_flight=tokens,
        standard_share_tokens=share,
        queue_requests=queue,
        max_wait_seconds=wait,
        batch_max_wait_seconds=100 * wait,
        preemption=preemption,
        long_prefills_per_worker=1,
    )
    lanes = Lanes(bounds, 0.0)
    lanes.set_workers(workers, 0.0)
    return lanes


def offer(lanes: Lanes, tier: ServiceTier, tokens: int, now: float, *, long: bool = False, tenant: str = "a") -> Ticket:
    order = Order(
        tier, "long" if long else "standard", tenant=tenant, weight=1.0, tokens=tokens, weighted_tokens=tokens
    )
    ticket = lanes.offer(order, now)
    lanes.check()
    return ticket


def admitted_by_release(lanes: Lanes, ticket: Ticket, now: float) -> list[Ticket]:
    lanes.release(ticket, now)
    lanes.check()
    return lanes.changes().admitted


def admitted_by_tick(lanes: Lanes, now: float) -> list[Ticket]:
    lanes.tick(now)
    lanes.check()
    return lanes.changes().admitted


def test_standard_cannot_take_the_reserved_share_and_priority_can_borrow_all() -> None:
    lanes = lanes_of()
    assert offer(lanes, "standard", 75, 0).state == "admitted"
    assert offer(lanes, "standard", 1, 0).state == "waiting"
    assert offer(lanes, "priority", 25, 0).state == "admitted"
    other = lanes_of()
    assert offer(other, "priority", 75, 0).state == "admitted"
    assert offer(other, "priority", 25, 0).state == "admitted"
    assert offer(other, "standard", 1, 0).state == "waiting"


def test_batch_and_standard_share_one_bound() -> None:
    lanes = lanes_of()
    assert offer(lanes, "batch", 70, 0).state == "admitted"
    assert offer(lanes, "batch", 10, 0).state == "waiting"
    assert offer(lanes, "standard", 10, 0).state == "waiting"
    assert offer(lanes, "standard", 5, 0).state == "waiting"  # behind the one before it
    assert offer(lanes, "priority", 30, 0).state == "admitted"


def test_priority_goes_before_standard_and_each_lane_in_its_order() -> None:
    lanes = lanes_of()
    running = offer(lanes, "priority", 75, 0)
    blocker = offer(lanes, "priority", 25, 0)
    standard = [offer(lanes, "standard", 10, 1), offer(lanes, "standard", 10, 1)]
    priority = [offer(lanes, "priority", 20, 2), offer(lanes, "priority", 60, 2)]
    assert admitted_by_release(lanes, blocker, 3) == [priority[0]]
    assert admitted_by_release(lanes, running, 3) == [priority[1], *standard]


def test_a_waiting_priority_request_keeps_the_room_it_needs_from_standard() -> None:
    lanes = lanes_of()
    first, second = offer(lanes, "priority", 50, 0), offer(lanes, "priority", 50, 0)
    big = offer(lanes, "priority", 70, 1)
    small = offer(lanes, "standard", 10, 1)
    assert admitted_by_release(lanes, first, 2) == []
    assert small.state == "waiting"
    assert admitted_by_release(lanes, second, 3) == [big, small]


def test_batch_goes_only_when_nobody_else_waits() -> None:
    lanes = lanes_of()
    running = [offer(lanes, "standard", 40, 0), offer(lanes, "standard", 30, 0)]
    batch = offer(lanes, "batch", 5, 0)
    assert batch.state == "admitted"
    late_batch = offer(lanes, "batch", 5, 1)
    standard = offer(lanes, "standard", 60, 2)
    assert admitted_by_release(lanes, running[1], 3) == []  # 30 are free, but standard waits for them
    assert late_batch.state == "waiting"
    assert admitted_by_release(lanes, running[0], 4) == [standard, late_batch]


def test_batch_waits_for_long_requests_too() -> None:
    lanes = lanes_of(workers=1)
    offer(lanes, "standard", 10, 0, long=True)
    assert offer(lanes, "standard", 10, 0, long=True).state == "waiting"
    assert offer(lanes, "batch", 5, 1).state == "waiting"


def test_waiting_batch_does_not_keep_standard_waiting() -> None:
    lanes = lanes_of()
    running = offer(lanes, "standard", 50, 0)
    large_batch = offer(lanes, "batch", 60, 0)
    assert offer(lanes, "standard", 25, 500).state == "admitted"
    assert large_batch.state == "waiting"
    assert admitted_by_release(lanes, running, 501) == []


def test_an_aged_standard_request_goes_before_newer_priority_ones() -> None:
    lanes = lanes_of(wait=30)
    running = offer(lanes, "priority", 75, 0)
    offer(lanes, "priority", 25, 0)
    standard = offer(lanes, "standard", 60, 1)
    priority = offer(lanes, "priority", 40, 16)
    assert admitted_by_release(lanes, running, 16.5) == [standard]  # it has waited for 15.5 s, more than half of 30
    assert priority.state == "waiting"


def test_while_an_aged_request_waits_priority_is_kept_to_its_reserved_part() -> None:
    lanes = lanes_of(wait=30)
    running = [offer(lanes, "priority", 40, 0), offer(lanes, "priority", 50, 0)]
    aged = offer(lanes, "standard", 70, 0)
    priority = offer(lanes, "priority", 20, 20)
    assert admitted_by_release(lanes, running[0], 20) == []  # 50 in flight: 20 more would exceed the 25 reserved
    assert admitted_by_release(lanes, running[1], 21) == [aged, priority]


class TestLongRequests:
    """A cap on their prefills, and claims."""

    def test_long_prefills_are_bounded_by_the_ready_workers(self) -> None:
        lanes = lanes_of(workers=2)
        first, second = offer(lanes, "standard", 10, 0, long=True), offer(lanes, "priority", 10, 0, long=True)
        third = offer(lanes, "standard", 10, 0, long=True)
        assert (first.state, second.state, third.state) == ("admitted", "admitted", "waiting")
        assert offer(lanes, "standard", 10, 1).state == "admitted"  # a short one passes
        lanes.first_byte(second, 2)
        assert lanes.changes().admitted == [third]

    def test_a_long_request_waits_until_a_worker_is_ready(self) -> None:
        lanes = lanes_of(workers=0)
        ticket = offer(lanes, "standard", 10, 0, long=True)
        assert ticket.state == "waiting"
        lanes.set_workers(1, 1)
        assert lanes.changes().admitted == [ticket]

    def test_fewer_workers_take_no_place_from_those_that_have_one(self) -> None:
        lanes = lanes_of(workers=2)
        running = [offer(lanes, "standard", 10, 0, long=True), offer(lanes, "standard", 10, 0, long=True)]
        lanes.set_workers(1, 1)
        waiting = offer(lanes, "standard", 10, 1, long=True)
        assert admitted_by_release(lanes, running[0], 2) == []
        lanes.first_byte(running[1], 3)
        assert lanes.changes().admitted == [waiting]

    def test_one_that_does_not_fit_lets_short_ones_pass(self) -> None:
        lanes = lanes_of()
        offer(lanes, "standard", 40, 0)
        long = offer(lanes, "standard", 60, 1, long=True)
        assert offer(lanes, "standard", 35, 1).state == "admitted"
        assert long.state == "waiting"

    def test_an_aged_one_saves_half_of_what_is_given_back_until_it_fits(self) -> None:
        lanes = lanes_of(wait=30)
        running = [offer(lanes, "standard", 25, 0) for _ in range(3)]
        long = offer(lanes, "standard", 60, 0, long=True)
        lanes.tick(15)
        short = [offer(lanes, "standard", 12, 15) for _ in range(6)]
        assert admitted_by_release(lanes, running[0], 16) == [short[0]]  # 12 of 25 are saved, 13 are for others
        assert admitted_by_release(lanes, running[1], 17) == [short[1]]
        assert admitted_by_release(lanes, running[2], 18) == [short[2]]
        assert long.state == "waiting"
        assert admitted_by_release(lanes, short[0], 19) == []
        assert admitted_by_release(lanes, short[1], 20) == [long]  # with 12 of the 75 held, it has its 60

    def test_a_priority_one_saves_at_once(self) -> None:
        lanes = lanes_of(workers=2)
        running = [offer(lanes, "standard", 60, 0), offer(lanes, "priority", 40, 0)]
        long = offer(lanes, "priority", 70, 1, long=True)
        short = [offer(lanes, "standard", 30, 2), offer(lanes, "standard", 30, 2)]
        assert admitted_by_release(lanes, running[0], 3) == [short[0]]
        assert admitted_by_release(lanes, running[1], 4) == [long]
        assert short[1].state == "waiting"

    def test_the_saved_place_is_not_given_to_another_long_request(self) -> None:
        lanes = lanes_of()
        offer(lanes, "standard", 40, 0)
        offer(lanes, "priority", 20, 0)
        large = offer(lanes, "priority", 70, 1, long=True)
        small = offer(lanes, "standard", 10, 2, long=True)
        assert (large.state, small.state) == ("waiting", "waiting")


class TestPreemption:
    """Of tickets without first byte, in favour of higher service tiers."""

    def test_priority_takes_the_room_of_the_youngest_standard_request(self) -> None:
        lanes = lanes_of(preemption=True)
        running = [offer(lanes, "standard", 30, second) for second in range(2)]
        offer(lanes, "priority", 40, 2)
        priority = offer(lanes, "priority", 20, 3)
        assert priority.state == "admitted"
        changes = lanes.changes()
        assert (changes.preempted, changes.admitted) == ([running[1]], [])
        assert (running[1].state, running[1].preemptions) == ("waiting", 1)
        assert lanes.changes() is NO_CHANGES

    def test_never_after_the_first_byte(self) -> None:
        lanes = lanes_of(preemption=True)
        running = offer(lanes, "standard", 75, 0)
        lanes.first_byte(running, 1)
        assert offer(lanes, "priority", 50, 2).state == "waiting"
        assert not lanes.has_changes

    def test_not_where_it_is_switched_off(self) -> None:
        lanes = lanes_of(preemption=False)
        offer(lanes, "standard", 75, 0)
        assert offer(lanes, "priority", 50, 2).state == "waiting"

    def test_nobody_is_put_back_if_it_would_not_be_enough(self) -> None:
        lanes = lanes_of(preemption=True)
        running = [offer(lanes, "standard", 40, 0), offer(lanes, "standard", 30, 0)]
        lanes.first_byte(running[0], 1)
        assert offer(lanes, "priority", 61, 2).state == "waiting"
        assert running[1].state == "admitted"

    def test_batch_goes_first_and_who_turns_out_to_be_needless_is_spared(self) -> None:
        lanes = lanes_of(preemption=True)
        batch = offer(lanes, "batch", 20, 0)
        large, small = offer(lanes, "standard", 40, 1), offer(lanes, "standard", 5, 2)
        offer(lanes, "priority", 35, 3)
        assert offer(lanes, "priority", 15, 4).state == "admitted"
        assert lanes.changes().preempted == [batch]
        assert offer(lanes, "priority", 30, 5).state == "admitted"  # 5 are free; 5 more are not enough, 40 are
        assert lanes.changes().preempted == [large]
        assert small.state == "admitted"

    def test_it_waits_again_at_its_old_place(self) -> None:
        lanes = lanes_of(preemption=True)
        running = [offer(lanes, "standard", 37, second) for second in range(2)]
        behind = offer(lanes, "standard", 37, 2)
        priority = [offer(lanes, "priority", 25, 3), offer(lanes, "priority", 60, 4)]
        assert set(lanes.changes().preempted) == set(running)
        assert lanes.tickets() == [*running, behind]
        assert admitted_by_release(lanes, priority[1], 5) == running

    def test_a_ticket_is_put_back_twice_at_most(self) -> None:
        lanes = lanes_of(preemption=True)
        standard = offer(lanes, "standard", 75, 0)
        for second in range(1, 3):
            priority = offer(lanes, "priority", 75, second)
            assert (priority.state, standard.preemptions) == ("admitted", second)
            assert admitted_by_release(lanes, priority, second) == [standard]
        assert offer(lanes, "priority", 75, 3).state == "waiting"
        assert standard.state == "admitted"

    def test_an_aged_ticket_keeps_its_place(self) -> None:
        lanes = lanes_of(preemption=True, wait=30)
        running = offer(lanes, "priority", 75, 0)
        standard = offer(lanes, "standard", 75, 0)
        assert admitted_by_release(lanes, running, 15) == [standard]
        assert offer(lanes, "priority", 75, 16).state == "waiting"

    def test_standard_takes_room_from_batch(self) -> None:
        lanes = lanes_of(preemption=True)
        batch = offer(lanes, "batch", 75, 0)
        assert offer(lanes, "standard", 10, 1).state == "admitted"
        assert lanes.changes().preempted == [batch]

    def test_a_long_priority_request_takes_the_prefill_place_of_a_long_standard_one(self) -> None:
        lanes = lanes_of(preemption=True)
        long, short = offer(lanes, "standard", 20, 0, long=True), offer(lanes, "standard", 20, 0)
        assert offer(lanes, "priority", 20, 1, long=True).state == "admitted"
        assert lanes.changes().preempted == [long]
        assert short.state == "admitted"


def test_a_full_queue_is_refused_per_lane_and_a_queue_of_none_still_admits() -> None:
    lanes = lanes_of(queue=1)
    offer(lanes, "standard", 75, 0)
    offer(lanes, "standard", 1, 0)
    with pytest.raises(QueueFullError, match="the standard lane is full: 1 requests wait"):
        offer(lanes, "standard", 1, 0)
    assert offer(lanes, "standard", 75, 0, long=True).state == "waiting"  # a lane of its own
    assert offer(lanes, "priority", 25, 0).state == "admitted"
    none = lanes_of(queue=0)
    assert offer(none, "standard", 75, 0).state == "admitted"
    with pytest.raises(QueueFullError):
        offer(none, "standard", 1, 0)
    assert [lane.refused for lane in none.snapshot(0)] == [0, 0, 1, 0, 0, 0]


def test_a_tenant_that_floods_the_queue_fills_it_for_itself_alone() -> None:
    lanes = lanes_of(queue=4)
    offer(lanes, "standard", 75, 0)
    flood = [offer(lanes, "standard", 10, 1, tenant="flood") for _ in range(4)]
    with pytest.raises(QueueFullError):
        offer(lanes, "standard", 10, 2, tenant="flood")
    for given_up in (3, 2):
        assert offer(lanes, "standard", 10, 3, tenant="quiet").state == "waiting"
        assert lanes.changes().expired == [flood[given_up]]
    with pytest.raises(QueueFullError):  # two of each: neither has a right to more
        offer(lanes, "standard", 10, 4, tenant="quiet")
    assert [ticket.state for ticket in flood] == ["waiting", "waiting", "expired", "expired"]


def test_a_wait_ends_exactly_at_its_bound() -> None:
    lanes = lanes_of(wait=30)
    offer(lanes, "standard", 75, 0)
    waiting = offer(lanes, "standard", 75, 1)
    batch = offer(lanes, "batch", 1, 1)
    lanes.tick(30.9)
    assert not lanes.has_changes
    lanes.tick(31.0)
    assert lanes.changes().expired == [waiting]
    assert waiting.state == "expired"
    lanes.tick(3000.9)
    assert not lanes.has_changes
    lanes.tick(3001)
    assert lanes.changes().expired == [batch]


def test_the_expiry_of_a_large_head_lets_those_behind_it_in() -> None:
    lanes = lanes_of(wait=10)
    offer(lanes, "standard", 50, 0)
    large = offer(lanes, "standard", 75, 0)
    small = offer(lanes, "standard", 20, 1)
    lanes.tick(10)
    changes = lanes.changes()
    assert (changes.expired, changes.admitted) == ([large], [small])


def test_a_client_that_leaves_lets_those_behind_it_in() -> None:
    lanes = lanes_of()
    offer(lanes, "standard", 50, 0)
    large, small = offer(lanes, "standard", 75, 0), offer(lanes, "standard", 20, 1)
    lanes.cancel(large, 2)
    assert lanes.changes().admitted == [small]
    assert large.state == "cancelled"


def test_retry_after_follows_the_rate_at_which_the_lane_drains_while_somebody_waits() -> None:
    lanes = lanes_of(tokens=1000, share=1000, queue=10, wait=12)
    order = Order("standard", "standard", tenant="a", weight=1.0, tokens=100, weighted_tokens=100)
    assert lanes.retry_after_seconds(order, 0) == 12  # nothing measured yet: the longest wait
    running = [offer(lanes, "standard", 100, 0) for _ in range(10)]
    for _ in range(9):
        offer(lanes, "standard", 100, 0)
    for second in range(1, 61):  # 100 tokens a second
        running += admitted_by_release(lanes, running.pop(0), second)
        offer(lanes, "standard", 100, second)
    assert lanes.snapshot(60)[2].drain_tokens_per_second == pytest.approx(100, rel=0.05)
    assert lanes.retry_after_seconds(order, 60) == pytest.approx(10, abs=1)
    assert lanes.retry_after_seconds(order, 10_000) == MAX_RETRY_AFTER_SECONDS  # nothing has drained since
    idle = Order("priority", "standard", tenant="a", weight=1.0, tokens=100, weighted_tokens=100)
    assert lanes.retry_after_seconds(idle, 60) == 12  # of another lane, this says nothing


def test_an_hour_without_waiting_does_not_change_the_measured_rate() -> None:
    lanes = lanes_of(tokens=100, share=100)
    running = offer(lanes, "standard", 100, 0)
    for second in range(1, 31):
        waiting = offer(lanes, "standard", 100, second - 1)
        assert admitted_by_release(lanes, running, second) == [waiting]
        running = waiting
    rate = lanes.snapshot(30)[2].drain_tokens_per_second
    assert rate == pytest.approx(100, rel=0.05)
    assert lanes.snapshot(3630)[2].drain_tokens_per_second == rate


def test_a_ticket_cannot_be_ended_twice() -> None:
    lanes = lanes_of()
    ticket = offer(lanes, "standard", 1, 0)
    lanes.release(ticket, 0)
    with pytest.raises(ValueError, match="only an admitted ticket can be released"):
        lanes.release(ticket, 0)
    with pytest.raises(ValueError, match="only a waiting ticket can be cancelled"):
        lanes.cancel(ticket, 0)
    with pytest.raises(ValueError, match="only an admitted ticket can have its first byte"):
        lanes.first_byte(ticket, 0)


def test_a_request_that_could_never_run_is_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match="76 tokens are not between 0 and the standard share 75"):
        offer(lanes_of(), "priority", 76, 0)


def test_a_snapshot_says_what_each_lane_holds_and_who_waits() -> None:
    lanes = lanes_of()
    offer(lanes, "standard", 70, 1)
    offer(lanes, "standard", 20, 2)
    offer(lanes, "standard", 10, 4)
    lane = lanes.snapshot(5)[2]
    assert (lane.service_tier, lane.context_tier) == ("standard", "standard")
    assert (lane.in_flight, lane.in_flight_tokens) == (1, 70)
    assert (lane.waiting, lane.waiting_tokens, lane.oldest_wait_seconds) == (2, 30, 3)
    assert lanes.waiting("standard", "standard") == 2
    assert [(lane.service_tier, lane.context_tier) for lane in lanes.snapshot(5)] == list(LANES)


def test_the_bounds_are_those_of_the_configuration() -> None:
    pool = PoolSettings(name="m3", models=("m",), tokens_in_flight=2_000_000, queue_requests=7, workers=("http://w:1",))
    bounds = LaneBounds.from_settings(pool, LaneSettings(priority_reserved_share=0.5, long_prefills_per_worker=3))
    assert (bounds.tokens_in_flight, bounds.standard_share_tokens) == (2_000_000, 1_000_000)
    assert (bounds.queue_requests, bounds.long_prefills_per_worker, bounds.preemption) == (7, 3, True)
    assert (bounds.max_wait_seconds, bounds.batch_max_wait_seconds) == (30, 3600)
