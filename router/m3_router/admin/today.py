"""What each tenant has used since midnight UTC, by this process alone.

Owns the sums of the running day; the first bill of a new day begins them anew. At most MAX_TENANTS are told apart,
since their names come from a file that may be long, and the console shows those that cost most.
"""

import time
from typing import Final

from m3_router.admin.document import TenantNow
from m3_router.admin.recent import lane_name
from m3_router.bill import Bill

MAX_TENANTS: Final = 10_000
SECONDS_PER_DAY: Final = 86_400


class _Sum:
    __slots__ = ("cached", "cost_by_tier", "input", "output", "requests")

    def __init__(self) -> None:
        self.requests = self.input = self.cached = self.output = 0
        self.cost_by_tier: dict[str, int] = {}


class SpendToday:
    """Sums by tenant of the bills that came today."""

    def __init__(self) -> None:
        self._day = 0
        self._by_tenant: dict[str, _Sum] = {}

    def read(self, bills: list[Bill]) -> None:
        """Add what was settled. A request belongs to the day on which it came."""
        for bill in bills:
            service_tier = bill.service_tier
            if service_tier is None:
                continue
            self._turn(bill.time)
            if int(bill.time // SECONDS_PER_DAY) < self._day:
                continue
            total = self._by_tenant.get(bill.tenant)
            if total is None:
                if len(self._by_tenant) >= MAX_TENANTS:
                    continue
                total = self._by_tenant[bill.tenant] = _Sum()
            total.requests += 1
            total.input += bill.input_tokens
            total.cached += bill.cached_tokens
            total.output += bill.output_tokens
            if bill.cost_nanousd:
                tier = lane_name(service_tier, bill.context_tier)
                total.cost_by_tier[tier] = total.cost_by_tier.get(tier, 0) + bill.cost_nanousd

    def tenants(self, wall: float) -> list[TenantNow]:
        """Every tenant that asked for something today."""
        self._turn(wall)
        return [
            TenantNow(
                name=name,
                requests=total.requests,
                input_tokens=total.input,
                cached_tokens=total.cached,
                output_tokens=total.output,
                cost_nanousd=sum(total.cost_by_tier.values()),
                cost_by_tier_nanousd=dict(total.cost_by_tier),
            )
            for name, total in self._by_tenant.items()
        ]

    def _turn(self, wall: float) -> None:
        day = int(wall // SECONDS_PER_DAY)
        if day > self._day:
            self._day = day
            self._by_tenant = {}


def day_of(wall: float) -> str:
    """The UTC day of a moment, such as 2026-11-21."""
    return time.strftime("%Y-%m-%d", time.gmtime(wall))
