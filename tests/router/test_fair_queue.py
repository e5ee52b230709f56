"""The queue of one lane: shares by weight, order inside a tenant, deadlines, and counters that stay exact."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from m3_router.lanes.fair_queue import FairQueue
from m3_router.lanes.tickets import Order, Ticket


class Offers:
    """Tickets with rising numbers."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(
        self, tenant: str, cost: int = 10, *, weight: float = 1.0, deadline: float | None = None, tokens: int = 1
    ) -> Ticket:
        self.made += 1
        order = Order(
            "priority",
            "standard",
            tenant=tenant,
            weight=weight,
            tokens=tokens,
            weighted_tokens=cost,
            deadline=deadline,
        )
        return Ticket(order, 0, self.made, 0.0)


def take_next(queue: FairQueue, now: float = 0.0) -> Ticket:
    ticket = queue.next(now)
    queue.take(ticket)
    ticket.state = "admitted"
    queue.check()
    return ticket


def fill(queue: FairQueue, *tickets: Ticket) -> None:
    for ticket in tickets:
        queue.add(ticket)
        queue.check()


def test_tenants_take_turns_and_each_goes_in_its_own_order() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    flood = [ticket("a") for _ in range(3)]
    late = [ticket("b") for _ in range(2)]
    fill(queue, *flood, *late)
    assert [take_next(queue) for _ in range(5)] == [flood[0], late[0], flood[1], late[1], flood[2]]


def test_what_tenants_get_is_in_proportion_to_their_weights() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    fill(queue, *(ticket("a", 10, weight=3) for _ in range(80)), *(ticket("b", 30, weight=1) for _ in range(80)))
    got: Counter[str] = Counter()
    for _ in range(60):
        order = take_next(queue).order
        got[order.tenant] += order.weighted_tokens
    assert got["a"] / got["b"] == pytest.approx(3, rel=0.1)


def test_idling_saves_nothing_up() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    busy = [ticket("a") for _ in range(20)]
    fill(queue, *busy)
    for _ in range(10):
        take_next(queue)
    newcomer = [ticket("b") for _ in range(3)]
    fill(queue, *newcomer)
    assert [take_next(queue).order.tenant for _ in range(6)] == ["a", "b", "a", "b", "a", "b"]


def test_newcomers_never_overtake_the_ticket_whose_turn_it_is() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    fill(queue, ticket("a"), ticket("a"))
    take_next(queue)
    turn = queue.next(0)
    for newcomer in range(50):
        fill(queue, ticket(f"tenant {newcomer}"))
        assert queue.next(0) is turn


def test_leaving_and_coming_back_does_not_wipe_out_what_was_had() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    fill(queue, ticket("a", 100), *(ticket("b", 10) for _ in range(20)))
    take_next(queue)
    fill(queue, ticket("a", 100))
    queue.forget()
    assert [take_next(queue).order.tenant for _ in range(12)] == ["b"] * 11 + ["a"]  # level at 100: b came first


def test_an_estimate_is_put_right_when_the_cost_is_known() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    fill(queue, *(ticket("a", 100) for _ in range(5)), *(ticket("b", 100) for _ in range(5)))
    first = take_next(queue)
    assert take_next(queue).order.tenant == "b"
    queue.correct(first, 1)  # so a is at 1, and b at 100
    queue.check()
    assert [take_next(queue).order.tenant for _ in range(3)] == ["a", "b", "a"]


def test_a_ticket_that_is_put_back_has_its_old_place_and_its_charge_back() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    fill(queue, ticket("a"), ticket("a"), ticket("b"), ticket("b"))
    first = take_next(queue)
    first.state = "waiting"
    queue.put_back(first)
    queue.check()
    assert queue.oldest is first
    assert [take_next(queue).number for _ in range(4)] == [1, 3, 2, 4]


def test_what_costs_nothing_still_takes_a_turn() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    fill(queue, *(ticket("a", 0) for _ in range(3)), ticket("b", 0))
    assert [take_next(queue).order.tenant for _ in range(4)] == ["a", "b", "a", "a"]


def test_a_new_weight_counts_from_the_next_request() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    fill(queue, ticket("a", weight=1), ticket("b", weight=1), ticket("a", weight=4))
    fill(queue, *(ticket("a", weight=4) for _ in range(8)), *(ticket("b", weight=1) for _ in range(8)))
    got = Counter(take_next(queue).order.tenant for _ in range(10))
    assert got["a"] == 8


def test_counters_of_tenants_that_are_gone_are_forgotten() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    steady = [ticket("steady", 1) for _ in range(2000)]
    fill(queue, steady[0], steady[1])
    for number in range(2, 1000):
        fill(queue, ticket(f"tenant {number}", 1), steady[number])
        take_next(queue)
        take_next(queue)
        queue.forget()
    assert repr(queue).count(" at ") < 200
    while len(queue):
        take_next(queue)
    queue.forget()
    assert repr(queue) == "<FairQueue 0 waiting; >"


