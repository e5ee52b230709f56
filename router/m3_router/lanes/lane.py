"""One lane and its bounds: who waits in it, what it holds in flight, and how fast it drains.

Owns the state of a service tier x context tier in one pool. Decides nothing: whose turn it is between lanes is
`lanes`', whose turn it is between the tenants of this lane is `fair_queue`'s.
"""

import math
from dataclasses import dataclass
from typing import Final

from m3_router.config import ContextTier, LaneSettings, PoolSettings, ServiceTier, standard_share_tokens
from m3_router.lanes.fair_queue import FairQueue
from m3_router.lanes.tickets import Order, Ticket

DRAIN_WINDOW_SECONDS: Final = 30.0  # time constant of the measured drain rate
MIN_MEASURED_SECONDS: Final = 1.0  # a shorter measurement says nothing
MAX_RETRY_AFTER_SECONDS: Final = 600
# Lanes are numbered 2 x service tier + 1 if long. Two and more may be put back, in favour of a lower service tier.
PRIORITY: Final = 0
STANDARD: Final = 2
BATCH: Final = 4


@dataclass(frozen=True, slots=True)
class LaneBounds:
    """The bounds of one pool's lanes."""

    tokens_in_flight: int
    standard_share_tokens: int
    queue_requests: int  # per lane
    max_wait_seconds: float
    batch_max_wait_seconds: float
    preemption: bool
    long_prefills_per_worker: int
    hold_seconds: float = 0.0  # that a request waits while no worker is ready; 0: that is not the lanes' concern

    @classmethod
    def from_settings(cls, pool: PoolSettings, lanes: LaneSettings) -> "LaneBounds":
        """What the configuration says for one pool."""
        return cls(
            tokens_in_flight=pool.tokens_in_flight,
            standard_share_tokens=standard_share_tokens(pool.tokens_in_flight, lanes.priority_reserved_share),
            queue_requests=pool.queue_requests,
            max_wait_seconds=lanes.max_wait_seconds,
            batch_max_wait_seconds=lanes.batch_max_wait_seconds,
            preemption=lanes.preemption,
            long_prefills_per_worker=lanes.long_prefills_per_worker,
            hold_seconds=pool.hold_when_empty_seconds,
        )


@dataclass(frozen=True, slots=True)
class LaneSnapshot:
    """A lane at one moment, for people and metrics. The last three count since the start."""

    service_tier: ServiceTier
    context_tier: ContextTier
    waiting: int
    waiting_tokens: int
    oldest_wait_seconds: float
    in_flight: int
    in_flight_tokens: int
    drain_tokens_per_second: float
    refused: int
    expired: int
    preempted: int


