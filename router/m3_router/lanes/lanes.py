"""Who waits for a pool, and who goes next: six lanes over one bound of tokens in flight.

A lane is a service tier (priority, standard, batch) x a context tier (standard, here called short; long). Owns the
tickets of one pool from offer to end. Pure: time comes in as `now`, and what a method does to tickets other than its
own is told by `changes`; the caller wakes their holders. A ticket goes one way, but for a preemption:

                 .-- preempted, before the first byte --.
                 v                                      |
    offer --> waiting ------------------------------> admitted --> released
                 |--> expired
                 '--> cancelled

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
(6) Between the lanes of one tier the older ticket goes first; inside a lane, see `fair_queue`. Where a lane's queue is
    full, a place in it is for the tenant that has fewer of them for its weight.

While no worker is ready, and the pool holds requests then (`hold_seconds`), nobody goes: all wait, each for so long at
most, and go by these rules in the moment in which there is a worker. The longest wait of a lane counts from there.
"""

from typing import Final

from m3_router.config import ContextTier, ServiceTier
from m3_router.lanes.in_flight import InFlight
from m3_router.lanes.lane import BATCH, PRIORITY, STANDARD, Lane, LaneBounds, LaneSnapshot
from m3_router.lanes.tickets import Order, Ticket

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
        self.expired: list[Ticket] = []  # waited too long, or in a full queue in the place of another tenant's
        self.preempted: list[Ticket] = []


