"""What a tenant may use: limits, service tiers, the longest input and its weight, as M3Router and M3Tenant say them.

Owns the fields; `docs/plans.md` says how each is counted, and the router's own checks have the last word.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from m3_operator.spec.fragments import DnsLabel, Model

Count = Annotated[int, Field(ge=1, le=10**15)]
Usd = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$", max_length=19)]
ServiceTiers = Annotated[
    tuple[Literal["standard", "priority", "batch"], ...],
    Field(min_length=1, max_length=3, json_schema_extra={"x-kubernetes-list-type": "set"}),
]
Weight = Annotated[float, Field(ge=0.01, le=100)]


class UsageLimits(Model):
    """Limits of a tenant's use. One that is absent does not hold."""

    tokens_per_day: Count | None = None
    """Input and output tokens together, by UTC days."""
    tokens_per_minute: Count | None = None
    """Input and output tokens together, by minutes."""
    requests_per_minute: Count | None = None
    """Requests that are sent to a worker, by minutes."""
    concurrent_requests: Count | None = None
    """Requests at the same time."""
    budget_usd: Usd | None = None
    """US dollars that may be spent in each budgetPeriod, as a decimal string."""
    budget_period: Literal["day", "month", "total"] | None = None
    """What budgetUsd is for: a UTC day, a UTC month, or all time; absent: month."""


class Plan(UsageLimits):
    """A named plan of a router, which M3Tenants refer to."""

    name: DnsLabel
    """Name of the plan."""
    service_tiers: ServiceTiers = ("standard",)
    """Service tiers that its tenants' keys open."""
    max_context_tokens: Count | None = None
    """Longest input; absent: the model's own."""
    weight: Weight = 1.0
    """Share against other tenants while a model is at its capacity."""
