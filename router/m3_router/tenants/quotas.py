"""What a tenant may still use on this replica: reserved before a request is sent, settled when it has ended.

Owns the reservations and the set of quotas. Hot path: additions and comparisons, no clock, nobody is asked. Counting
one limit is `meters`, agreeing with other replicas `shared.leases`, wording `rate_limits`. What a request may use at
most is reserved; an answer that used more all the same is counted in full, and the next requests wait for it.
"""

from collections.abc import Callable, Mapping
from typing import Final

from mypy_extensions import mypyc_attr

from m3_router.config import NANOUSD_PER_USD, PlanSettings
from m3_router.errors import Refusal
from m3_router.tenants.meters import CLOCK_STEP_SECONDS, NANOUSD, REQUESTS, TOKENS, Meter, share_of
from m3_router.tenants.rate_limits import RateLimitHeaders, refusal

UNSTATED_OUTPUT_TOKENS: Final = 4096  # reserved for an answer whose length the client has not bounded
_REMEMBERED_COUNTS: Final = 32


def reserved_tokens(input_tokens: int, max_output_tokens: int | None, choices: int) -> int:
    """What to reserve for a request: all it may use, or a guess where it may use anything."""
    return input_tokens + choices * (UNSTATED_OUTPUT_TOKENS if max_output_tokens is None else max_output_tokens)


@mypyc_attr(free_list_len=1)
class Reservation:
    """What one request has taken from its tenant's quota, until it is settled or released."""

    __slots__ = ("is_open", "nanousd", "tokens", "wall")

    def __init__(self, tokens: int, nanousd: int, wall: float) -> None:
        self.tokens = tokens
        self.nanousd = nanousd
        self.wall = wall
        self.is_open = True


