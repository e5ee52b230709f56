"""What one M3Tenant is told: which routers have it, and why another has not.

Nothing is made for a tenant itself: it is a part of its routers, whose cycles ask the same question with `refusal`. One
tenant that a router cannot have keeps no other out.
"""

from dataclasses import dataclass

from m3_operator.api import M3Router, M3Tenant, SpecError, parse_router, parse_tenant
from m3_operator.decide.problem import Problem
from m3_operator.observed import Manifest, RouterSnapshot, TenantSnapshot, condition
from m3_operator.render.tenants import PlanNotFoundError, check
from m3_router.config import ConfigError

# Reasons of a router's Configured condition that leave its file as new as its spec.
_STILL_CONFIGURED = frozenset(
    {"DeploymentNotFound", "DeploymentInvalid", "ModelNameTaken", "SecretNotFound", "ConfigNotFound"}
)


@dataclass(frozen=True, kw_only=True)
class TenantDecision:
    """What is to be said of one M3Tenant."""

    tenant: M3Tenant | None  # None: its spec cannot be read
    routers: tuple[str, ...] = ()  # that have it
    problem: Problem | None = None


def decide_tenant(snapshot: TenantSnapshot) -> TenantDecision:
    """Which routers have it. Of several problems the first is told."""
    try:
        tenant = parse_tenant(snapshot.manifest, strict=False)
    except SpecError as error:
        return TenantDecision(tenant=None, problem=Problem("InvalidSpec", str(error)))
    if not snapshot.routers:
        problem = Problem("RouterNotFound", "there is no M3Router in this namespace; make one, or an M3Deployment")
        return TenantDecision(tenant=tenant, problem=problem)
    problems = {name: _problem_at(name, found, tenant) for name, found in snapshot.routers.items()}
    routers = tuple(name for name, problem in problems.items() if problem is None)
    told = [problem for problem in problems.values() if problem is not None]
    if routers and not tenant.spec.routers:  # "all" means those that ask for keys, where there are any
        told = [problem for problem in told if problem.reason != "RouterIsOpen"]
    return TenantDecision(tenant=tenant, routers=routers, problem=told[0] if told else None)


def accepted(router: M3Router, snapshot: RouterSnapshot) -> list[M3Tenant]:
    """The tenants that a router has, the oldest first."""
    if router.spec.auth.mode == "None":
        return []
    found = []
    for manifest in snapshot.tenants:
        try:
            tenant = parse_tenant(manifest, strict=False)
        except SpecError:
            continue  # its own cycle says so
        if refusal(router, tenant) is None:
            found.append(tenant)
    return found


def refusal(router: M3Router, tenant: M3Tenant) -> Problem | None:
    """Why a router cannot have a tenant."""
    where = f"M3Router {router.metadata.name}"
    if router.spec.auth.mode == "None":
        return Problem("RouterIsOpen", f"{where} asks for no keys (auth.mode None), so no tenant is known there")
    try:
        check(router, tenant)
    except PlanNotFoundError as error:
        return Problem("PlanNotFound", str(error))
    except ConfigError as error:
        return Problem("ConfigRefused", f"{where} would refuse it: {error}")
    return None


def _problem_at(name: str, manifest: Manifest | None, tenant: M3Tenant) -> Problem | None:
    if manifest is None:
        return Problem("RouterNotFound", f"spec.routers: there is no M3Router {name} in this namespace")
    configured = condition(manifest, "Configured")
    if configured.get("status") == "False" and configured.get("reason") not in _STILL_CONFIGURED:
        reason, message = configured.get("reason"), configured.get("message")
        return Problem("ConfigRefused", f"M3Router {name} has no usable configuration ({reason}): {message}")
    try:
        router = parse_router(manifest, strict=False)
    except SpecError as error:
        return Problem("ConfigRefused", f"M3Router {name}: {error}")
    return refusal(router, tenant)
