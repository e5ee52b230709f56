"""Lanes of a pool without a ready worker: who waits for one, for how long, and who goes first when it comes."""

import pytest

from m3_router.config import ServiceTier
from m3_router.lanes.lanes import LaneBounds, Lanes, Order, QueueFullError, Ticket


def lanes_of(*, hold: float = 300.0, queue: int = 10, wait: float = 30.0) -> Lanes:
    bounds = LaneBounds(
        tokens_in_flight=100,
        standard_share_tokens=75,
        queue_requests=queue,
        max_wait_seconds=wait,
        batch_max_wait_seconds=100 * wait,
        preemption=True,
        long_prefills_per_worker=1,
        hold_seconds=hold,
    )
    return Lanes(bounds, 0.0)


def offer(lanes: Lanes, tier: ServiceTier, tokens: int, now: float, *, tenant: str = "a") -> Ticket:
    ticket = lanes.offer(Order(tier, "standard", tenant=tenant, weight=1.0, tokens=tokens, weighted_tokens=tokens), now)
    lanes.check()
    return ticket


def states(*tickets: Ticket) -> list[str]:
    return [ticket.state for ticket in tickets]


def test_before_the_first_worker_all_wait_and_then_go_by_tier_as_far_as_there_is_room() -> None:
    lanes = lanes_of()
    batch, standard, more = (
        offer(lanes, "batch", 30, 0),
        offer(lanes, "standard", 30, 1),
        offer(lanes, "standard", 60, 2),
    )
    priority = offer(lanes, "priority", 30, 3)
    lanes.tick(4)
    assert states(batch, standard, more, priority) == ["waiting"] * 4
    assert lanes.waiting_for_worker == 4
    lanes.set_workers(1, 5)
    lanes.check()
    assert lanes.changes().admitted == [priority, standard]
    assert lanes.waiting_for_worker == 0


def test_without_a_hold_nobody_waits_for_a_worker() -> None:
    lanes = lanes_of(hold=0.0)
    assert offer(lanes, "standard", 30, 0).state == "admitted"
    lanes.set_workers(0, 1)
    assert offer(lanes, "standard", 30, 1).state == "admitted"
    assert lanes.waiting_for_worker == 0


def test_a_wait_for_a_worker_has_its_own_length_whatever_the_lane_allows() -> None:
    lanes = lanes_of(hold=300.0, wait=30.0)
    first, second = offer(lanes, "standard", 30, 0), offer(lanes, "batch", 30, 10)
    lanes.tick(299.9)
    assert states(first, second) == ["waiting", "waiting"]
    lanes.tick(300)
    assert lanes.changes().expired == [first]
    lanes.tick(310)
    assert lanes.changes().expired == [second]
    lanes.check()


def test_a_wait_for_room_begins_when_the_wait_for_a_worker_is_over() -> None:
    lanes = lanes_of(hold=300.0, wait=30.0)
    first, second = offer(lanes, "standard", 75, 0), offer(lanes, "standard", 75, 0)
    lanes.set_workers(1, 200)
    assert lanes.changes().admitted == [first]
    lanes.tick(229.9)
    assert second.state == "waiting"
    lanes.tick(230)
    assert lanes.changes().expired == [second]


def test_a_wait_for_a_worker_begins_when_the_last_one_goes() -> None:
    lanes = lanes_of(hold=10.0, wait=30.0)
    lanes.set_workers(1, 0)
    running, waiting = offer(lanes, "standard", 75, 0), offer(lanes, "standard", 75, 0)
    lanes.set_workers(0, 25)
    lanes.release(running, 26)  # there is room, and nobody to use it
    lanes.tick(34.9)
    assert waiting.state == "waiting"
    lanes.tick(35)
    assert waiting.state == "expired"


def test_a_lane_of_those_that_wait_for_a_worker_is_bounded_as_any_other() -> None:
    lanes = lanes_of(queue=2)
    held = [offer(lanes, "standard", 1, 0), offer(lanes, "standard", 1, 0)]
    with pytest.raises(QueueFullError):
        offer(lanes, "standard", 1, 0)
    other = offer(lanes, "standard", 1, 0, tenant="b")  # its place is one that `a` has too many
    assert lanes.changes().expired == [held[1]]
    assert states(held[0], other) == ["waiting", "waiting"]


def test_a_client_that_leaves_gives_up_its_place_at_once() -> None:
    lanes = lanes_of(queue=1)
    first = offer(lanes, "standard", 1, 0)
    lanes.cancel(first, 1)
    lanes.check()
    assert lanes.waiting_for_worker == 0
    assert offer(lanes, "standard", 1, 1).state == "waiting"


def test_who_was_let_in_and_found_no_worker_waits_again_before_those_that_came_later() -> None:
    lanes = lanes_of()
    lanes.set_workers(1, 0)
    first = offer(lanes, "standard", 75, 0)
    lanes.set_workers(0, 1)
    second = offer(lanes, "standard", 75, 2)
    lanes.put_back(first, 3)
    lanes.check()
    assert states(first, second) == ["waiting", "waiting"]
    assert lanes.changes().preempted == []  # its holder has asked for it
    lanes.set_workers(1, 4)
    assert lanes.changes().admitted == [first]


def test_only_what_has_no_first_byte_and_finds_no_worker_can_be_put_back() -> None:
    lanes = lanes_of()
    lanes.set_workers(1, 0)
    ticket = offer(lanes, "standard", 1, 0)
    with pytest.raises(ValueError, match="cannot wait for a worker"):
        lanes.put_back(ticket, 1)
    lanes.first_byte(ticket, 2)
    lanes.set_workers(0, 3)
    with pytest.raises(ValueError, match="cannot wait for a worker"):
        lanes.put_back(ticket, 4)


def test_the_rate_at_which_a_lane_drains_is_not_lowered_by_a_time_without_workers() -> None:
    lanes = lanes_of(hold=3600.0, wait=600.0)
    lanes.set_workers(1, 0)
    running = offer(lanes, "standard", 75, 0)
    offer(lanes, "standard", 75, 0)
    waiting = offer(lanes, "standard", 75, 0)
    lanes.release(running, 10)  # 75 tokens in 10 s
    before = lanes.retry_after_seconds(waiting.order, 10)
    lanes.set_workers(0, 10)
    lanes.tick(1000)
    assert lanes.retry_after_seconds(waiting.order, 1000) == before
    lanes.set_workers(1, 1000)
    assert lanes.retry_after_seconds(waiting.order, 1000) == before
