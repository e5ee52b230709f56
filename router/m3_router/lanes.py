"""Who waits for a pool, and who goes next: two lanes over one bound of tokens in flight.

Owns the tickets of one pool from offer to end. Pure: time comes in as `now`; methods return the tickets that changed
and the caller wakes their holders. A ticket goes one way:

    waiting -> admitted -> released        waiting -> expired        waiting -> cancelled

    0                 standard share               tokens in flight
    |------ either lane ------|------ priority alone ------|

Rules, in this order. (1) Standard never holds more than its share; both together never more than the whole. (2) A
standard request that has waited for half of the longest wait has aged: it goes next, and until it fits, priority may
use no more than the reserved part. (3) Otherwise priority goes first and may use all; a priority request that does not
fit yet keeps standard from taking the room that it waits for. (4) Inside a lane, first come, first served. So neither
lane starves: an aged request waits only for requests that already run.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, Literal

from m3_router.config import ServiceTier

State = Literal["waiting", "admitted", "released", "expired", "cancelled"]
LANES: Final[tuple[ServiceTier, ...]] = ("standard", "priority")
DRAIN_WINDOW_SECONDS: Final = 30.0  # time constant of the measured drain rate
MAX_RETRY_AFTER_SECONDS: Final = 600


class QueueFullError(Exception):
    """The lane's queue is full. retry_after_seconds: when it will have drained, at the rate it drains now."""

    def __init__(self, lane: ServiceTier, waiting: int, retry_after_seconds: int) -> None:
        super().__init__(f"the {lane} lane is full: {waiting} requests wait in it")
        self.retry_after_seconds = retry_after_seconds


class Ticket:
    """One request's place. `holder` is the caller's; lanes never look at it."""

    __slots__ = ("holder", "lane", "offered_at", "state", "tokens")

    def __init__(self, lane: ServiceTier, tokens: int, now: float, holder: object) -> None:
        self.lane: ServiceTier = lane
        self.tokens = tokens
        self.offered_at = now
        self.state: State = "waiting"
        self.holder = holder

    def __repr__(self) -> str:
        return f"<Ticket {self.lane} {self.tokens} tokens, {self.state}>"