class Quota:
    """All limits of one tenant. A tenant without limits has one without meters."""

    __slots__ = (
        "_headers",
        "_not_before",
        "_quotas",
        "_turns_at",
        "is_hungry",
        "is_touched",
        "meters",
        "plan",
        "tenant",
    )

    def __init__(self, tenant: str, plan: PlanSettings, quotas: "Quotas") -> None:
        self.tenant = tenant
        self.plan = plan
        self.meters = _meters_of(plan)
        self._quotas = quotas
        self._headers = RateLimitHeaders()
        self._turns_at = self._not_before = 0.0  # both in the past: the first request opens the windows
        self.is_touched = False  # changed since the replicas last agreed
        self.is_hungry = False  # has used half of what it was given

    def reserve(self, tokens: int, nanousd: int, wall: float, now: float) -> Reservation:
        """Take what a request may use at most. Raises Refusal (429), and then takes nothing."""
        if wall >= self._turns_at or wall < self._not_before:
            self.turn(wall)
        if not self.meters:
            return Reservation(tokens, nanousd, wall)
        for meter in self.meters:
            unit = meter.unit
            amount = tokens if unit == TOKENS else (1 if unit == REQUESTS else nanousd)
            if meter.used + amount > meter.allowance:
                raise self._refusal(tokens, nanousd, wall, now)
        is_hungry = False
        for meter in self.meters:
            unit = meter.unit
            meter.used += tokens if unit == TOKENS else (1 if unit == REQUESTS else nanousd)
            if meter.used > meter.low_water:
                is_hungry = True
        if not self.is_touched or (is_hungry and not self.is_hungry):
            self._quotas.touch(self, is_hungry)
        return Reservation(tokens, nanousd, wall)

    def settle(self, reservation: Reservation, tokens: int, nanousd: int) -> None:
        """Put what was used in the place of what was reserved. Raises ValueError the second time."""
        self._close(reservation, tokens - reservation.tokens, nanousd - reservation.nanousd, 0)

    def release(self, reservation: Reservation) -> None:
        """Take it all back, the request too: it was never sent. Raises ValueError the second time."""
        self._close(reservation, -reservation.tokens, -reservation.nanousd, -1)

    def headers(self, is_anthropic: bool, wall: float) -> bytes:
        """The rate-limit header lines of an answer."""
        if wall >= self._turns_at or wall < self._not_before:
            self.turn(wall)
        return self._headers.lines(self.meters, wall, is_anthropic=is_anthropic)

    def turn(self, wall: float) -> None:
        """Open the windows of this moment, where others were open."""
        quotas = self._quotas
        for meter in self.meters:
            if not meter.is_current(wall):
                meter.turn(wall)
                meter.allow(quotas.share(meter))
        self._turns_at = min([meter.ends_at for meter in self.meters], default=float("inf"))
        starts_at = max([meter.starts_at for meter in self.meters], default=-float("inf"))
        self._not_before = starts_at - CLOCK_STEP_SECONDS

    @property
    def budget_period(self) -> str:
        """What the budget is for: day, month or total; "" where there is none."""
        return next((meter.period for meter in self.meters if meter.unit == NANOUSD), "")

    def begin_with(self, tokens_today: int, nanousd: int, wall: float) -> None:
        """What was used before this process began: in this UTC day, and in the budget's period."""
        self.turn(wall)
        for meter in self.meters:
            if meter.unit == NANOUSD:
                meter.used += nanousd
            elif meter.period == "day":
                meter.used += tokens_today

    def replan(self, plan: PlanSettings) -> None:
        """Other limits from now on. What was counted under a limit of the same kind stays."""
        self.plan = plan
        counted = {meter.name: meter for meter in self.meters}
        self.meters = []
        for fresh in _meters_of(plan):
            meter = counted.get(fresh.name, fresh)
            if meter.period != fresh.period:
                meter = fresh
            elif meter.limit != fresh.limit:
                meter.change_limit(fresh.limit, self._quotas.replicas)
            self.meters.append(meter)
        self._headers = RateLimitHeaders()
        self._turns_at = 0.0  # opens the windows of new meters

    def _close(self, reservation: Reservation, tokens: int, nanousd: int, requests: int) -> None:
        if not reservation.is_open:
            raise ValueError(f"a reservation of tenant {self.tenant!r} was closed before")
        reservation.is_open = False
        for meter in self.meters:
            if reservation.wall < meter.counts_from:
                continue  # it was counted in a window that has ended
            if meter.unit == TOKENS:
                meter.used += tokens
            elif meter.unit == NANOUSD:
                meter.used += nanousd
            elif meter.period == "now":
                meter.used -= 1
            else:
                meter.used += requests
        if self.meters and not self.is_touched:
            self._quotas.touch(self, False)

    def _refusal(self, tokens: int, nanousd: int, wall: float, now: float) -> Refusal:
        """That of the limit which holds the longest; and the others are noted as wanted, for the replicas to move."""
        worst: Meter | None = None
        worst_amount = 0
        for meter in self.meters:
            amount = tokens if meter.unit == TOKENS else (1 if meter.unit == REQUESTS else nanousd)
            if meter.used + amount <= meter.allowance:
                continue
            if amount <= meter.left:
                meter.wanted, meter.wanted_at = amount, now
            if worst is None or _holds_longer(meter, amount, worst, worst_amount):
                worst, worst_amount = meter, amount
        assert worst is not None  # noqa: S101 - only called when one is exceeded
        self._quotas.touch(self, True)
        refusals = self._quotas.refusals
        refusals[worst.name] = refusals.get(worst.name, 0) + 1
        return refusal(self.tenant, worst, worst_amount, wall, can_grow=self._quotas.can_grow)


