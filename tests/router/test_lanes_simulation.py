"""Lanes in a simulated pool: what fairness, priority and claims are worth over thousands of requests.

A discrete-event simulation with a clock of its own and seeded draws, so every run is the same. The model of a worker is
plain on purpose: a request has its first byte after its prefill, and ends after its decode, however many others run;
one that is put back begins again. Waiting is then all the lanes' doing.
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

import pytest

from m3_router.config import ContextTier, ServiceTier
from m3_router.lanes.lanes import LaneBounds, Lanes, Order, Ticket

TICK_SECONDS = 0.25


def bounds_of(
    tokens: int, share: int, *, queue: int = 1000, wait: float = 30.0, preemption: bool = False
) -> LaneBounds:
    return LaneBounds(
        tokens_in_flight=tokens,
        standard_share_tokens=share,
        queue_requests=queue,
        max_wait_seconds=wait,
        batch_max_wait_seconds=3600.0,
        preemption=preemption,
        long_prefills_per_worker=1,
    )


@dataclass(eq=False)
class Job:
    """One request, and what became of it."""

    tenant: str
    service_tier: ServiceTier
    tokens: int
    cost: int  # in weighted tokens, in truth
    prefill_seconds: float
    decode_seconds: float
    context_tier: ContextTier = "standard"
    weight: float = 1.0
    estimate: int | None = None  # of its cost, where the router is wrong
    deadline_seconds: float | None = None
    source: "Source | None" = None
    offered_at: float = 0.0
    admitted_at: float | None = None
    first_byte_at: float | None = None
    ended_at: float | None = None
    expired_at: float | None = None
    attempts: int = 0
    ticket: Ticket | None = None

    @property
    def wait_seconds(self) -> float:
        assert self.admitted_at is not None
        return self.admitted_at - self.offered_at


Source = Callable[[], Job]  # the next request of a tenant that always has one waiting


@dataclass
class Simulation:
    """A pool: lanes, a clock, and events in the order of their time."""

    lanes: Lanes
    now: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def keep_waiting(self, source: Source, requests: int) -> None:
        """A tenant that has so many requests waiting all the time."""
        for _ in range(requests):
            job = source()
            job.source = source
            self.offer(job)

    def offer(self, job: Job) -> None:
        job.offered_at = self.now
        self.jobs.append(job)
        due = None if job.deadline_seconds is None else self.now + job.deadline_seconds
        order = Order(
            job.service_tier,
            job.context_tier,
            tenant=job.tenant,
            weight=job.weight,
            tokens=job.tokens,
            weighted_tokens=job.cost if job.estimate is None else job.estimate,
            deadline=due,
            holder=job,
        )
        job.ticket = self.lanes.offer(order, self.now)
        if job.ticket.state == "admitted":
            self._start(job)
        self._follow()

    def run(self, until: float) -> None:
        self.at(self.now, self._tick)
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.lanes.check()

    def _tick(self) -> None:
        self.lanes.tick(self.now)
        self._follow()
        if self.now % 4 == 0:
            self.lanes.check()
        self.at(self.now + TICK_SECONDS, self._tick)

    def _start(self, job: Job) -> None:
        job.admitted_at = self.now
        job.attempts += 1
        attempt = job.attempts

        def first_byte() -> None:
            if job.attempts == attempt and job.admitted_at is not None:
                job.first_byte_at = self.now
                self._with(job, self.lanes.first_byte)
                self.at(self.now + job.decode_seconds, end)

        def end() -> None:
            job.ended_at = self.now
            assert job.ticket is not None
            self.lanes.release(job.ticket, self.now, job.cost)
            self._follow()

        self.at(self.now + job.prefill_seconds, first_byte)
        if job.source is not None:
            source, job.source = job.source, None
            successor = source()
            successor.source = source
            self.at(self.now, lambda: self.offer(successor))

    def _with(self, job: Job, method: Callable[[Ticket, float], None]) -> None:
        assert job.ticket is not None
        method(job.ticket, self.now)
        self._follow()

    def _follow(self) -> None:
        changes = self.lanes.changes()
        for ticket in changes.preempted:
            job = _job(ticket)
            assert job.first_byte_at is None, "put back after its first byte"
            assert job.service_tier != "priority"
            job.admitted_at = None
        for ticket in changes.expired:
            _job(ticket).expired_at = self.now
        for ticket in changes.admitted:
            self._start(_job(ticket))


def _job(ticket: Ticket) -> Job:
    assert isinstance(ticket.holder, Job)
    return ticket.holder


def simulation_of(bounds: LaneBounds, workers: int = 4) -> Simulation:
    lanes = Lanes(bounds, 0.0)
    lanes.set_workers(workers, 0.0)
    return Simulation(lanes)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


def queue_of_servers(arrivals: list[tuple[float, float]], servers: int) -> list[float]:
    """Waits of (arrival, service seconds) in a FIFO queue with so many servers, by Kiefer and Wolfowitz's recursion."""
    free_at = [0.0] * servers
    waits = []
    for arrival, service in arrivals:
        start = max(arrival, heapq.heappop(free_at))
        waits.append(start - arrival)
        heapq.heappush(free_at, start + service)
    return waits


