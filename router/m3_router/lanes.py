"""Who waits for a pool, and who goes next: six lanes over one bound of tokens in flight.

A lane is a service tier (priority, standard, batch) x a context tier (standard, here called short; long). Owns the
tickets of one pool from offer to end. Pure: time comes in as `now`, and what a method does to tickets other than its
own is told by `changes`; the caller wakes their holders. A ticket goes one way, but for a preemption:

                 .-- preempted, before the first byte --.
                 v                                      |
    offer --> waiting ------------------------------> admitted --> released
                 |--> expired
                 '--> cancelled

    0            standard share                tokens in flight
    |----- standard, batch, priority -----|---- priority alone ----|

Rules, in this order.
(1) Bounds. Standard and batch together never hold more than the standard share, all together never more than the whole;
    and long requests that have no first byte yet are at most `long_prefills_per_worker` for each ready worker.
(2) Claims. A long request that does not fit lets short ones pass, and saves for itself half of the tokens that they
    give back, until it fits: a priority one at once, others once their lane has aged. One saves at a time, the oldest.
    So no long request blocks short ones, and none starves.
(3) Ageing. A standard lane in which somebody has waited for half of the longest wait goes next, and until it fits,
    priority uses no more than the reserved part.
(4) Otherwise priority goes first and may use all. What it waits for, it takes from requests of lower tiers that have no
    first byte yet (batch first, then the youngest; see `preemption`); else it keeps standard and batch from the room.
(5) Then standard, which may take from batch in the same way. Batch goes when nobody else waits at all.
(6) Between the lanes of one tier the older ticket goes first; inside a lane, see `fair_queue`.
"""

from typing import Final

from m3_router.config import ContextTier, ServiceTier
from m3_router.lane import BATCH, PRIORITY, STANDARD, Lane, LaneBounds, LaneSnapshot
from m3_router.preemption import Yielding, choose_victims
from m3_router.tickets import Order, Ticket

__all__ = ["LANES", "NO_CHANGES", "Changes", "LaneBounds", "LaneSnapshot", "Lanes", "Order", "QueueFullError", "Ticket"]

LANES: Final[tuple[tuple[ServiceTier, ContextTier], ...]] = (
    ("priority", "standard"),
    ("priority", "long"),
    ("standard", "standard"),
    ("standard", "long"),
    ("batch", "standard"),
    ("batch", "long"),
)


class QueueFullError(Exception):
    """The lane's queue is full. retry_after_seconds: when it will have drained, at the rate it drains."""

    def __init__(self, lane: Lane, retry_after_seconds: int) -> None:
        super().__init__(f"the {lane.service_tier} lane is full: {len(lane.queue)} requests wait in it")
        self.retry_after_seconds = retry_after_seconds


class Changes:
    """What happened to tickets other than the one that a method was called for, each list in its order."""

    __slots__ = ("admitted", "expired", "preempted")

    def __init__(self) -> None:
        self.admitted: list[Ticket] = []
        self.expired: list[Ticket] = []
        self.preempted: list[Ticket] = []