class Lanes:
    """The lanes of one pool."""

    __slots__ = (
        "_bounds",
        "_changes",
        "_claimant",
        "_held_since",
        "_in_flight",
        "_lanes",
        "_offers",
        "_saved_tokens",
        "_waiting",
        "_waiting_batch",
        "has_changes",
        "is_held",
    )

    def __init__(self, bounds: LaneBounds, now: float) -> None:
        self._bounds = bounds
        self._in_flight = InFlight(bounds)
        # Invariant after every method: no ticket that the rules would admit is still waiting, as of the last `now`.
        self._lanes = [Lane(index, bounds) for index in range(len(LANES))]
        self._offers = 0
        self._waiting = self._waiting_batch = 0  # tickets: in all lanes, in those of batch
        # The long ticket that saves, and what it has saved of the room that there is.
        self._claimant: Ticket | None = None
        self._saved_tokens = 0
        self._changes = Changes()
        self.has_changes = False
        # No worker is ready, and requests wait for one; of the last `set_workers`.
        self.is_held = False
        self._held_since = now
        if bounds.hold_seconds > 0:
            self._hold(now)

    # ---- what happens to a ticket

    def offer(self, order: Order, now: float) -> Ticket:
        """Ask for a place. Returns a ticket that is admitted, or waits. Raises QueueFullError, ValueError.

        order.tokens: never more than the standard share, or it might wait for ever. Others may have been put back for
        it, let in before it, or (the queue being full of another tenant's) expired: see `changes`, also after
        QueueFullError.
        """
        share_tokens = self._bounds.standard_share_tokens
        if not 0 <= order.tokens <= share_tokens:
            raise ValueError(f"{order.tokens} tokens are not between 0 and the standard share {share_tokens}")
        index = _lane_index(order)
        lane = self._lanes[index]
        in_flight = self._in_flight
        self._offers += 1
        ticket = Ticket(order, index, self._offers, now)
        if (  # the usual case: nobody to compare with, for batch does not count, and it fits
            (self._waiting == 0 or (self._waiting == self._waiting_batch and index < BATCH))
            and not self.is_held
            and order.tokens <= (in_flight.room if index < STANDARD else in_flight.low_room) - self._saved_tokens
            and (not lane.is_long or in_flight.places > 0)
        ):
            self._start(ticket, lane, now, True)
            return ticket
        lane.enter(ticket, now)
        self._count_waiting(index, 1)
        self._settle(now, ticket)
        if ticket.state == "waiting" and len(lane.queue) > lane.queue_requests:
            self._refuse_one(ticket, lane, now)
        return ticket

    def first_byte(self, ticket: Ticket, now: float) -> None:
        """The answer of an admitted request has begun: from now on it keeps its place. A second call does nothing."""
        if ticket.state != "admitted":
            raise ValueError(f"only an admitted ticket can have its first byte, not {ticket!r}")
        if ticket.has_first_byte:
            return
        ticket.has_first_byte = True
        self._in_flight.end_prefill(ticket)
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

    def put_back(self, ticket: Ticket, now: float) -> None:
        """An admitted request has found no worker: it waits again where it waited before. Only while `is_held`."""
        if not self.is_held or ticket.state != "admitted" or ticket.has_first_byte:
            raise ValueError(f"{ticket!r} cannot wait for a worker")
        self._put_back(ticket, now)

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
            while lane.is_waiting and self._has_waited_too_long(lane.queue.oldest, lane, now):
                self._expire(lane.queue.oldest, lane, now)
            lane.queue.forget()
        self._settle(now, None)

    def set_workers(self, ready: int, now: float) -> None:
        """How many workers are ready: that many times `long_prefills_per_worker` long requests may be prefilled.

        With none, and `hold_seconds`, everybody waits for one.
        """
        self._in_flight.long_prefill_limit = ready * self._bounds.long_prefills_per_worker
        is_held = ready == 0 and self._bounds.hold_seconds > 0
        if is_held and not self.is_held:
            self._hold(now)
        elif self.is_held and not is_held:
            self._open(now)
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

    @property
    def standard_share_tokens(self) -> int:
        """What standard and batch may hold together."""
        return self._bounds.standard_share_tokens

    def waiting(self, service_tier: ServiceTier, context_tier: ContextTier) -> int:
        """How many requests wait in a lane."""
        return len(self._lanes[LANES.index((service_tier, context_tier))].queue)

    @property
    def waiting_for_worker(self) -> int:
        """How many requests wait because no worker is ready."""
        return self._waiting if self.is_held else 0

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
        self._in_flight.check()
        if not 0 <= self._saved_tokens <= self._in_flight.room:
            raise AssertionError(f"{self._saved_tokens} tokens are saved of less room in {self!r}")
        if self._waiting != sum(len(lane.queue) for lane in self._lanes):
            raise AssertionError(f"{self._waiting} waiting requests are counted in {self!r}")
        if self._waiting_batch != sum(len(lane.queue) for lane in self._lanes[BATCH:]):
            raise AssertionError(f"{self._waiting_batch} waiting batch requests are counted in {self!r}")
        for lane in self._lanes:
            lane.queue.check()
            new = sum(ticket.preemptions == 0 for ticket in lane.queue)
            if new > lane.queue_requests or any(ticket.lane_index != lane.index for ticket in lane.queue):
                raise AssertionError(f"{lane!r} holds {list(lane.queue)}")

    def __repr__(self) -> str:
        return f"<Lanes {self._lanes}, {self._in_flight}>"

    # ---- who goes next

    def _settle(self, now: float, own: Ticket | None) -> None:
        """Admit all that the rules admit. own: the ticket whose fate its caller sees for himself."""
        while self._waiting and not self.is_held:
            ticket = self._next(now)
            if ticket is None:
                return
            lane = self._lanes[ticket.lane_index]
            is_aged = lane.is_aged(now)
            lane.take(ticket, now)
            self._count_waiting(ticket.lane_index, -1)
            self._start(ticket, lane, now, not is_aged)
            if ticket is not own:
                self._changes.admitted.append(ticket)
                self.has_changes = True
        self._claimant = None
        self._saved_tokens = 0

    def _next(self, now: float) -> Ticket | None:
        """The ticket that the rules admit next, if one fits now. Who was in its way has been put back."""
        room, low_room = self._in_flight.room, self._in_flight.low_room
        places = self._in_flight.places
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
            if ticket.tokens <= low_room or self._make_room(ticket, low_room, places, now):
                return ticket
            return self._next_of_tier(PRIORITY, min(room, self._in_flight.reserved_room), places, now)
        for tier in (PRIORITY, STANDARD):
            tier_room = room if tier == PRIORITY else low_room
            next_ticket = self._next_of_tier(tier, tier_room, places, now)
            if next_ticket is None:
                next_ticket = self._next_by_preemption(tier, tier_room, places, now)
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

    # ---- preemption

    def _next_by_preemption(self, tier: int, room: int, places: int, now: float) -> Ticket | None:
        """A tier's next ticket (the long one if no short one waits), if it fits now that others have been put back."""
        short, long = self._lanes[tier], self._lanes[tier + 1]
        lane = short if short.is_waiting else long
        if lane.is_waiting:
            ticket = lane.queue.next(now)
            if self._make_room(ticket, room, places, now):
                return ticket
        return None

    def _make_room(self, ticket: Ticket, room: int, places: int, now: float) -> bool:
        """Put back some of lower tiers, if `ticket` fits then. room, places: what is left for it, beside a claim."""
        if not self._bounds.preemption:
            return False
        if ticket is self._claimant:
            room += self._saved_tokens
            places += 1
        missing_places = 1 - places if ticket.lane_index % 2 else 0
        victims = self._in_flight.victims(ticket.lane_index, ticket.tokens - room, missing_places, now)
        for victim in victims:
            self._put_back(victim, now)
            self._changes.preempted.append(victim)
            self.has_changes = True
        return len(victims) > 0

    def _put_back(self, ticket: Ticket, now: float) -> None:
        lane = self._lanes[ticket.lane_index]
        self._stop(ticket, lane)
        ticket.state = "waiting"
        ticket.preemptions += 1
        lane.enter_again(ticket, now)
        self._count_waiting(ticket.lane_index, 1)

    # ---- without a worker

    def _hold(self, now: float) -> None:
        self.is_held = True
        self._held_since = now
        self._claimant = None
        self._saved_tokens = 0
        for lane in self._lanes:
            lane.hold(now)

    def _open(self, now: float) -> None:
        self.is_held = False
        for lane in self._lanes:
            lane.open(now)

    def _has_waited_too_long(self, ticket: Ticket, lane: Lane, now: float) -> bool:
        if self.is_held:
            return now - max(ticket.offered_at, self._held_since) >= self._bounds.hold_seconds
        return now - ticket.offered_at >= lane.max_wait_seconds

    # ---- counts

    def _refuse_one(self, newcomer: Ticket, lane: Lane, now: float) -> None:
        """One too many waits. Raises QueueFullError if it is the newcomer; else another one's wait is over."""
        last = lane.queue.too_many(newcomer)
        if last is not newcomer:
            self._expire(last, lane, now)
            self._settle(now, newcomer)
            return
        self._leave(newcomer, lane, now)
        newcomer.state = "cancelled"
        lane.refused += 1
        self._settle(now, None)
        raise QueueFullError(lane, lane.retry_after_seconds(newcomer.order, now))

    def _expire(self, ticket: Ticket, lane: Lane, now: float) -> None:
        self._leave(ticket, lane, now)
        ticket.state = "expired"
        lane.expired += 1
        self._changes.expired.append(ticket)
        self.has_changes = True

    def _start(self, ticket: Ticket, lane: Lane, now: float, may_yield: bool) -> None:
        """A ticket is admitted."""
        ticket.state = "admitted"
        ticket.admitted_at = now
        lane.in_flight += 1
        lane.in_flight_tokens += ticket.tokens
        self._in_flight.start(ticket, may_yield)

    def _stop(self, ticket: Ticket, lane: Lane) -> None:
        """An admitted ticket gives back what it holds."""
        lane.in_flight -= 1
        lane.in_flight_tokens -= ticket.tokens
        self._in_flight.stop(ticket)

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
