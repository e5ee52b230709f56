"""What waits: the order of a request, the ticket it gets, and the line of one tenant's tickets.

Owns what these know of themselves. Decides nothing, and holds no bound: `fair_queue` moves them inside a lane, `lanes`
between its states.
"""

import math
from collections.abc import Iterator
from typing import Literal

from mypy_extensions import mypyc_attr

from m3_router.config import ContextTier, ServiceTier

State = Literal["waiting", "admitted", "released", "expired", "cancelled"]


@mypyc_attr(free_list_len=1)
class Order:
    """What a request asks of the lanes.

    tokens: held from admission to release, at most. weighted_tokens: what it is expected to cost, for shares between
    tenants. deadline: when its first byte is due (same clock as `now`). `holder` is the caller's; nobody here looks at
    it.
    """

    __slots__ = ("context_tier", "deadline", "holder", "service_tier", "tenant", "tokens", "weight", "weighted_tokens")

    def __init__(
        self,
        service_tier: ServiceTier,
        context_tier: ContextTier,
        *,
        tenant: str,
        weight: float,
        tokens: int,
        weighted_tokens: int,
        deadline: float | None = None,
        holder: object = None,
    ) -> None:
        self.service_tier: ServiceTier = service_tier
        self.context_tier: ContextTier = context_tier
        self.tenant = tenant
        self.weight = weight
        self.tokens = tokens
        self.weighted_tokens = weighted_tokens
        self.deadline = deadline
        self.holder = holder


@mypyc_attr(free_list_len=1)
class Ticket:
    """One request's place, from offer to end. `number` counts offers: the lower one came first."""

    __slots__ = (
        "admitted_at",
        "charge",
        "flow",
        "has_first_byte",
        "holder",
        "lane_index",
        "number",
        "offered_at",
        "order",
        "preemptions",
        "state",
        "tokens",
    )

    def __init__(self, order: Order, lane_index: int, number: int, now: float) -> None:
        self.order = order
        self.lane_index = lane_index
        self.number = number
        self.tokens = order.tokens
        self.holder = order.holder
        self.offered_at = now
        self.admitted_at = now  # of the newest admission, while it is admitted
        self.has_first_byte = False
        self.preemptions = 0
        self.state: State = "waiting"
        self.flow: Flow | None = None  # whose counter has `charge`; None: admitted while nobody else waited
        self.charge = 0

    def __repr__(self) -> str:
        order = self.order
        return (
            f"<Ticket {self.number} {order.service_tier}/{order.context_tier} of {order.tenant}, "
            f"{self.tokens} tokens, {self.state}>"
        )


class Line:
    """Tickets by their numbers. A sorted list: who is put back finds its old place, and a queue is short."""

    __slots__ = ("_tickets",)

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    @property
    def first(self) -> Ticket:
        """Who came first. Raises IndexError if nobody is there."""
        return self._tickets[0]

    @property
    def last(self) -> Ticket:
        """Who came last. Raises IndexError if nobody is there."""
        return self._tickets[-1]

    def add(self, ticket: Ticket) -> None:
        """Put a ticket in its place."""
        tickets = self._tickets
        if not tickets or tickets[-1].number < ticket.number:
            tickets.append(ticket)
        else:
            tickets.insert(self._place(ticket.number), ticket)

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out. Raises ValueError if it is not there."""
        place = self._place(ticket.number)
        if place == len(self._tickets) or self._tickets[place] is not ticket:
            raise ValueError(f"{ticket!r} does not wait here")
        del self._tickets[place]

    def _place(self, number: int) -> int:
        tickets = self._tickets
        low, high = 0, len(tickets)
        while low < high:
            middle = (low + high) // 2
            if tickets[middle].number < number:
                low = middle + 1
            else:
                high = middle
        return low


class Flow:
    """One tenant in one lane. `weight` and `virtual` (its counter) are in the units of `fair_queue`."""

    __slots__ = ("dated", "due", "line", "tenant", "virtual", "weight")

    def __init__(self, tenant: str, weight: int) -> None:
        self.tenant = tenant
        self.weight = weight
        self.virtual = 0
        self.line = Line()
        self.dated: list[tuple[float, int, Ticket]] = []  # deadline, number: those in `line` that still have one
        self.due = math.inf  # the first of those deadlines
