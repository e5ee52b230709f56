"""What each tenant has used since midnight UTC, and of its limits: rows of usage, put together by tenant. Pure."""

import time
from collections.abc import Callable, Iterable
from typing import Final, Literal, Protocol

from m3_router.admin.document import LimitNow, TenantNow
from m3_router.admin.recent import lane_name
from m3_router.config import ContextTier, ServiceTier
from m3_router.tenants.quotas import Quota

_UNITS: Final[tuple[Literal["tokens", "requests", "nanousd"], ...]] = ("tokens", "requests", "nanousd")  # of meters

Plan = tuple[str | None, list[LimitNow]]
"""The name of a tenant's plan, and what is left of its limits."""


class UsageRow(Protocol):
    """What one tenant used in one pair of tiers; there may be several rows of the same."""

    tenant: str
    service_tier: ServiceTier | None
    context_tier: ContextTier | None
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nanousd: int


def no_plan(_: str) -> Plan:
    """A tenant without a plan has no limits."""
    return None, []


def tenants_of(rows: Iterable[UsageRow], plan_of: Callable[[str], Plan] = no_plan) -> list[TenantNow]:
    """One record for each tenant that has a row, in the order of their first rows."""
    by_tenant: dict[str, list[UsageRow]] = {}
    for row in rows:
        by_tenant.setdefault(row.tenant, []).append(row)
    return [_tenant(name, own, plan_of(name)) for name, own in by_tenant.items()]


def day_of(wall: float) -> str:
    """The UTC day of a moment, such as 2026-11-21."""
    return time.strftime("%Y-%m-%d", time.gmtime(wall))


def _tenant(name: str, rows: list[UsageRow], plan: Plan) -> TenantNow:
    cost_by_tier: dict[str, int] = {}
    for row in rows:
        if row.service_tier is not None and row.cost_nanousd:
            tier = lane_name(row.service_tier, row.context_tier)
            cost_by_tier[tier] = cost_by_tier.get(tier, 0) + row.cost_nanousd
    return TenantNow(
        name=name,
        requests=sum(row.requests for row in rows),
        input_tokens=sum(row.input_tokens for row in rows),
        cached_tokens=sum(row.cached_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        cost_nanousd=sum(row.cost_nanousd for row in rows),
        cost_by_tier_nanousd=cost_by_tier,
        plan=plan[0],
        limits=plan[1],
    )


def limits_of(quota: Quota, wall: float) -> list[LimitNow]:
    """What is used of each limit of a tenant, in the windows of this moment."""
    quota.turn(wall)
    return [
        LimitNow(
            meter.name,
            _UNITS[meter.unit],
            meter.used + meter.others_used,
            meter.limit,
            None if meter.ends_at == float("inf") else max(meter.ends_at - wall, 0.0),
        )
        for meter in quota.meters
    ]