def test_a_ticket_that_does_not_wait_cannot_be_taken_out() -> None:
    queue, ticket = FairQueue(has_deadlines=False), Offers()
    fill(queue, ticket("a"))
    with pytest.raises(ValueError, match="does not wait here"):
        queue.drop(ticket("a"))


class TestDeadlines:
    """Earliest first, within the fair share."""

    def test_the_earliest_goes_first_and_before_those_without(self) -> None:
        queue, ticket = FairQueue(has_deadlines=True), Offers()
        none, late, early = ticket("a"), ticket("b", deadline=9), ticket("c", deadline=5)
        fill(queue, none, late, early)
        assert [take_next(queue) for _ in range(3)] == [early, late, none]

    def test_it_orders_the_requests_of_one_tenant(self) -> None:
        queue, ticket = FairQueue(has_deadlines=True), Offers()
        none, late, early = ticket("a"), ticket("a", deadline=9), ticket("a", deadline=5)
        fill(queue, none, late, early)
        assert [take_next(queue) for _ in range(3)] == [early, late, none]

    def test_a_missed_one_counts_no_more(self) -> None:
        queue, ticket = FairQueue(has_deadlines=True), Offers()
        none, missed, early = ticket("a"), ticket("b", deadline=1), ticket("c", deadline=5)
        fill(queue, none, missed, early)
        assert [take_next(queue, 1.0) for _ in range(3)] == [early, none, missed]

    def test_without_the_right_to_it_a_deadline_does_nothing(self) -> None:
        queue, ticket = FairQueue(has_deadlines=False), Offers()
        none, early = ticket("a"), ticket("b", deadline=5)
        fill(queue, none, early)
        assert [take_next(queue) for _ in range(2)] == [none, early]

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100)), min_size=50, max_size=50),
        st.floats(0.1, 10, allow_nan=False),
    )
    def test_a_tenant_is_never_ahead_of_its_share_by_more_than_one_request(
        self, costs: list[tuple[int, int]], weight: float
    ) -> None:
        queue, ticket = FairQueue(has_deadlines=True), Offers()
        for mine, other in costs:
            fill(queue, ticket("hurried", mine, weight=weight, deadline=1.0), ticket("patient", other))
        got: Counter[str] = Counter()
        waiting = Counter(hurried=50, patient=50)
        while all(waiting.values()):
            order = take_next(queue).order
            got[order.tenant] += order.weighted_tokens
            waiting[order.tenant] -= 1
            share = sum(got.values()) * weight / (weight + 1)
            largest = max(mine for mine, _ in costs)
            assert got["hurried"] <= share + largest + 1


class FairQueueMachine(RuleBasedStateMachine):
    """Any order of calls: counts stay exact, and who waits all the time gets its share."""

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.offer, self.now = FairQueue(has_deadlines=True), Offers(), 0.0
        self.waiting: list[Ticket] = []
        self.taken: list[Ticket] = []

    @rule(
        tenant=st.sampled_from("abcd"),
        cost=st.integers(0, 1000),
        weight=st.sampled_from([0.01, 0.5, 1.0, 3.7, 100.0]),
        deadline=st.none() | st.floats(0, 50, allow_nan=False),
    )
    def add(self, tenant: str, cost: int, weight: float, deadline: float | None) -> None:
        ticket = self.offer(tenant, cost, weight=weight, deadline=deadline, tokens=cost)
        self.queue.add(ticket)
        self.waiting.append(ticket)

    @precondition(lambda self: self.waiting)
    @rule(seconds=st.floats(0, 2, allow_nan=False))
    def take(self, seconds: float) -> None:
        self.now += seconds
        ticket = self.queue.next(self.now)
        mine = [t for t in self.waiting if t.order.tenant == ticket.order.tenant]
        has_deadline = ticket.order.deadline is not None and ticket.order.deadline > self.now
        assert has_deadline or ticket is min(mine, key=lambda t: t.number)
        self.queue.take(ticket)
        ticket.state = "admitted"
        self.waiting.remove(ticket)
        self.taken.append(ticket)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0))
    def drop(self, which: int) -> None:
        ticket = self.waiting.pop(which % len(self.waiting))
        self.queue.drop(ticket)
        ticket.state = "cancelled"

    @precondition(lambda self: self.taken)
    @rule(which=st.integers(0))
    def put_back(self, which: int) -> None:
        ticket = self.taken.pop(which % len(self.taken))
        ticket.state = "waiting"
        self.queue.put_back(ticket)
        self.waiting.append(ticket)

    @precondition(lambda self: self.taken)
    @rule(which=st.integers(0), cost=st.integers(0, 2000))
    def correct(self, which: int, cost: int) -> None:
        ticket = self.taken.pop(which % len(self.taken))
        self.queue.correct(ticket, cost)
        ticket.state = "released"

    @rule()
    def forget(self) -> None:
        self.queue.forget()

    @invariant()
    def counts_are_right(self) -> None:
        self.queue.check()
        assert list(self.queue) == sorted(self.waiting, key=lambda ticket: ticket.number)


FairQueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFairQueueMachine = FairQueueMachine.TestCase
