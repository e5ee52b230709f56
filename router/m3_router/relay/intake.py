"""What one request is and what it may cost, from its body to the moment in which it may ask for a place.

Owns what is found out about the request before anything is held for it: its view, its pool, its chain, its quote. Asks
a worker for the exact number of tokens where the price hangs on it, and the moderation where there is one; both may
take a while, during which the client can leave (`cancel`).

    parse -> route -> entitled tier -> estimate -> quote -> (count) -> ceilings, plan -> (moderate) -> owner.taken_in
"""

import asyncio
from abc import abstractmethod

from mypy_extensions import mypyc_attr, trait

from m3_router.bodies.dialects import Dialect
from m3_router.bodies.request import RequestView, parse
from m3_router.bodies.texts import request_text
from m3_router.config import ServiceTier
from m3_router.errors import Refusal, no_worker
from m3_router.http.messages import Request
from m3_router.money.bill import Bill
from m3_router.money.estimates import Interval, bounds, exact
from m3_router.money.prices import Quote
from m3_router.placement.placement import Want
from m3_router.placement.pools import Pool
from m3_router.placement.prefix import chain
from m3_router.relay.caller import Caller
from m3_router.relay.moderation import Moderator
from m3_router.relay.outbound import body_for
from m3_router.relay.services import Services, is_request_id
from m3_router.workers.workers import Worker


@trait
class IntakeOwner:
    """Whose request it is. One of the two is called, once, unless the intake is cancelled."""

    __slots__ = ()

    @abstractmethod
    def taken_in(self) -> None:
        """All is known, and nobody has anything against it."""

    @abstractmethod
    def not_taken_in(self, refusal: Refusal) -> None:
        """Somebody has."""