class Lane:
    """One lane of one pool."""

    __slots__ = (
        "_drained_tokens",
        "_measured_at",
        "_measured_seconds",
        "ageing_seconds",
        "context_tier",
        "expired",
        "in_flight",
        "in_flight_tokens",
        "index",
        "is_held",
        "is_long",
        "max_wait_seconds",
        "preempted",
        "queue",
        "queue_requests",
        "refused",
        "service_tier",
    )

    def __init__(self, index: int, bounds: LaneBounds) -> None:
        self.index = index
        self.service_tier: ServiceTier = "priority" if index < STANDARD else "standard" if index < BATCH else "batch"
        self.context_tier: ContextTier = "long" if index % 2 else "standard"
        self.is_long = index % 2 == 1
        self.queue_requests = bounds.queue_requests
        self.max_wait_seconds = bounds.max_wait_seconds if index < BATCH else bounds.batch_max_wait_seconds
        self.ageing_seconds = self.max_wait_seconds / 2
        self.queue = FairQueue(has_deadlines=index < STANDARD)
        self.is_held = False  # nobody is let in, and that is not for want of room
        self.in_flight = self.in_flight_tokens = 0
        self.refused = self.expired = self.preempted = 0
        # Tokens released while somebody waited, and the time in which somebody did, both decayed by that time: how fast
        # the lane drains when it is asked to, whatever little was asked of it before.
        self._drained_tokens = 0.0
        self._measured_seconds = 0.0
        self._measured_at = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether anybody waits."""
        return len(self.queue) > 0

    def is_aged(self, now: float) -> bool:
        """Whether somebody has waited for half of the longest wait."""
        return len(self.queue) > 0 and now - self.queue.oldest.offered_at >= self.ageing_seconds

    def enter(self, ticket: Ticket, now: float) -> None:
        """A ticket begins to wait."""
        if len(self.queue) == 0:
            self._measured_at = now
        self.queue.add(ticket)

    def enter_again(self, ticket: Ticket, now: float) -> None:
        """A ticket that was admitted waits again."""
        if len(self.queue) == 0:
            self._measured_at = now
        self.queue.put_back(ticket)
        self.preempted += 1

    def hold(self, now: float) -> None:
        """Nobody is let in from now on; how fast the lane drains is not measured meanwhile."""
        self._measure(now)
        self.is_held = True

    def open(self, now: float) -> None:
        """Those that wait are let in again, and begin only now to wait for room: the longest wait counts from here."""
        self.is_held = False
        self._measured_at = now
        for ticket in self.queue:
            ticket.offered_at = now

    def take(self, ticket: Ticket, now: float) -> None:
        """A ticket stops waiting: it is admitted."""
        self._measure(now)
        self.queue.take(ticket)

    def drop(self, ticket: Ticket, now: float) -> None:
        """A ticket stops waiting: it is cancelled, expired or refused."""
        self._measure(now)
        self.queue.drop(ticket)

    def drain(self, tokens: int, now: float) -> None:
        """Tokens were released in this lane."""
        if len(self.queue):
            self._measure(now)
            self._drained_tokens += tokens

    def drain_tokens_per_second(self, now: float) -> float:
        """Tokens released per second of waiting, over about the last DRAIN_WINDOW_SECONDS of it; 0: not known."""
        self._measure(now)
        return self._drained_tokens / self._measured_seconds if self._measured_seconds >= MIN_MEASURED_SECONDS else 0.0

    def retry_after_seconds(self, order: Order, now: float) -> int:
        """How long what waits here, and the order behind it, takes to drain; while not measured, the longest wait."""
        rate = self.drain_tokens_per_second(now)
        seconds = (self.queue.waiting_tokens + order.tokens) / rate if rate > 0 else self.max_wait_seconds
        return min(max(math.ceil(min(seconds, MAX_RETRY_AFTER_SECONDS)), 1), MAX_RETRY_AFTER_SECONDS)

    def snapshot(self, now: float) -> LaneSnapshot:
        """How the lane is now."""
        return LaneSnapshot(
            service_tier=self.service_tier,
            context_tier=self.context_tier,
            waiting=len(self.queue),
            waiting_tokens=self.queue.waiting_tokens,
            oldest_wait_seconds=max(0.0, now - self.queue.oldest.offered_at) if len(self.queue) else 0.0,
            in_flight=self.in_flight,
            in_flight_tokens=self.in_flight_tokens,
            drain_tokens_per_second=self.drain_tokens_per_second(now),
            refused=self.refused,
            expired=self.expired,
            preempted=self.preempted,
        )

    def __repr__(self) -> str:
        return (
            f"<Lane {self.service_tier}/{self.context_tier}: {self.in_flight_tokens} tokens of {self.in_flight} "
            f"in flight, {len(self.queue)} waiting>"
        )

    def _measure(self, now: float) -> None:
        """Bring the measurement up to now; time in which nobody waits for room does not count."""
        seconds = now - self._measured_at
        if len(self.queue) and seconds > 0 and not self.is_held:
            kept = math.exp(-seconds / DRAIN_WINDOW_SECONDS)
            self._drained_tokens *= kept
            self._measured_seconds = self._measured_seconds * kept + DRAIN_WINDOW_SECONDS * (1 - kept)
            self._measured_at = now
