"""M3Tenants as a router's tenants file: plans of the router, tenants in the order they came, and where their keys are.

JSON, which the router reads as the YAML it is: a thousand tenants are written in milliseconds. The file is an entry of
the router's ConfigMap that its pods read again when it changes, so it is no part of what restarts them.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError

from m3_operator.api import M3Router, M3Tenant
from m3_operator.render.router_mounts import tenant_key_path
from m3_operator.spec.plans import Plan
from m3_router.config import ConfigError, PlanSettings, TenantSettings

# Before the name of a tenant: the plan that is its alone. Plans of routers have no dot in their names.
OWN_PLAN_PREFIX: Final = "tenant."


class PlanNotFoundError(ConfigError):
    """The router has no plan of the name that a tenant is on."""


def tenants_file(router: M3Router, tenants: Sequence[M3Tenant]) -> str:
    """The text of the tenants file. `tenants`: those that `check` lets through, the oldest first."""
    plans = {plan.name: _plan(plan) for plan in router.spec.plans}
    entries = []
    for tenant in tenants:
        own = _own_plan(router, tenant)
        if own is not None:
            plans[_plan_name(tenant)] = own
        entries.append(_entry(tenant))
    # A line for each: people read it, and a change shows as one.
    plan_lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(plan)}" for name, plan in plans.items())
    tenant_lines = ",\n".join(json.dumps(entry) for entry in entries)
    return f'{{"plans": {{\n{plan_lines}\n}},\n"tenants": [\n{tenant_lines}\n]}}\n'


def check_plans(router: M3Router) -> None:
    """Raise ConfigError for a plan that the router would refuse, in its own words: it would refuse all of the file."""
    for plan in router.spec.plans:
        try:
            PlanSettings.model_validate(_plan(plan))
        except ValidationError as error:
            raise ConfigError(f"plans.{plan.name}: {_first_fault(error)}") from None


def check(router: M3Router, tenant: M3Tenant) -> None:
    """Raise PlanNotFoundError or ConfigError for a tenant that this router cannot have, in the router's own words."""
    own = _own_plan(router, tenant)
    try:
        if own is not None:
            PlanSettings.model_validate(own)
        TenantSettings.model_validate(_entry(tenant))
    except ValidationError as error:
        raise ConfigError(_first_fault(error)) from None


def plan_of(tenant: M3Tenant) -> str:
    """What a tenant is on, for people: a plan's name, `own limits` or `unlimited`."""
    if tenant.spec.plan is not None:
        return tenant.spec.plan
    return "own limits" if tenant.spec.limits is not None and tenant.spec.limits.manifest() else "unlimited"


def _entry(tenant: M3Tenant) -> dict[str, Any]:
    digests = [key.sha256 for key in tenant.spec.keys if key.sha256 is not None]
    files = [tenant_key_path(key.secret_ref) for key in tenant.spec.keys if key.secret_ref is not None]
    entry: dict[str, Any] = {"name": tenant.metadata.name, "plan": _plan_name(tenant)}
    return {**entry, **({"keyDigests": digests} if digests else {}), **({"keyFiles": files} if files else {})}


def _plan_name(tenant: M3Tenant) -> str:
    """The router's plan where the tenant changes nothing of it, else one of its own."""
    spec = tenant.spec
    is_plain = spec.service_tiers is None and spec.max_context_tokens is None and spec.weight is None
    return spec.plan if spec.plan is not None and is_plain else f"{OWN_PLAN_PREFIX}{tenant.metadata.name}"


def _own_plan(router: M3Router, tenant: M3Tenant) -> dict[str, Any] | None:
    """What its own plan says: the router's plan or its limits, and over them what it sets itself. None: it has none.
    Raises PlanNotFoundError.
    """
    spec, base = tenant.spec, {}
    if spec.plan is not None:
        plan = next((plan for plan in router.spec.plans if plan.name == spec.plan), None)
        if plan is None:
            there = ", ".join(plan.name for plan in router.spec.plans) or "none"
            where = f"spec.plan: M3Router {router.metadata.name}"
            raise PlanNotFoundError(f"{where} has no plan {spec.plan}; it has: {there}")
        if _plan_name(tenant) == spec.plan:
            return None
        base = _plan(plan)
    elif spec.limits is not None:
        base = spec.limits.manifest()
    own = {"serviceTiers": spec.service_tiers, "maxContextTokens": spec.max_context_tokens, "weight": spec.weight}
    return base | {name: value for name, value in own.items() if value is not None}


def _plan(plan: Plan) -> dict[str, Any]:
    return {name: value for name, value in plan.manifest().items() if name != "name"}


def _first_fault(error: ValidationError) -> str:
    finding = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in finding["loc"])
    message = finding["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message