@mypyc_attr(free_list_len=1)
class Intake:
    """One request on its way in. view, pool, tier and chain are there once it was understood; interval and quote once
    it was priced (not for what is free)."""

    __slots__ = (
        "_bill",
        "_body",
        "_caller",
        "_dialect",
        "_is_cancelled",
        "_is_counted",
        "_owner",
        "_question",
        "_services",
        "chain",
        "interval",
        "model",
        "pool",
        "quote",
        "tier",
        "view",
    )

    def __init__(
        self,
        owner: IntakeOwner,
        services: Services,
        body: bytes,
        caller: Caller,
        *,
        dialect: Dialect,
        bill: Bill,
    ) -> None:
        self._owner: IntakeOwner | None = owner
        self._services = services
        self._body = body
        self._caller = caller
        self._dialect = dialect
        self._bill = bill
        self._is_cancelled = self._is_counted = False
        self._question: asyncio.Task[None] | None = None  # to the moderation
        self.view: RequestView | None = None
        self.pool: Pool | None = None
        self.model = ""  # by its name in the configuration
        self.tier: ServiceTier = "standard"
        self.chain: list[int] = []
        self.interval: Interval | None = None
        self.quote: Quote | None = None

    def begin(self) -> None:
        """Understand the request, and ask whom there is to ask."""
        try:
            self._understand()
        except Refusal as refusal:
            self._refuse(refusal)

    def cancel(self) -> None:
        """The client has left: nobody is called any more."""
        self._is_cancelled = True
        self._owner = None  # who has us: a cycle would have to wait for the collector
        if self._question is not None:
            self._question.cancel()

    def session(self) -> str:
        """What the client says belongs together."""
        view = self.view
        session = self._caller.session or ((view.session or "") if view is not None else "")
        return f"{self._caller.tenant.name} {session}" if session else ""

    def want(self, tried: tuple[Worker, ...], now: float, *, is_long: bool) -> Want:
        """What placement has to know of it. tried: workers that have failed it."""
        chain, interval, pool = self.chain, self.interval, self.pool
        affinity = None if pool is None else pool.affinity
        if interval is None:
            return Want(0, tried=tried, tie=self._services.request_ids.given)
        if affinity is None or not chain:
            return Want(interval.likely, is_long=is_long, tried=tried, tie=self._services.request_ids.given)
        session = self.session()
        return Want(
            interval.likely,
            block_tokens=interval.likely / len(chain),
            matches=affinity.match(chain),
            is_long=is_long,
            tried=tried,
            pinned_slot=affinity.pinned(session, now) if session else -1,
            tie=chain[0],
        )

    def _understand(self) -> None:
        services, caller, bill = self._services, self._caller, self._bill
        dialect, tenant = self._dialect, caller.tenant
        view = self.view = parse(dialect, self._body)
        self._body = b""  # the view has it
        bill.model = view.model
        bill.stream = view.is_stream
        route = services.pools.route(view.model)
        model = self.model = bill.model = route.model
        if services.block_bytes and not dialect.is_free:
            self.chain = chain(dialect.name, view.fields, caller.seed(model), services.block_bytes)
        pool = self.pool = route.pool(self.chain[0] if self.chain else services.request_ids.given)
        bill.pool = pool.name
        view.check_fits(pool.max_context_tokens)
        self.tier = tenant.entitled_tier(view.service_tier, dialect.is_anthropic)
        if not pool.workers.ready and (dialect.is_free or not pool.holds_when_empty):
            raise no_worker(view.model)
        view.body = body_for(pool, view, model, self.tier)
        if dialect.is_free:
            self._admit()
            return
        bill.service_tier = self.tier
        tokens = view.prompt_tokens
        if tokens is not None:
            self._price(exact(tokens))
        else:
            bill.text_bytes, bill.media_items = view.text_bytes, view.media_items  # to learn from
            self._price(services.estimates.interval(model, view.text_bytes, view.media_items))

    def _price(self, interval: Interval) -> None:
        """What it may cost; where that hangs on the exact number of tokens, a worker is asked for it once."""
        services, view, pool, ceilings = self._services, self.view, self.pool, self._caller.ceilings
        assert view is not None and pool is not None  # noqa: S101, PT018 - _understand has set both
        self.interval = interval
        quote = self.quote = self._quote(view, pool, interval)
        is_open = interval.low != interval.high and not self._is_counted
        if is_open and ceilings is not None and not quote.needs_exact:
            widest = bounds(view.text_bytes, view.media_items)
            needs_exact = ceilings.wants_exact(self._quote(view, pool, widest))
        else:
            needs_exact = quote.needs_exact
        if is_open and needs_exact and pool.workers.ready:  # while nobody can count, the upper bound holds
            self._is_counted = True
            ready = pool.workers.ready
            services.counts.count(self._dialect, view, ready[services.request_ids.given % len(ready)], self._counted)
        else:
            self._allow(quote, view)

    def _quote(self, view: RequestView, pool: Pool, interval: Interval) -> Quote:
        limit = pool.max_context_tokens
        output_tokens = limit if view.max_tokens is None or view.max_tokens > limit else view.max_tokens
        return self._services.prices.quote(
            self.model,
            self.tier,
            interval.low,
            interval.likely,
            interval.high,
            output_tokens * view.choices,
            self._bill.time,
        )

    def _counted(self, tokens: int | None) -> None:
        """A worker has counted the input tokens, or could not: then the upper bound holds."""
        if self._is_cancelled or self.quote is None or self.view is None:
            return
        try:
            if tokens is None:
                self._allow(self.quote, self.view)
            else:
                self._price(exact(tokens))
        except Refusal as refusal:
            self._refuse(refusal)

    def _allow(self, quote: Quote, view: RequestView) -> None:
        """What the client, the plan and the moderation have against it."""
        services, caller, bill = self._services, self._caller, self._bill
        if caller.ceilings is not None:
            caller.ceilings.check(quote)
        caller.tenant.check_context(quote.low_tokens)
        bill.context_tier = quote.context_tier_high
        bill.quoted_nanousd = quote.cost_high_nanousd
        moderator = services.moderator
        if moderator is not None and moderator.covers("request"):
            self._question = services.loop.create_task(self._moderate(moderator, view))
        else:
            self._admit()

    async def _moderate(self, moderator: Moderator, view: RequestView) -> None:
        verdict = await moderator.check("request", self.model, request_text(view.body))
        if self._is_cancelled:
            return
        if verdict.is_allowed:
            self._admit()
        else:
            self._refuse(verdict.refusal("request"))

    def _admit(self) -> None:
        owner = self._owner
        if owner is not None:
            owner.taken_in()

    def _refuse(self, refusal: Refusal) -> None:
        owner = self._owner
        if owner is not None:
            owner.not_taken_in(refusal)


def open_bill(services: Services, request: Request | None) -> Bill:
    """A bill with what the head of a request says."""
    if request is None:
        return Bill(services.wall_clock(), services.request_ids.next(), "")
    given = request.head.known.get(b"x-request-id")
    caller = request.context
    bill = Bill(
        services.wall_clock(),
        given.decode() if given is not None and is_request_id(given) else services.request_ids.next(),
        request.path_text,
    )
    if isinstance(caller, Caller):
        bill.tenant = caller.tenant.name
        bill.dialect = "" if caller.dialect is None else caller.dialect.name
    return bill
