"""Lanes under any order of events: bounds hold at every step, nobody is let in against the rules, every ticket ends."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from m3_router.config import ContextTier, ServiceTier
from m3_router.lanes.lanes import LANES, LaneBounds, Lanes, Order, QueueFullError, Ticket

LIMIT, SHARE, MAX_WAIT, BATCH_MAX_WAIT = 100, 75, 10.0, 25.0


class LanesMachine(RuleBasedStateMachine):
    """What the caller does, and a model of its own: who waits and who runs, told by tickets and changes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self.workers = 0

    @initialize(queue=st.integers(0, 4), preemption=st.booleans(), workers=st.integers(0, 3))
    def begin(self, queue: int, preemption: bool, workers: int) -> None:
        self.queue_requests, self.preemption = queue, preemption
        bounds = LaneBounds(
            tokens_in_flight=LIMIT,
            standard_share_tokens=SHARE,
            queue_requests=queue,
            max_wait_seconds=MAX_WAIT,
            batch_max_wait_seconds=BATCH_MAX_WAIT,
            preemption=preemption,
            long_prefills_per_worker=1,
        )
        self.lanes = Lanes(bounds, self.now)
        self.resize(workers)

    @rule(
        lane=st.sampled_from(LANES),
        tokens=st.integers(0, SHARE) | st.integers(0, 20),
        tenant=st.sampled_from("abc"),
        deadline=st.none() | st.floats(0, 20, allow_nan=False),
    )
    def offer(self, lane: tuple[ServiceTier, ContextTier], tokens: int, tenant: str, deadline: float | None) -> None:
        due = None if deadline is None else self.now + deadline
        order = Order(*lane, tenant=tenant, weight=1.0, tokens=tokens, weighted_tokens=tokens, deadline=due)
        retry_after_seconds = None
        try:
            ticket = self.lanes.offer(order, self.now)
        except QueueFullError as full:
            retry_after_seconds = full.retry_after_seconds
        else:
            assert ticket.state in ("admitted", "waiting")
            (self.waiting if ticket.state == "waiting" else self.running).append(ticket)
        self.follow(in_place_of=tenant)
        if retry_after_seconds is not None:
            assert retry_after_seconds >= 1
            assert self.lanes.waiting(*lane) >= self.queue_requests

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0))
    def first_byte(self, which: int) -> None:
        ticket = self.running[which % len(self.running)]
        self.lanes.first_byte(ticket, self.now)
        self.follow()

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0), cost=st.none() | st.integers(0, 200))
    def release(self, which: int, cost: int | None) -> None:
        ticket = self.running.pop(which % len(self.running))
        self.lanes.release(ticket, self.now, cost)
        assert ticket.state == "released"
        self.follow()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0))
    def cancel(self, which: int) -> None:
        ticket = self.waiting.pop(which % len(self.waiting))
        self.lanes.cancel(ticket, self.now)
        assert ticket.state == "cancelled"
        self.follow()

    @rule(seconds=st.floats(0, 6, allow_nan=False))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.lanes.tick(self.now)
        self.follow()

    @rule(workers=st.integers(0, 3))
    def resize(self, workers: int) -> None:
        self.workers = workers
        self.lanes.set_workers(workers, self.now)
        self.follow()

    def follow(self, in_place_of: str | None = None) -> None:
        """Take over what the lanes say has changed. in_place_of: the tenant for whom another one's wait may end."""
        changes = self.lanes.changes()
        assert not self.lanes.has_changes
        assert not set(changes.preempted) & set(changes.admitted)  # nobody is put back and let in at once
        for ticket in changes.preempted:
            assert self.preemption
            assert not ticket.has_first_byte
            assert ticket.order.service_tier != "priority"
            assert ticket.preemptions <= 2
            self.running.remove(ticket)  # raises where it was not running
            self.waiting.append(ticket)
        for ticket in changes.expired:
            assert ticket.state == "expired"
            longest = BATCH_MAX_WAIT if ticket.order.service_tier == "batch" else MAX_WAIT
            assert self.now - ticket.offered_at >= longest or in_place_of not in (None, ticket.order.tenant)
            self.waiting.remove(ticket)
        for ticket in changes.admitted:
            self.waiting.remove(ticket)
            self.running.append(ticket)
        batch = [ticket for ticket in changes.admitted if ticket.order.service_tier == "batch"]
        if batch:
            assert all(ticket.order.service_tier == "batch" for ticket in self.waiting)

    @invariant()
    def all_is_accounted_for(self) -> None:
        if not hasattr(self, "lanes"):
            return
        self.lanes.check()
        assert set(self.lanes.tickets()) == set(self.waiting)
        assert all(ticket.state == "waiting" for ticket in self.waiting)
        assert all(ticket.state == "admitted" for ticket in self.running)
        held = sum(ticket.tokens for ticket in self.running)
        low = sum(ticket.tokens for ticket in self.running if ticket.order.service_tier != "priority")
        assert held <= LIMIT
        assert low <= SHARE
        assert sum(lane.in_flight_tokens for lane in self.lanes.snapshot(self.now)) == held

    @invariant()
    def nobody_waits_without_a_reason(self) -> None:
        """Where nothing runs and a worker is ready, nobody waits."""
        if hasattr(self, "lanes") and not self.running and self.workers:
            assert not self.waiting

    def teardown(self) -> None:
        """Once all that runs has ended, and time goes on, every ticket has come to an end."""
        if not hasattr(self, "lanes"):
            return
        for _ in range(1000):
            if not self.waiting and not self.running:
                break
            self.now += 1
            self.lanes.tick(self.now)
            self.follow()
            if self.running:
                self.release(0, None)
            self.all_is_accounted_for()
        assert not self.waiting
        assert not self.running
        assert all(lane.in_flight_tokens == lane.waiting == 0 for lane in self.lanes.snapshot(self.now))


LanesMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLanes = LanesMachine.TestCase
