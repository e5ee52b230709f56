"""One lane's queue: who of the tenants that wait goes next.

Owns the tickets that wait in a lane and the tenants' counters; knows nothing of room, bounds or other lanes. Each
tenant has one counter of virtual time: what it was given, in weighted tokens, divided by its weight. The tenant whose
counter is lowest goes next, and inside a tenant the request that came first:

    tenant a, weight 2   |=====|=====|            counter 10: next, for both have waited all the time
    tenant b, weight 1   |==========|====|        counter 15

This is start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996) with the lift of VTC (Sheng et al.: OSDI 2024): who
comes back from idling starts at the lowest counter of those that wait, so it can save up nothing, and cannot overtake
the ticket whose turn it is. The counters of two tenants that both wait all the time are apart by at most the largest
request of each, divided by its weight, both added up. What a request costs is estimated when it is taken and put right
when it is released.

Deadlines (where the lane has them): the earliest one that is not missed yet goes first, if its tenant's counter is at
most the mean of the waiting tenants' counters, each counted by its weight: the level at which all would be, had they
shared exactly. So a tenant that states deadlines is at most one request ahead of its fair share, and never gets more.
"""

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final

from m3_router.lanes.tickets import Flow, Line, Ticket

# Counters are integers, so that sums over tenants are exact: one weighted token is 1,000 units at weight 1.
_UNITS: Final = 1_000_000
_WEIGHT_UNITS: Final = 1_000
_SLACK: Final = 64  # entries or tenants that may be out of date before it is worth while to look for them


