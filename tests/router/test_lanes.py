"""Lanes: bounds, order, ageing, expiry, and the life of every ticket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_router.lanes import MAX_RETRY_AFTER_SECONDS, Lanes, QueueFullError, Ticket


def lanes_of(tokens: int = 100, share: int = 75, queue: int = 10, wait: float = 30.0) -> Lanes:
    return Lanes(
        tokens_in_flight=tokens, standard_share_tokens=share, queue_requests=queue, max_wait_seconds=wait, now=0.0
    )


def test_standard_cannot_take_the_reserved_share_and_priority_can_borrow_all() -> None:
    lanes = lanes_of()
    assert lanes.offer("standard", 75, 0).state == "admitted"
    assert lanes.offer("standard", 1, 0).state == "waiting"
    assert lanes.offer("priority", 25, 0).state == "admitted"
    other = lanes_of()
    assert other.offer("priority", 75, 0).state == "admitted"
    assert other.offer("priority", 25, 0).state == "admitted"
    assert other.offer("standard", 1, 0).state == "waiting"


def test_priority_goes_before_standard_and_each_lane_in_its_order() -> None:
    lanes = lanes_of()
    running = lanes.offer("priority", 75, 0)
    blocker = lanes.offer("priority", 25, 0)
    standard = [lanes.offer("standard", 10, 1), lanes.offer("standard", 10, 1)]
    priority = [lanes.offer("priority", 20, 2), lanes.offer("priority", 60, 2)]
    assert lanes.release(blocker, 3) == [priority[0]]
    assert lanes.release(running, 3) == [priority[1], *standard]


def test_a_waiting_priority_request_keeps_the_room_it_needs_from_standard() -> None:
    lanes = lanes_of()
    first, second = lanes.offer("priority", 50, 0), lanes.offer("priority", 50, 0)
    big = lanes.offer("priority", 70, 1)
    small = lanes.offer("standard", 10, 1)
    assert lanes.release(first, 2) == []
    assert small.state == "waiting"
    assert lanes.release(second, 3) == [big, small]


def test_an_aged_standard_request_goes_before_newer_priority_ones() -> None:
    lanes = lanes_of(wait=30)
    running = lanes.offer("priority", 75, 0)
    lanes.offer("priority", 25, 0)
    standard = lanes.offer("standard", 60, 1)
    priority = lanes.offer("priority", 40, 16)
    assert lanes.release(running, 16.5) == [standard]  # it has waited for 15.5 s, more than half of 30
    assert priority.state == "waiting"


def test_while_an_aged_request_waits_priority_is_kept_to_its_reserved_part() -> None:
    lanes = lanes_of(wait=30)
    running = [lanes.offer("priority", 40, 0), lanes.offer("priority", 50, 0)]
    aged = lanes.offer("standard", 70, 0)
    priority = lanes.offer("priority", 20, 20)
    assert lanes.release(running[0], 20) == []  # 50 in flight: 20 more would exceed the 25 that are reserved
    assert lanes.release(running[1], 21) == [aged, priority]


def test_a_full_queue_is_refused_per_lane_and_a_queue_of_none_still_admits() -> None:
    lanes = lanes_of(queue=1)
    lanes.offer("standard", 75, 0)
    lanes.offer("standard", 1, 0)
    with pytest.raises(QueueFullError, match="the standard lane is full: 1 requests wait"):
        lanes.offer("standard", 1, 0)
    assert lanes.offer("priority", 25, 0).state == "admitted"
    none = lanes_of(queue=0)
    assert none.offer("standard", 75, 0).state == "admitted"
    with pytest.raises(QueueFullError):
        none.offer("standard", 1, 0)


def test_a_wait_ends_exactly_at_its_bound() -> None:
    lanes = lanes_of(wait=30)
    lanes.offer("standard", 75, 0)
    waiting = lanes.offer("standard", 75, 1)
    assert lanes.tick(30.9) == ([], [])
    assert lanes.tick(31.0) == ([waiting], [])
    assert waiting.state == "expired"


def test_the_expiry_of_a_large_head_lets_those_behind_it_in() -> None:
    lanes = lanes_of(wait=10)
    lanes.offer("standard", 50, 0)
    large = lanes.offer("standard", 75, 0)
    small = lanes.offer("standard", 20, 1)
    assert lanes.tick(10) == ([large], [small])


def test_retry_after_follows_the_measured_drain_rate() -> None:
    lanes = lanes_of(tokens=1000, share=1000, queue=1, wait=12)
    assert lanes.retry_after_seconds("standard", 0) == 12  # nothing measured yet: the longest wait
    for second in range(1, 61):  # 100 tokens a second
        lanes.release(lanes.offer("standard", 100, second), second)
        lanes.tick(second)
    assert lanes.drain_tokens_per_second(60) == pytest.approx(100, rel=0.05)
    lanes.offer("standard", 1000, 60)
    lanes.offer("standard", 900, 60)
    assert lanes.retry_after_seconds("standard", 60) == pytest.approx(9, abs=1)
    assert lanes.retry_after_seconds("standard", 10_000) == MAX_RETRY_AFTER_SECONDS


def test_a_ticket_cannot_be_ended_twice() -> None:
    lanes = lanes_of()
    ticket = lanes.offer("standard", 1, 0)
    lanes.release(ticket, 0)
    with pytest.raises(ValueError, match="only an admitted ticket can be released"):
        lanes.release(ticket, 0)
    with pytest.raises(ValueError, match="only a waiting ticket can be cancelled"):
        lanes.cancel(ticket, 0)


def test_a_request_that_could_never_run_is_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match="76 tokens are not between 0 and the standard share 75"):
        lanes_of().offer("priority", 76, 0)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["standard", "priority", "release", "cancel", "tick"]),
        st.integers(0, 75),
        st.floats(0, 5, allow_nan=False),
    ),
    max_size=60,
)


@given(OPERATIONS, st.integers(0, 4))
def test_bounds_hold_and_every_ticket_ends_exactly_once(  # noqa: C901 - one branch for each operation
    operations: list[tuple[str, int, float]], queue_requests: int
) -> None:
    lanes = lanes_of(queue=queue_requests, wait=10)
    now, held, waiting = 0.0, [], []

    def admit(tickets: list[Ticket]) -> None:
        for ticket in tickets:
            assert ticket.state == "admitted"
            waiting.remove(ticket)  # raises if it was resolved before
            held.append(ticket)

    for name, amount, pause in operations:
        now += pause
        if name == "release":
            if held:
                admit(lanes.release(held.pop(amount % len(held)), now))
        elif name == "cancel":
            if waiting:
                admit(lanes.cancel(waiting.pop(amount % len(waiting)), now))
        elif name == "tick":
            expired, admitted = lanes.tick(now)
            for ticket in expired:
                assert ticket.state == "expired"
                assert now - ticket.offered_at >= 10
                waiting.remove(ticket)
            admit(admitted)
        else:
            try:
                ticket = lanes.offer(name, amount, now)
            except QueueFullError:
                assert lanes.waiting(name) == queue_requests
            else:
                (held if ticket.state == "admitted" else waiting).append(ticket)
        lanes.check()
        assert sum(ticket.tokens for ticket in held) == sum(lanes.in_flight_tokens.values())
        assert sorted(map(id, lanes.tickets())) == sorted(map(id, waiting))
    # Nobody is left behind: once all that runs has ended, and time goes on, every queue empties.
    while held or waiting:
        now += 1
        _, admitted = lanes.tick(now)
        waiting = [ticket for ticket in waiting if ticket.state == "waiting" or ticket in admitted]
        admit(admitted)
        if held:
            admit(lanes.release(held.pop(), now))
    lanes.check()
    assert lanes.in_flight_tokens == {"standard": 0, "priority": 0}


@given(st.integers(1, 75), st.lists(st.integers(1, 75), min_size=1, max_size=30))
def test_a_standard_request_is_not_starved_by_priority_that_never_stops(standard: int, priority: list[int]) -> None:
    lanes = lanes_of(queue=1000, wait=30)
    held = [lanes.offer("priority", 75, 0), lanes.offer("priority", 25, 0)]
    ticket = lanes.offer("standard", standard, 0)
    now = 0.0
    while ticket.state == "waiting":
        now += 1
        assert now < 30, f"starved: {lanes!r}"
        for tokens in priority:
            offered = lanes.offer("priority", tokens, now)
            if offered.state == "admitted":
                held.append(offered)
        _, admitted = lanes.tick(now)
        held += admitted
        held += lanes.release(held.pop(0), now)
    assert ticket.state == "admitted"
