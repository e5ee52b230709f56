"""The status of M3Tenants."""

from datetime import datetime
from typing import Any

from m3_operator.decide.tenant import TenantDecision
from m3_operator.observed import Manifest
from m3_operator.render.tenants import plan_of
from m3_operator.status.conditions import Verdict, build


def tenant_status(manifest: Manifest, decision: TenantDecision, now: datetime) -> dict[str, Any]:
    """The status of an M3Tenant."""
    problem = decision.problem
    if problem is not None:
        ready = Verdict("Ready", False, problem.reason, problem.message)
    else:
        ready = Verdict("Ready", True, "Accepted", f"M3Routers that have it: {', '.join(decision.routers)}")
    status: dict[str, Any] = {
        "observedGeneration": manifest["metadata"].get("generation", 0),
        "conditions": build(manifest, [ready], now),
    }
    if decision.tenant is not None:
        status["plan"] = plan_of(decision.tenant)
    if decision.routers:
        status["routers"] = list(decision.routers)
    return status