class Lanes:
    """The two lanes of one pool."""

    def __init__(
        self,
        *,
        tokens_in_flight: int,
        standard_share_tokens: int,
        queue_requests: int,
        max_wait_seconds: float,
        now: float,
    ) -> None:
        self.limit_tokens = tokens_in_flight
        self.standard_share_tokens = standard_share_tokens
        self.queue_requests = queue_requests
        self.max_wait_seconds = max_wait_seconds
        self.ageing_seconds = max_wait_seconds / 2
        # Invariant after every method: no ticket that the rules would admit is still waiting, as of the last `now`.
        self._waiting: dict[ServiceTier, OrderedDict[Ticket, None]] = {lane: OrderedDict() for lane in LANES}
        self.in_flight_tokens: dict[ServiceTier, int] = dict.fromkeys(LANES, 0)
        # Tokens released, decayed with DRAIN_WINDOW_SECONDS; divided by the decayed time since the start it is a rate.
        self._drained_tokens = 0.0
        self._drained_at = self._started_at = now
        self._waiting_requests = 0  # in both lanes

    def offer(self, lane: ServiceTier, tokens: int, now: float, holder: object = None) -> Ticket:
        """Ask for a place. Returns a ticket that is admitted, or waits. Raises QueueFullError, ValueError.

        tokens: what the request may hold at most; never more than the standard share, or it might wait for ever.
        """
        if not 0 <= tokens <= self.standard_share_tokens:
            raise ValueError(f"{tokens} tokens are not between 0 and the standard share {self.standard_share_tokens}")
        ticket = Ticket(lane, tokens, now, holder)
        in_flight = self.in_flight_tokens
        if (
            not self._waiting_requests  # the usual case: nobody to compare with
            and tokens <= self.limit_tokens - in_flight["standard"] - in_flight["priority"]
            and (lane == "priority" or tokens <= self.standard_share_tokens - in_flight["standard"])
        ):
            ticket.state = "admitted"
            in_flight[lane] += tokens
            return ticket
        queue = self._waiting[lane]
        queue[ticket] = None
        self._waiting_requests += 1
        if self._next(now) is ticket:
            self._admit(ticket)
        elif len(queue) > self.queue_requests:
            self._remove(ticket)
            raise QueueFullError(lane, len(queue), self.retry_after_seconds(lane, now))
        return ticket

    def release(self, ticket: Ticket, now: float) -> list[Ticket]:
        """An admitted request has ended. Returns the tickets that are admitted in its place."""
        if ticket.state != "admitted":
            raise ValueError(f"only an admitted ticket can be released, not {ticket!r}")
        ticket.state = "released"
        self.in_flight_tokens[ticket.lane] -= ticket.tokens
        self._drained_tokens += ticket.tokens  # decayed by `tick`, a few times a second
        return self._admit_all(now) if self._waiting_requests else []

    def cancel(self, ticket: Ticket, now: float) -> list[Ticket]:
        """A waiting request's client has left. Returns the tickets that are admitted because of it."""
        if ticket.state != "waiting":
            raise ValueError(f"only a waiting ticket can be cancelled, not {ticket!r}")
        ticket.state = "cancelled"
        self._remove(ticket)
        return self._admit_all(now)

    def tick(self, now: float) -> tuple[list[Ticket], list[Ticket]]:
        """Time has passed. Returns the tickets that have waited too long, and those that are admitted now."""
        self._drained_tokens *= self._decay(now - self._drained_at)
        self._drained_at = now
        expired = []
        for queue in self._waiting.values():
            while (head := _head(queue)) is not None and now - head.offered_at >= self.max_wait_seconds:
                self._remove(head)
                head.state = "expired"
                expired.append(head)
        return expired, self._admit_all(now)

    def waiting(self, lane: ServiceTier) -> int:
        """How many requests wait in a lane."""
        return len(self._waiting[lane])

    def tickets(self) -> Iterable[Ticket]:
        """All that wait, lane by lane, in their order."""
        return [ticket for queue in self._waiting.values() for ticket in queue]

    def retry_after_seconds(self, lane: ServiceTier, now: float) -> int:
        """How long the tokens that wait in a lane take to drain, from the measured rate."""
        rate = self.drain_tokens_per_second(now)
        if rate <= 0:
            return math.ceil(self.max_wait_seconds)
        waiting_tokens = sum(ticket.tokens for ticket in self._waiting[lane])
        return min(max(math.ceil(waiting_tokens / rate), 1), MAX_RETRY_AFTER_SECONDS)

    def drain_tokens_per_second(self, now: float) -> float:
        """Tokens released per second, over about the last DRAIN_WINDOW_SECONDS."""
        measured_seconds = DRAIN_WINDOW_SECONDS * (1 - self._decay(now - self._started_at))
        if measured_seconds <= 0:
            return 0.0
        return self._drained_tokens * self._decay(now - self._drained_at) / measured_seconds

    def check(self) -> None:
        """Raise AssertionError if a bound or a count is wrong."""
        standard, priority = self.in_flight_tokens["standard"], self.in_flight_tokens["priority"]
        if not (
            0 <= standard <= self.standard_share_tokens and priority >= 0 and standard + priority <= self.limit_tokens
        ):
            raise AssertionError(f"{standard} + {priority} tokens in flight break the bounds of {self!r}")
        if self._waiting_requests != sum(len(queue) for queue in self._waiting.values()):
            raise AssertionError(f"{self._waiting_requests} waiting requests are counted in {self!r}")
        for lane, queue in self._waiting.items():
            if len(queue) > self.queue_requests or any(t.state != "waiting" or t.lane != lane for t in queue):
                raise AssertionError(f"the {lane} queue of {self!r} holds {list(queue)}")

    def __repr__(self) -> str:
        lanes = ", ".join(f"{n} {self.in_flight_tokens[n]} tokens, {len(self._waiting[n])} waiting" for n in LANES)
        return f"<Lanes {lanes}; limit {self.limit_tokens}, standard share {self.standard_share_tokens}>"

    def _next(self, now: float) -> Ticket | None:
        """The ticket that the rules admit next, if one fits now."""
        standard, priority = _head(self._waiting["standard"]), _head(self._waiting["priority"])
        held_standard, held_priority = self.in_flight_tokens["standard"], self.in_flight_tokens["priority"]
        room = self.limit_tokens - held_standard - held_priority
        standard_room = min(room, self.standard_share_tokens - held_standard)

        if standard is not None and now - standard.offered_at >= self.ageing_seconds:
            if standard.tokens <= standard_room:
                return standard
            reserved_room = min(room, self.limit_tokens - self.standard_share_tokens - held_priority)
            return priority if priority is not None and priority.tokens <= reserved_room else None
        if priority is not None:
            return priority if priority.tokens <= room else None
        return standard if standard is not None and standard.tokens <= standard_room else None

    def _remove(self, ticket: Ticket) -> None:
        del self._waiting[ticket.lane][ticket]
        self._waiting_requests -= 1

    def _admit(self, ticket: Ticket) -> None:
        self._remove(ticket)
        ticket.state = "admitted"
        self.in_flight_tokens[ticket.lane] += ticket.tokens

    def _admit_all(self, now: float) -> list[Ticket]:
        admitted = []
        while (ticket := self._next(now)) is not None:
            self._admit(ticket)
            admitted.append(ticket)
        return admitted

    @staticmethod
    def _decay(seconds: float) -> float:
        return math.exp(-seconds / DRAIN_WINDOW_SECONDS)


def _head(queue: OrderedDict[Ticket, None]) -> Ticket | None:
    return next(iter(queue), None)