class Quotas:
    """The quotas of all tenants, and how many replicas share each limit.

    A window begins with an equal share of its limit. So that the shares of all replicas never make more than the whole,
    a window that began among more replicas than there are now keeps the shares of then; and a replica that joins
    (`replicas` 0) begins without any, until `shared.leases` has asked the others what they hold.
    """

    __slots__ = ("_by_tenant", "_counts", "can_grow", "index", "on_hunger", "refusals", "replicas", "touched")

    def __init__(self, replicas: int = 1, index: int = 0) -> None:
        self._by_tenant: dict[str, Quota] = {}
        self.replicas = replicas
        self.index = index
        self._counts: list[tuple[float, int]] = []  # until when there were how many, the newest last
        self.can_grow = False  # whether other replicas can be asked
        self.touched: list[Quota] = []  # changed since the replicas last agreed
        self.refusals: dict[str, int] = {}  # requests refused, by the name of the limit
        self.on_hunger: Callable[[], None] = _nobody  # called when one is in a hurry

    def all(self) -> list[Quota]:
        """Those of all tenants."""
        return list(self._by_tenant.values())

    def get(self, tenant: str) -> Quota | None:
        """The quota of a tenant that has one."""
        return self._by_tenant.get(tenant)

    def replace(self, plans: Mapping[str, PlanSettings]) -> None:
        """Another set of tenants, with their plans. Who stays keeps what was counted."""
        known = self._by_tenant
        self._by_tenant = {}
        for tenant, plan in plans.items():
            quota = known.get(tenant)
            if quota is None:
                quota = Quota(tenant, plan, self)
            elif quota.plan != plan:
                quota.replan(plan)
                self.touch(quota, True)
            self._by_tenant[tenant] = quota

    def share_among(self, replicas: int, index: int, wall: float) -> None:
        """From now on there are `replicas`, and this is number `index` of them."""
        if replicas != self.replicas:
            self._counts.append((wall, self.replicas))
            del self._counts[:-_REMEMBERED_COUNTS]
        self.replicas = replicas
        self.index = index

    def share(self, meter: Meter) -> int:
        """What this replica begins an open window with."""
        most = self.replicas
        if most == 0:
            return 0
        for until, replicas in self._counts:
            if until > meter.starts_at:
                most = max(most, replicas)
        return share_of(meter.limit, most, self.index if most == self.replicas else most)

    def touch(self, quota: Quota, is_hungry: bool) -> None:
        """Note that a quota has changed."""
        if not quota.is_touched:
            quota.is_touched = True
            self.touched.append(quota)
        if is_hungry and not quota.is_hungry:
            quota.is_hungry = True
            self.on_hunger()

    def take_touched(self) -> list[Quota]:
        """Those that changed since the last time. Their `is_hungry` says how urgent it is, and is for the caller."""
        touched, self.touched = self.touched, []
        for quota in touched:
            quota.is_touched = False
        return touched


def _nobody() -> None:
    """Nobody to ask."""


def _holds_longer(meter: Meter, amount: int, other: Meter, other_amount: int) -> bool:
    """Whether a limit that is really used up comes before one that only needs moving, and then the later turn."""
    is_final, other_is_final = amount > meter.left, other_amount > other.left
    if is_final != other_is_final:
        return is_final
    if meter.period == "now" or other.period == "now":
        return other.period == "now"
    return meter.ends_at > other.ends_at


def _meters_of(plan: PlanSettings) -> list[Meter]:
    meters = []
    if plan.concurrent_requests is not None:
        meters.append(Meter("concurrentRequests", REQUESTS, "now", plan.concurrent_requests))
    if plan.requests_per_minute is not None:
        meters.append(Meter("requestsPerMinute", REQUESTS, "minute", plan.requests_per_minute))
    if plan.tokens_per_minute is not None:
        meters.append(Meter("tokensPerMinute", TOKENS, "minute", plan.tokens_per_minute))
    if plan.tokens_per_day is not None:
        meters.append(Meter("tokensPerDay", TOKENS, "day", plan.tokens_per_day))
    if plan.budget_usd is not None:
        nanousd = int(plan.budget_usd * NANOUSD_PER_USD)
        meters.append(Meter("budgetUsd", NANOUSD, plan.budget_period, nanousd))
    return meters
