"""The status of M3Routers."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from m3_operator import names
from m3_operator.decide.problem import Problem
from m3_operator.decide.router import RouterDecision
from m3_operator.decide.router_diagnosis import router_trouble
from m3_operator.observed import HelperPod, RouterSnapshot, condition
from m3_operator.status.conditions import Verdict, build
from m3_operator.status.endpoint import endpoint


def router_status(
    snapshot: RouterSnapshot, decision: RouterDecision, problem: Problem | None, now: datetime
) -> dict[str, Any]:
    """The status of an M3Router. `snapshot` is of after the actions."""
    manifest, router = snapshot.manifest, decision.router
    name = manifest["metadata"]["name"]
    running = snapshot.children.get(("Deployment", names.router_name(name)), {})
    counts = running.get("status", {})
    imperfect = problem or decision.remark
    configured = imperfect or Problem("Rendered", "the routers have the configuration of this spec")
    verdicts = [
        _routers_ready(running, snapshot.pods, decision, problem),
        Verdict("Configured", imperfect is None, configured.reason, configured.message),
    ]
    status: dict[str, Any] = {
        "observedGeneration": manifest["metadata"].get("generation", 0),
        "replicas": counts.get("replicas", 0),
        "readyReplicas": counts.get("readyReplicas", 0),
        "selector": names.selector_text(names.router_selector(name)),
        "endpoint": endpoint(manifest),
        "conditions": build(manifest, verdicts, now),
    }
    if router is not None and router.spec.auth.mode == "Keys":
        status["keysSecret"] = router.spec.auth.secret_name or names.keys_secret_name(name)
    return status


def _routers_ready(
    running: Mapping[str, Any], pods: Iterable[HelperPod], decision: RouterDecision, problem: Problem | None
) -> Verdict:
    if problem is not None:
        return Verdict("Ready", False, problem.reason, problem.message)
    wanted = decision.router.spec.replicas if decision.router else 0
    if wanted == 0:
        return Verdict("Ready", False, "ScaledToZero", "spec.replicas is 0: no router runs")
    status, generation = running.get("status", {}), running.get("metadata", {}).get("generation", 0)
    is_current = bool(running) and status.get("observedGeneration", 0) >= generation
    current = min(status.get("updatedReplicas", 0), status.get("availableReplicas", 0)) if is_current else 0
    words = f"{current} of {wanted} routers answer"
    if current >= wanted:
        return Verdict("Ready", True, "AllRoutersReady", words)
    trouble = router_trouble(running, pods)
    if trouble is not None:
        return Verdict("Ready", False, trouble.reason, f"{words}; {trouble.message}")
    available = condition(running, "Progressing")
    is_stuck = available.get("status") == "False"
    return Verdict("Ready", False, "RoutersNotReady", f"{words}; {available.get('message')}" if is_stuck else words)