class Lanes:
    """The lanes of one pool."""

    __slots__ = (
        "_bounds",
        "_changes",
        "_claimant",
        "_lanes",
        "_limit_tokens",
        "_long_prefill_limit",
        "_long_prefills",
        "_low_tokens",
        "_offers",
        "_priority_tokens",
        "_saved_tokens",
        "_share_tokens",
        "_waiting",
        "_waiting_batch",
        "_yielding_batch",
        "_yielding_standard",
        "bounds",
        "has_changes",
    )

    def __init__(self, bounds: LaneBounds, now: float) -> None:
        self._bounds = bounds
        self.bounds = bounds
        self._limit_tokens = bounds.tokens_in_flight
        self._share_tokens = bounds.standard_share_tokens
        # Invariant after every method: no ticket that the rules would admit is still waiting, as of the last `now`.
        self._lanes = [Lane(index, bounds) for index in range(len(LANES))]
        self._offers = 0
        self._waiting = self._waiting_batch = 0  # tickets: in all lanes, in those of batch
        self._priority_tokens = self._low_tokens = 0  # in flight; low: standard and batch
        self._yielding_standard = Yielding(self._lanes[STANDARD].ageing_seconds)
        self._yielding_batch = Yielding(self._lanes[BATCH].ageing_seconds)
        self._long_prefills = 0  # long tickets in flight without first byte
        self._long_prefill_limit = 0  # until workers are ready
        # The long ticket that saves, and what it has saved of the room that there is.
        self._claimant: Ticket | None = None
        self._saved_tokens = 0
        self._changes = Changes()
        self.has_changes = False

    # ---- what happens to a ticket

    def offer(self, order: Order, now: float) -> Ticket:
        """Ask for a place. Returns a ticket that is admitted, or waits. Raises QueueFullError, ValueError.

        order.tokens: never more than the standard share, or it might wait for ever. Others may have been put back for
        it, or let in before it: see `changes`, also after QueueFullError.
        """
        tokens = order.tokens
        if not 0 <= tokens <= self._share_tokens:
            raise ValueError(f"{tokens} tokens are not between 0 and the standard share {self._share_tokens}")
        index = _lane_index(order)
        lane = self._lanes[index]
        self._offers += 1
        ticket = Ticket(order, index, self._offers, now)
        room = self._limit_tokens - self._priority_tokens - self._low_tokens
        if (  # the usual case: nobody to compare with, for batch does not count, and it fits
            tokens <= room - self._saved_tokens
            and (self._waiting == 0 or (self._waiting == self._waiting_batch and index < BATCH))
            and (index < STANDARD or tokens <= self._share_tokens - self._low_tokens)
            and (not lane.is_long or self._long_prefills < self._long_prefill_limit)
        ):
            self._start(ticket, lane, now)
            return ticket
        lane.enter(ticket, now)
        self._count_waiting(index, 1)
        self._settle(now, ticket)
        if ticket.state == "waiting" and len(lane.queue) > lane.queue_requests:
            self._leave(ticket, lane, now)
            ticket.state = "cancelled"
            lane.refused += 1
            self._settle(now, None)
            raise QueueFullError(lane, lane.retry_after_seconds(order, now))
        return ticket

    def first_byte(self, ticket: Ticket, now: float) -> None:
        """The answer of an admitted request has begun: from now on it keeps its place. A second call does nothing."""
        if ticket.state != "admitted":
            raise ValueError(f"only an admitted ticket can have its first byte, not {ticket!r}")
        if ticket.has_first_byte:
            return
        ticket.has_first_byte = True
        self._end_prefill(ticket)
        if self._waiting and ticket.lane_index % 2:  # what has become free is a place for a long one
            self._settle(now, None)

    def release(self, ticket: Ticket, now: float, weighted_tokens: int | None = None) -> None:
        """An admitted request has ended. weighted_tokens: what it has cost; None: the estimate stands."""
        if ticket.state != "admitted":
            raise ValueError(f"only an admitted ticket can be released, not {ticket!r}")
        lane = self._lanes[ticket.lane_index]
        self._stop(ticket, lane)
        ticket.state = "released"
        if weighted_tokens is not None and ticket.flow is not None:
            lane.queue.correct(ticket, weighted_tokens)
        if self._waiting:
            lane.drain(ticket.tokens, now)
            if self._claimant is not None:
                self._saved_tokens += ticket.tokens // 2
            self._settle(now, None)

    def cancel(self, ticket: Ticket, now: float) -> None:
        """A waiting request's client has left."""
        if ticket.state != "waiting":
            raise ValueError(f"only a waiting ticket can be cancelled, not {ticket!r}")
        self._leave(ticket, self._lanes[ticket.lane_index], now)
        ticket.state = "cancelled"
        self._settle(now, None)

    # ---- what happens to all

    def tick(self, now: float) -> None:
        """Time has passed: some have waited too long, some have aged. To be called a few times a second."""
        for lane in self._lanes:
            while lane.is_waiting and now - lane.queue.oldest.offered_at >= lane.max_wait_seconds:
                ticket = lane.queue.oldest
                self._leave(ticket, lane, now)
                ticket.state = "expired"
                lane.expired += 1
                self._changes.expired.append(ticket)
                self.has_changes = True
            lane.queue.forget()
        self._settle(now, None)

    def set_workers(self, ready: int, now: float) -> None:
        """How many workers are ready: that many times `long_prefills_per_worker` long requests may be prefilled."""
        self._long_prefill_limit = ready * self._bounds.long_prefills_per_worker
        self._settle(now, None)

    def changes(self) -> Changes:
        """What happened to other tickets since the last call. To be asked after every method where `has_changes`.

        Who was preempted waits again, and may be admitted in the same list's company: go through `preempted` first.
        """
        if not self.has_changes:
            return NO_CHANGES
        changes, self._changes = self._changes, Changes()
        self.has_changes = False
        return changes

    # ---- what people and metrics ask

    def waiting(self, service_tier: ServiceTier, context_tier: ContextTier) -> int:
        """How many requests wait in a lane."""
        return len(self._lanes[LANES.index((service_tier, context_tier))].queue)

    def tickets(self) -> list[Ticket]:
        """All that wait, lane by lane, in the order in which they came."""
        return [ticket for lane in self._lanes for ticket in lane.queue]

    def retry_after_seconds(self, order: Order, now: float) -> int:
        """When the lane of an order will have let in those that wait, and it, at the rate at which it drains."""
        return self._lanes[_lane_index(order)].retry_after_seconds(order, now)

    def snapshot(self, now: float) -> list[LaneSnapshot]:
        """Every lane, in the order of LANES."""
        return [lane.snapshot(now) for lane in self._lanes]

    def check(self) -> None:
        """Raise AssertionError if a bound or a count is wrong."""
        low, priority = self._low_tokens, self._priority_tokens
        held = [lane.in_flight_tokens for lane in self._lanes]
        if not (0 <= low <= self._share_tokens and priority >= 0 and low + priority <= self._limit_tokens):
            raise AssertionError(f"{low} + {priority} tokens in flight break the bounds of {self!r}")
        if priority != sum(held[:STANDARD]) or low != sum(held[STANDARD:]):
            raise AssertionError(f"{low} + {priority} tokens in flight are not those of {self!r}")
        if not 0 <= self._saved_tokens <= self._limit_tokens - low - priority:
            raise AssertionError(f"{self._saved_tokens} tokens are saved of less room in {self!r}")
        if self._waiting != sum(len(lane.queue) for lane in self._lanes):
            raise AssertionError(f"{self._waiting} waiting requests are counted in {self!r}")
        if self._waiting_batch != sum(len(lane.queue) for lane in self._lanes[BATCH:]):
            raise AssertionError(f"{self._waiting_batch} waiting batch requests are counted in {self!r}")
        self._yielding_standard.check()
        self._yielding_batch.check()
        for lane in self._lanes:
            lane.queue.check()
            new = sum(ticket.preemptions == 0 for ticket in lane.queue)
            if new > lane.queue_requests or any(ticket.lane_index != lane.index for ticket in lane.queue):
                raise AssertionError(f"{lane!r} holds {list(lane.queue)}")

    def __repr__(self) -> str:
        return f"<Lanes {self._lanes}; limit {self._limit_tokens}, standard share {self._share_tokens}>"

    # ---- who goes next

    def _settle(self, now: float, own: Ticket | None) -> None:
        """Admit all that the rules admit. own: the ticket whose fate its caller sees for himself."""
        while self._waiting:
            ticket = self._next(now)
            if ticket is None:
                return
            lane = self._lanes[ticket.lane_index]
            lane.take(ticket, now)
            self._count_waiting(ticket.lane_index, -1)
            self._start(ticket, lane, now)
            if ticket is not own:
                self._changes.admitted.append(ticket)
                self.has_changes = True
        self._claimant = None
        self._saved_tokens = 0

    def _next(self, now: float) -> Ticket | None:
        """The ticket that the rules admit next, if one fits now. Who was in its way has been put back."""
        room, low_room = self._rooms()
        places = self._long_prefill_limit - self._long_prefills
        claimant = self._claimant = self._oldest_claim(now) if places > 0 else None
        if claimant is None:
            self._saved_tokens = 0
        else:
            is_low = claimant.lane_index >= STANDARD
            if claimant.tokens <= (low_room if is_low else room):
                return claimant
            self._saved_tokens = min(self._saved_tokens, low_room if is_low else room)
            places -= 1
            room -= self._saved_tokens
            low_room = low_room - self._saved_tokens if is_low else min(low_room, room)

        if self._lanes[STANDARD].is_aged(now):
            ticket = self._lanes[STANDARD].queue.next(now)
            if ticket.tokens <= low_room or self._make_room(ticket, now):
                return ticket
            reserved_room = self._limit_tokens - self._share_tokens - self._priority_tokens
            return self._next_of_tier(PRIORITY, min(room, reserved_room), places, now)
        for tier in (PRIORITY, STANDARD):
            tier_room = room if tier == PRIORITY else low_room
            next_ticket = self._next_of_tier(tier, tier_room, places, now) or self._next_by_preemption(tier, now)
            if next_ticket is not None or self._lanes[tier].is_waiting:  # what it waits for is kept from others
                return next_ticket
        if self._waiting > self._waiting_batch:
            return None
        return self._next_of_tier(BATCH, low_room, places, now)

    def _next_of_tier(self, tier: int, room: int, places: int, now: float) -> Ticket | None:
        """The older of a tier's two next tickets, if it fits; the short one passes the long one, never the reverse."""
        short, long = self._lanes[tier], self._lanes[tier + 1]
        first = short.queue.next(now) if short.is_waiting else None
        if first is not None and first.tokens > room:
            return None
        if long.is_waiting and places > 0:
            second = long.queue.next(now)
            if second.tokens <= room and (first is None or second.number < first.number):
                return second
        return first

    def _oldest_claim(self, now: float) -> Ticket | None:
        """The long ticket that may save for itself."""
        oldest: Ticket | None = None
        for index in (PRIORITY + 1, STANDARD + 1, BATCH + 1):
            lane = self._lanes[index]
            if not lane.is_waiting or (index > STANDARD and not lane.is_aged(now)):
                continue
            if index > BATCH and self._waiting > self._waiting_batch:
                continue
            ticket = lane.queue.next(now)
            if oldest is None or ticket.number < oldest.number:
                oldest = ticket
        return oldest

    def _rooms(self) -> tuple[int, int]:
        """Tokens that are free: for priority, and for the others."""
        room = self._limit_tokens - self._priority_tokens - self._low_tokens
        return room, min(room, self._share_tokens - self._low_tokens)

    # ---- preemption

    def _next_by_preemption(self, tier: int, now: float) -> Ticket | None:
        """A tier's next ticket (the long one if no short one waits), if it fits now that others have been put back."""
        short, long = self._lanes[tier], self._lanes[tier + 1]
        lane = short if short.is_waiting else long
        if lane.is_waiting:
            ticket = lane.queue.next(now)
            if self._make_room(ticket, now):
                return ticket
        return None

    def _make_room(self, ticket: Ticket, now: float) -> bool:
        """Put back some of lower tiers, if `ticket` fits then."""
        if not self._bounds.preemption:
            return False
        room, low_room = self._rooms()
        places = self._long_prefill_limit - self._long_prefills
        if self._claimant is not None and self._claimant is not ticket:
            room -= self._saved_tokens
            low_room -= self._saved_tokens
            places -= 1
        is_priority = ticket.lane_index < STANDARD
        victims = choose_victims(
            [self._yielding_batch, self._yielding_standard] if is_priority else [self._yielding_batch],
            ticket.tokens - (room if is_priority else low_room),
            1 - places if ticket.lane_index % 2 else 0,
            now,
        )
        for victim in victims:
            self._put_back(victim, now)
        return len(victims) > 0

    def _put_back(self, ticket: Ticket, now: float) -> None:
        lane = self._lanes[ticket.lane_index]
        self._stop(ticket, lane)
        ticket.state = "waiting"
        ticket.preemptions += 1
        lane.enter_again(ticket, now)
        self._count_waiting(ticket.lane_index, 1)
        self._changes.preempted.append(ticket)
        self.has_changes = True

    # ---- counts

    def _start(self, ticket: Ticket, lane: Lane, now: float) -> None:
        """A ticket is admitted."""
        tokens = ticket.tokens
        ticket.state = "admitted"
        ticket.admitted_at = now
        lane.in_flight += 1
        lane.in_flight_tokens += tokens
        if lane.is_long:
            self._long_prefills += 1
        if lane.index < STANDARD:
            self._priority_tokens += tokens
        else:
            self._low_tokens += tokens
            (self._yielding_standard if lane.index < BATCH else self._yielding_batch).add(ticket, now)

    def _stop(self, ticket: Ticket, lane: Lane) -> None:
        """An admitted ticket gives back what it holds."""
        tokens = ticket.tokens
        if not ticket.has_first_byte:
            self._end_prefill(ticket)
        lane.in_flight -= 1
        lane.in_flight_tokens -= tokens
        if lane.index < STANDARD:
            self._priority_tokens -= tokens
        else:
            self._low_tokens -= tokens

    def _end_prefill(self, ticket: Ticket) -> None:
        if ticket.lane_index >= STANDARD:
            (self._yielding_standard if ticket.lane_index < BATCH else self._yielding_batch).discard(ticket)
        if ticket.lane_index % 2:
            self._long_prefills -= 1

    def _leave(self, ticket: Ticket, lane: Lane, now: float) -> None:
        """A waiting ticket gives up its place."""
        lane.drop(ticket, now)
        self._count_waiting(lane.index, -1)

    def _count_waiting(self, lane_index: int, change: int) -> None:
        self._waiting += change
        if lane_index >= BATCH:
            self._waiting_batch += change


def _lane_index(order: Order) -> int:
    tier = order.service_tier
    index = PRIORITY if tier == "priority" else STANDARD if tier == "standard" else BATCH
    return index + 1 if order.context_tier == "long" else index


NO_CHANGES: Final = Changes()  # shared: nothing is ever put into it
