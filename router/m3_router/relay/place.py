"""What one request holds while it is served: a part of its tenant's quota, and a place in a lane of its pool.

Owns both from the moment they are asked for until they are given back, once. Who waits and who goes next is `lanes`',
what a tenant may use is `quotas`'; this is the request's end of them.
"""

from typing import Final

from mypy_extensions import mypyc_attr

from m3_router.bodies.request import RequestView
from m3_router.errors import Refusal, at_capacity, no_worker
from m3_router.lanes.lanes import QueueFullError
from m3_router.lanes.tickets import Order, Ticket
from m3_router.money.bill import Bill, Usage
from m3_router.placement.pools import Pool
from m3_router.relay.intake import Intake
from m3_router.relay.services import Services
from m3_router.tenants.quotas import Reservation, reserved_tokens
from m3_router.tenants.tenants import Tenant
from m3_router.workers.workers import Charge

# Held in the lane for the answer of a request that does not say how long it may be, or says more than answers are.
MAX_OUTPUT_CHARGE_TOKENS: Final = 4096


@mypyc_attr(free_list_len=1)
class Place:
    """One request's. What is free holds nothing, and is never asked for a place."""

    __slots__ = ("_bill", "_has_waited_again", "_pool", "_reservation", "_services", "_tenant", "_ticket", "charge")

    def __init__(self, services: Services, tenant: Tenant, bill: Bill) -> None:
        self._services = services
        self._tenant = tenant
        self._bill = bill
        self._pool: Pool | None = None
        self._reservation: Reservation | None = None
        self._ticket: Ticket | None = None
        self._has_waited_again = False  # for a worker, after the last one there was had failed
        self.charge = Charge(0, 0)  # what it is to its worker

    @property
    def is_admitted(self) -> bool:
        """Whether the request may be sent."""
        return self._ticket is not None and self._ticket.state == "admitted"

    @property
    def is_waiting(self) -> bool:
        """Whether it waits in its lane: not yet admitted, or put back."""
        return self._ticket is not None and self._ticket.state == "waiting"

    @property
    def is_lost(self) -> bool:
        """Whether it was put back, so that what comes of its worker comes too late."""
        return self._ticket is not None and self._ticket.state != "admitted"

    def take(self, intake: Intake, view: RequestView, pool: Pool, deadline: float | None, holder: object) -> bool:
        """Take a part of the quota and ask for a place; returns whether there is one at once. Raises Refusal (429).

        deadline: when the first byte is wanted, if the client says so. holder: is told what becomes of the place.
        """
        services, bill, tenant = self._services, self._bill, self._tenant
        quote, interval = intake.quote, intake.interval
        assert quote is not None and interval is not None  # noqa: S101, PT018 - what is not free was priced
        now = services.clock()
        tokens = reserved_tokens(interval.high, view.max_tokens, view.choices)
        self._reservation = tenant.quota.reserve(tokens, quote.cost_high_nanousd, bill.time, now)
        output_tokens = MAX_OUTPUT_CHARGE_TOKENS
        if view.max_tokens is not None and view.max_tokens < output_tokens:
            output_tokens = view.max_tokens
        output_tokens *= view.choices
        context_tier = quote.context_tier_high
        self.charge = Charge(interval.likely, output_tokens, context_tier == "long")
        order = Order(
            intake.tier,
            context_tier,
            tenant=tenant.name,
            weight=tenant.weight,
            tokens=min(interval.high + output_tokens, pool.max_context_tokens),
            weighted_tokens=quote.weighted_tokens,
            deadline=deadline,
            holder=holder,
        )
        self._pool = pool
        try:
            ticket = self._ticket = pool.lanes.offer(order, now)
        except QueueFullError as full:
            raise at_capacity(str(full), full.retry_after_seconds) from full
        finally:
            services.follow(pool)
        return ticket.state == "admitted"

    def wait_for_worker(self, now: float) -> bool:
        """No worker is ready. Returns whether the request waits in its lane again, until one is."""
        ticket, pool = self._ticket, self._pool
        if ticket is None or pool is None or not pool.lanes.is_held:
            return False
        if ticket.state == "admitted" and not ticket.has_first_byte:
            pool.lanes.put_back(ticket, now)
        return ticket.state == "waiting"

    def wait_again(self, now: float) -> bool:
        """The last worker has failed the request. Returns whether it waits for the next one.

        Once: a request that takes its worker down with it must not take down each that comes.
        """
        if self._has_waited_again or not self.wait_for_worker(now):
            return False
        self._has_waited_again = True
        return True

    def why_expired(self, model: str, retry_after_seconds: int) -> Refusal:
        """What a client is told whose wait was too long, for a worker or for room."""
        if self._pool is not None and self._pool.lanes.is_held:
            return no_worker(model)
        return at_capacity("no place became free in time", retry_after_seconds)

    def first_byte(self, now: float) -> None:
        """The answer has begun: nobody may put this request back any more."""
        if self._ticket is not None and self._pool is not None:
            self._pool.lanes.first_byte(self._ticket, now)
            self._services.follow(self._pool)

    def give_back(self, now: float, estimate: Usage | None) -> None:
        """Everything; the bill is settled. estimate: of one that will be settled later."""
        bill, services = self._bill, self._services
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            quota = self._tenant.quota
            if estimate is not None:
                tier = bill.service_tier or "standard"
                _, cost_nanousd = services.prices.cost(bill.model, tier, estimate, bill.time)
                quota.settle(reservation, estimate.input_tokens + estimate.output_tokens, cost_nanousd)
            elif bill.attempts:
                quota.settle(reservation, bill.input_tokens + bill.output_tokens, bill.cost_nanousd)
            else:
                quota.release(reservation)
        ticket, pool = self._ticket, self._pool
        if ticket is None or pool is None:
            return
        ticket.holder = ticket.order.holder = None
        if ticket.state == "admitted":
            # Without a flow, nobody else waited when it was let in: there is no counter to be put right.
            pool.lanes.release(ticket, now, None if ticket.flow is None else self._weighted_tokens())
        elif ticket.state == "waiting":
            pool.lanes.cancel(ticket, now)
        services.follow(pool)

    def _weighted_tokens(self) -> int | None:
        """What the request has cost, as the lanes count it; None where it is not known, and the estimate stands."""
        bill = self._bill
        if not bill.cost_nanousd:
            return None
        usage = Usage(bill.input_tokens, bill.cached_tokens, bill.cache_write_tokens, bill.output_tokens)
        return self._services.prices.weighted_tokens(bill.model, usage, bill.cost_nanousd, bill.time)