def erlang_c_wait(load: float, servers: int, service_seconds: float, share: float) -> float:
    """The quantile of the wait in M/M/c: P(W > t) = C exp(-(c - a) t / s), with Erlang's C."""
    inverse_b = 1.0
    for server in range(1, servers + 1):
        inverse_b = 1 + inverse_b * server / load
    waits = 1 / (1 + (1 - load / servers) * (inverse_b - 1))
    return max(0.0, math.log(waits / (1 - share)) * service_seconds / (servers - load))


# Sizes differ by tenant, and so do the errors of the estimates: what counts is the cost in the end.
TENANTS = (("small", 1.0, 500, 1.0), ("wrong", 2.0, 2_000, 3.0), ("large", 4.0, 6_000, 0.5))


def tenant_source(random: Random, tenant: tuple[str, float, int, float], is_hurried: bool) -> Source:
    name, weight, tokens, bias = tenant

    def make() -> Job:
        cost = random.randint(tokens // 2, tokens * 3 // 2)
        return Job(
            name,
            "priority",
            tokens=cost,
            cost=cost,
            estimate=int(cost * bias),
            weight=weight,
            prefill_seconds=random.uniform(0.1, 0.5),
            decode_seconds=random.uniform(0.2, 2.0),
            deadline_seconds=random.uniform(0.5, 20) if is_hurried else None,
        )

    return make


@pytest.mark.parametrize("hurried", ["nobody", "small", "wrong", "large"])
def test_tenants_that_always_wait_get_their_weights_within_five_percent(hurried: str) -> None:
    simulation, random = simulation_of(bounds_of(100_000, 100_000, wait=3600.0)), Random(5)
    for tenant in TENANTS:
        simulation.keep_waiting(tenant_source(random, tenant, hurried == tenant[0]), 20)
    simulation.run(until=250)
    served: Counter[str] = Counter()
    for job in simulation.jobs:
        if job.ended_at is not None and job.ended_at > 50:
            served[job.tenant] += job.cost
    total_weight = sum(weight for _, weight, _, _ in TENANTS)
    for name, weight, _, _ in TENANTS:
        assert served[name] / served.total() == pytest.approx(weight / total_weight, rel=0.05)


@pytest.mark.parametrize("preemption", [False, True])
def test_nobody_starves_while_priority_floods_the_pool(preemption: bool) -> None:
    simulation, random = simulation_of(bounds_of(100_000, 75_000, preemption=preemption)), Random(6)
    kinds: list[tuple[str, ServiceTier, ContextTier, int]] = [
        ("flood", "priority", "standard", 2_000),
        ("hurried", "priority", "standard", 2_000),
        ("a", "standard", "standard", 2_000),
        ("b", "standard", "standard", 9_000),
        ("c", "standard", "long", 40_000),
    ]

    def source(kind: tuple[str, ServiceTier, ContextTier, int]) -> Source:
        tenant, tier, context, tokens = kind

        def make() -> Job:
            return Job(
                tenant,
                tier,
                tokens=tokens,
                cost=tokens,
                prefill_seconds=random.uniform(0.1, 0.6),
                decode_seconds=random.uniform(0.2, 2.0),
                context_tier=context,
                deadline_seconds=1.0 if tenant == "hurried" else None,
            )

        return make

    for kind in kinds:
        simulation.keep_waiting(source(kind), 60 if kind[0] == "flood" else 3)
    simulation.run(until=300)
    lets_in: defaultdict[str, set[int]] = defaultdict(set)
    for job in simulation.jobs:
        if job.first_byte_at is not None:
            lets_in[job.tenant].add(int(job.first_byte_at // 60))
    for tenant, *_ in kinds:
        assert lets_in[tenant] >= set(range(5)), f"{tenant} had no first byte in some minute"
    assert all(job.attempts <= 3 for job in simulation.jobs)


@pytest.mark.parametrize("preemption", [False, True])
@pytest.mark.parametrize("load", [15.0, 22.5])
def test_priority_waits_no_longer_than_with_its_reserve_alone(preemption: bool, load: float) -> None:
    """Under a standard overload that never ends.

    The bound: 25 requests of one size fit into the reserve. Standard never has any of it, and even while somebody has
    aged, priority may use all of it. So with equal sizes, first come first served, the n-th priority request starts no
    later than it would in a queue of its own with 25 servers, for the n - 1 before it have started no later either, and
    at most 24 of them still run when it starts there. So no wait is longer than in that queue, and with Poisson
    arrivals and exponential times the 95th percentile is at most that of M/M/25, by Erlang's formula.
    """
    simulation, random = simulation_of(bounds_of(100_000, 75_000, queue=5000, preemption=preemption)), Random(7)
    servers, mean_seconds = 25, 2.0

    def standard() -> Job:
        seconds = random.uniform(0.5, 6)
        return Job("crowd", "standard", tokens=1_000, cost=1_000, prefill_seconds=seconds / 2, decode_seconds=seconds)

    simulation.keep_waiting(standard, 300)
    arrivals: list[tuple[float, float]] = []
    priority: list[Job] = []
    time = 0.0
    while time < 300:
        time += random.expovariate(load / mean_seconds)
        seconds = random.expovariate(1 / mean_seconds)
        job = Job("gold", "priority", tokens=1_000, cost=1_000, prefill_seconds=0.0, decode_seconds=seconds)
        arrivals.append((time, seconds))
        priority.append(job)
        simulation.at(time, lambda job=job: simulation.offer(job))
    simulation.run(until=340)
    alone = queue_of_servers(arrivals, servers)
    waits = [job.wait_seconds for job in priority]
    assert all(wait <= bound + 1e-6 for wait, bound in zip(waits, alone, strict=True))
    assert percentile(waits, 0.95) <= erlang_c_wait(load, servers, mean_seconds, 0.95)
    aged = [job for job in simulation.jobs if job.tenant == "crowd" and job.admitted_at and job.wait_seconds >= 15]
    assert len(aged) > 100  # the crowd did press, and had its turns by age


def gold_and_crowd(preemption: bool) -> Simulation:
    """Standard traffic that fills its share, and now and then a large priority request."""
    simulation, random = simulation_of(bounds_of(100_000, 75_000, preemption=preemption)), Random(8)

    def job(tenant: str, tier: ServiceTier, tokens: int) -> Job:
        seconds = random.uniform(1, 3)
        return Job(tenant, tier, tokens=tokens, cost=tokens, prefill_seconds=seconds, decode_seconds=seconds)

    for at in range(300):
        for _ in range(3):
            simulation.at(at + random.random(), lambda: simulation.offer(job("crowd", "standard", 4_500)))
        if at % 3 == 0:
            simulation.at(at + random.random(), lambda: simulation.offer(job("gold", "priority", 30_000)))
    simulation.run(until=400)
    return simulation


def test_preemption_shortens_the_wait_of_priority_and_costs_nobody_an_answer() -> None:
    waits: dict[bool, list[float]] = {}
    for preemption in (False, True):
        jobs = gold_and_crowd(preemption).jobs
        assert all(job.ended_at is not None for job in jobs)
        assert all(job.attempts <= 3 for job in jobs)
        assert any(job.attempts > 1 for job in jobs) == preemption
        waits[preemption] = [job.wait_seconds for job in jobs if job.tenant == "gold"]
    assert percentile(waits[True], 0.9) < percentile(waits[False], 0.9) / 2


def test_a_long_request_gets_in_by_its_claim_and_short_ones_go_on_meanwhile() -> None:
    simulation, random = simulation_of(bounds_of(100_000, 100_000)), Random(9)

    def short() -> Job:
        return Job(
            "chat",
            "standard",
            tokens=1_000,
            cost=1_000,
            prefill_seconds=0.2,
            decode_seconds=random.uniform(1, 9),
        )

    long = [
        Job("book", "standard", 60_000, 60_000, prefill_seconds=1.0, decode_seconds=1.0, context_tier="long")
        for _ in range(8)
    ]
    simulation.keep_waiting(short, 50)
    for number, job in enumerate(long):
        simulation.at(50.0 + 60 * number, lambda job=job: simulation.offer(job))
    simulation.run(until=600)
    drain_tokens_per_second = 100_000 / 5.2  # while all of the pool is in use
    for job in long:
        # It ages for 15 s, then half of what drains is for it; what drains gets less as less is running.
        assert 15 <= job.wait_seconds <= 15 + 2.5 * 60_000 / drain_tokens_per_second
        meanwhile = [
            other
            for other in simulation.jobs
            if other.tenant == "chat"
            and other.admitted_at is not None
            and job.offered_at + 15 <= other.admitted_at <= job.offered_at + job.wait_seconds
        ]
        usual = drain_tokens_per_second / 1_000 * (job.wait_seconds - 15)
        assert len(meanwhile) >= usual / 4


def chat_beside_batch(has_batch: bool) -> Simulation:
    """Standard traffic that fills half of the pool, and as much batch as there may be."""
    simulation, random = simulation_of(bounds_of(100_000, 100_000, preemption=True)), Random(10)

    def job(tenant: str, tier: ServiceTier, prefill_seconds: float, decode_seconds: float) -> Job:
        return Job(tenant, tier, 2_000, 2_000, prefill_seconds, decode_seconds)

    if has_batch:
        simulation.keep_waiting(lambda: job("night", "batch", random.uniform(1, 3), 0.2), 20)
    time = 0.0
    while time < 150:
        time += random.expovariate(20)
        simulation.at(time, lambda: simulation.offer(job("chat", "standard", 0.2, 1.0)))
    simulation.run(until=160)
    return simulation


def test_batch_uses_what_is_idle_and_standard_hardly_feels_it() -> None:
    alone = [job.wait_seconds for job in chat_beside_batch(False).jobs]
    jobs = chat_beside_batch(True).jobs
    beside = [job.wait_seconds for job in jobs if job.tenant == "chat"]
    assert sum(job.tenant == "night" and job.ended_at is not None for job in jobs) > 500
    assert percentile(alone, 0.95) == 0
    assert percentile(beside, 0.95) <= 0.2  # until a batch answer that has begun is complete