class FairQueue:
    """The tickets that wait in one lane."""

    __slots__ = (
        "_dated",
        "_flows",
        "_forget_at",
        "_has_deadlines",
        "_heap",
        "_line",
        "_reached",
        "_turn",
        "_weight",
        "_weighted_virtual",
        "waiting_tokens",
    )

    def __init__(self, has_deadlines: bool) -> None:
        self._has_deadlines = has_deadlines
        self._line = Line()  # of all tenants
        self.waiting_tokens = 0
        self._flows: dict[str, Flow] = {}
        self._dated: dict[str, Flow] = {}  # those with a deadline among their tickets
        # (counter, number, flow): every flow that waits has an entry with its present counter; others are out of date.
        self._heap: list[tuple[int, int, Flow]] = []
        self._turn: Ticket | None = None  # the answer of `next`, while nothing changes
        self._reached = 0  # the highest counter that was ever next
        # Over the flows that wait: their weights, and weight x counter.
        self._weight = 0
        self._weighted_virtual = 0
        self._forget_at = _SLACK

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._line)

    @property
    def oldest(self) -> Ticket:
        """Who was offered first of all tenants. Raises IndexError if nobody waits."""
        return self._line.first

    def next(self, now: float) -> Ticket:
        """Whose turn it is; it stays in the queue. Raises IndexError if nobody waits."""
        turn = self._turn
        if turn is None or (self._dated and turn.order.deadline is not None and turn.order.deadline <= now):
            turn = self._due(now) if self._dated else None
            if turn is None:
                turn = self._lowest().line.first
            self._turn = turn
        return turn

    def too_many(self, newcomer: Ticket) -> Ticket:
        """Who gives up a place if one waits too many: the last of the tenant with the most for its weight.

        That is the newcomer itself, unless another tenant has more: so whoever floods the queue fills it for himself.
        """
        most = self._flows[newcomer.order.tenant]
        last = newcomer
        for flow in self._flows.values():
            if len(flow.line) * most.weight > len(most.line) * flow.weight:
                most = flow
                last = flow.line.last
        return last

    def add(self, ticket: Ticket) -> None:
        """A ticket begins to wait."""
        self._turn = None
        order = ticket.order
        weight = max(1, round(order.weight * _WEIGHT_UNITS))
        flow = self._flows.get(order.tenant)
        if flow is None:
            flow = self._flows[order.tenant] = Flow(order.tenant, weight)
        if len(flow.line) == 0:
            flow.weight = weight
            self._join(flow, ticket.number)
        elif flow.weight != weight:  # the plan was changed
            self._weight += weight - flow.weight
            self._weighted_virtual += (weight - flow.weight) * flow.virtual
            flow.weight = weight
        flow.line.add(ticket)
        self._line.add(ticket)
        self.waiting_tokens += ticket.tokens
        if self._has_deadlines and order.deadline is not None:
            insort(flow.dated, (order.deadline, ticket.number, ticket))
            self._set_due(flow)

    def take(self, ticket: Ticket) -> None:
        """A ticket stops waiting because it is admitted: its tenant is charged the estimate."""
        flow = self._flows[ticket.order.tenant]
        self._reached = max(self._reached, flow.virtual)
        self._remove(flow, ticket)
        ticket.flow = flow
        ticket.charge = _charge(ticket.order.weighted_tokens, flow.weight)
        self._move(flow, ticket.charge)

    def drop(self, ticket: Ticket) -> None:
        """A ticket stops waiting because it is cancelled or expired: that costs nothing."""
        self._remove(self._flows[ticket.order.tenant], ticket)

    def put_back(self, ticket: Ticket) -> None:
        """A ticket that was taken waits again, at its old place: what its tenant was charged is given back."""
        if self._knows(ticket) and ticket.flow is not None:
            self._move(ticket.flow, -ticket.charge)
        ticket.flow = None
        ticket.charge = 0
        self.add(ticket)

    def correct(self, ticket: Ticket, weighted_tokens: int) -> None:
        """A ticket that was taken has cost `weighted_tokens` in truth."""
        if self._knows(ticket) and ticket.flow is not None:
            charge = _charge(weighted_tokens, ticket.flow.weight)
            self._move(ticket.flow, charge - ticket.charge)
            ticket.charge = charge

    def forget(self) -> None:
        """Drop the counters that no longer matter; to be called now and then.

        Where nobody waits, there was enough for all, and nobody owes anybody anything. Else a tenant that does not wait
        matters as long as its counter is above the lowest: it would be lifted to that one anyway.
        """
        if len(self._line) == 0:
            if self._flows:
                self._flows.clear()
                self._heap.clear()
                self._reached = 0
                self._forget_at = _SLACK
        elif len(self._flows) > self._forget_at:
            lowest = self._lowest().virtual
            for flow in list(self._flows.values()):
                if len(flow.line) == 0 and flow.virtual <= lowest:
                    del self._flows[flow.tenant]
            self._forget_at = 2 * len(self._flows) + _SLACK

    def check(self) -> None:
        """Raise AssertionError if a count is wrong or a ticket is in the wrong place."""
        waiting = [flow for flow in self._flows.values() if len(flow.line)]
        in_flows = sorted(ticket.number for flow in waiting for ticket in flow.line)
        entries = {(virtual, flow.tenant) for virtual, _, flow in self._heap}
        if in_flows != [ticket.number for ticket in self._line] or any(t.state != "waiting" for t in self._line):
            raise AssertionError(f"{self!r} holds {list(self._line)} and its flows {in_flows}")
        if self.waiting_tokens != sum(ticket.tokens for ticket in self._line):
            raise AssertionError(f"{self.waiting_tokens} waiting tokens are counted in {self!r}")
        if any((flow.virtual, flow.tenant) not in entries for flow in waiting):
            raise AssertionError(f"a tenant that waits in {self!r} has no turn")
        weight, weighted = sum(f.weight for f in waiting), sum(f.weight * f.virtual for f in waiting)
        if (self._weight, self._weighted_virtual) != (weight, weighted):
            raise AssertionError(f"the sums {self._weight}, {self._weighted_virtual} of {self!r} are wrong")
        if {flow.tenant for flow in waiting if flow.dated} != set(self._dated):
            raise AssertionError(f"{set(self._dated)} are counted as having deadlines in {self!r}")

    def __repr__(self) -> str:
        flows = ", ".join(f"{f.tenant} {len(f.line)} at {f.virtual}" for f in self._flows.values())
        return f"<FairQueue {len(self)} waiting; {flows}>"

    def _lowest(self) -> Flow:
        """The flow that waits with the lowest counter; among equals, whose entry is of the earliest ticket."""
        heap = self._heap
        while True:
            virtual, _, flow = heap[0]
            if len(flow.line) and flow.virtual == virtual:
                return flow
            heapq.heappop(heap)

    def _due(self, now: float) -> Ticket | None:
        """The earliest deadline among the tenants that have had no more than their share."""
        best: Flow | None = None
        has_missed = False
        for flow in self._dated.values():
            if flow.due <= now:
                has_missed = True
            elif flow.virtual * self._weight <= self._weighted_virtual and (best is None or flow.due < best.due):
                best = flow
        if has_missed:
            self._drop_missed(now)
            return self._due(now)
        return None if best is None else best.dated[0][2]

    def _drop_missed(self, now: float) -> None:
        """What is late anyway counts as if it had no deadline: to hurry now would make the next ones late as well."""
        for flow in list(self._dated.values()):
            while flow.dated and flow.dated[0][0] <= now:
                del flow.dated[0]
            self._set_due(flow)

    def _set_due(self, flow: Flow) -> None:
        if flow.dated:
            flow.due = flow.dated[0][0]
            self._dated[flow.tenant] = flow
        else:
            flow.due = math.inf
            self._dated.pop(flow.tenant, None)

    def _join(self, flow: Flow, number: int) -> None:
        """A tenant begins to wait: lifted to the lowest of those that do, or to where the last one was taken."""
        flow.virtual = max(flow.virtual, self._lowest().virtual if len(self._line) else self._reached)
        self._weight += flow.weight
        self._weighted_virtual += flow.weight * flow.virtual
        self._push(flow, number)

    def _remove(self, flow: Flow, ticket: Ticket) -> None:
        self._turn = None
        flow.line.remove(ticket)
        self._line.remove(ticket)
        self.waiting_tokens -= ticket.tokens
        if flow.dated and ticket.order.deadline is not None:
            entry = (ticket.order.deadline, ticket.number, ticket)
            place = bisect_left(flow.dated, entry)
            if place < len(flow.dated) and flow.dated[place][2] is ticket:  # else it was missed
                del flow.dated[place]
                self._set_due(flow)
        if len(flow.line) == 0:
            self._weight -= flow.weight
            self._weighted_virtual -= flow.weight * flow.virtual

    def _move(self, flow: Flow, by: int) -> None:
        """A tenant's counter changes."""
        self._turn = None
        flow.virtual += by
        if len(flow.line):
            self._weighted_virtual += flow.weight * by
            self._push(flow, flow.line.first.number)

    def _push(self, flow: Flow, number: int) -> None:
        if len(self._heap) > 4 * len(self._flows) + _SLACK:
            self._heap = [(f.virtual, f.line.first.number, f) for f in self._flows.values() if len(f.line)]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (flow.virtual, number, flow))

    def _knows(self, ticket: Ticket) -> bool:
        """Whether the counter that the ticket was charged to still counts."""
        return ticket.flow is not None and self._flows.get(ticket.order.tenant) is ticket.flow


def _charge(weighted_tokens: int, weight: int) -> int:
    return max(1, weighted_tokens) * _UNITS // weight  # what costs nothing still takes a turn
