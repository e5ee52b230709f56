"""What an M3Tenant's `spec` may say: whose keys open which routers, and how much may be used with them."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.spec.fragments import ATOMIC, DnsLabel, Model, OwnerName, cel, require
from m3_operator.spec.plans import Count, ServiceTiers, UsageLimits, Weight
from m3_operator.spec.secrets import SecretKey

TENANT_NAME_PATTERN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
TENANT_NAME_MAX_LENGTH = 63
ONE_KEY_SOURCE = "keys: set exactly one of secretRef, sha256"
PLAN_OR_LIMITS = "set at most one of plan, limits"


class TenantKey(Model):
    """One API key of the tenant: in a Secret, or by its digest."""

    model_config = ConfigDict(json_schema_extra=cel(("has(self.secretRef) != has(self.sha256)", ONE_KEY_SOURCE)))

    secret_ref: SecretKey | None = None
    """Entry of a Secret with the key itself, or with `sha256:` and its digest. It is mounted into the routers."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", max_length=64)] | None = None
    """SHA-256 digest of the key, in hexadecimal digits. A tenant of digests alone restarts no router."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        require((self.secret_ref is None) != (self.sha256 is None), ONE_KEY_SOURCE)
        return self


class M3TenantSpec(Model):
    """A customer of one or more M3Routers: its keys, and what it may use."""

    model_config = ConfigDict(json_schema_extra=cel(("!has(self.plan) || !has(self.limits)", PLAN_OR_LIMITS)))

    routers: Annotated[
        tuple[OwnerName, ...], Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = ()
    """M3Routers of this namespace that accept it; empty: all of them."""
    keys: Annotated[tuple[TenantKey, ...], Field(max_length=32, json_schema_extra=ATOMIC)] = ()
    """Its API keys. A key that another tenant had before stays that one's."""
    plan: DnsLabel | None = None
    """Plan of the routers (their spec.plans) that it is on."""
    limits: UsageLimits | None = None
    """Limits of its own, instead of a plan; absent, and without a plan: none hold."""
    service_tiers: ServiceTiers | None = None
    """Service tiers that its keys open; absent: those of its plan, and `standard` without one."""
    max_context_tokens: Count | None = None
    """Longest input; absent: that of its plan, and the model's own without one."""
    weight: Weight | None = None
    """Share against other tenants while a model is at its capacity; absent: that of its plan, and 1 without one."""

    @model_validator(mode="after")
    def _has_one_kind_of_limits(self) -> Self:
        require(self.plan is None or self.limits is None, PLAN_OR_LIMITS)
        return self
