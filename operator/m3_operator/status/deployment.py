"""The status of M3Deployments: counts, groups, conditions.

Two builds from the same observation are equal, times included, so that an unchanged status is never written.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.decide.deployment import DeploymentDecision
from m3_operator.decide.diagnosis import WAITS_FOR_A_NODE
from m3_operator.decide.problem import Problem
from m3_operator.groups import Group
from m3_operator.observed import DeploymentSnapshot, condition
from m3_operator.plan.avoidance import AvoidedNode
from m3_operator.plan.recovery import FailureRecord, is_in_window
from m3_operator.spec.autoscaling import AutoscalingSpec
from m3_operator.spec.status import GROUPS_SHOWN
from m3_operator.status.autoscaling import asleep_message, autoscaling_status, in_flight, scaling_verdicts
from m3_operator.status.conditions import Verdict, build, timestamp
from m3_operator.status.endpoint import endpoint
from m3_operator.status.experts import balanced, expert_status
from m3_operator.status.rollout import progressing, rolled_back, rollout_status
from m3_operator.status.weights import missing_weights, weights_ready, weights_status


def deployment_status(
    snapshot: DeploymentSnapshot,
    decision: DeploymentDecision,
    records: Mapping[int, FailureRecord],
    problem: Problem | None,
    now: datetime,
    *,
    avoided: Sequence[AvoidedNode] = (),
) -> dict[str, Any]:
    """The status of an M3Deployment. `snapshot` and `decision` are of after the actions."""
    deployment, groups = decision.deployment, decision.groups
    verdicts = _verdicts(snapshot, decision, problem)
    status: dict[str, Any] = {
        "observedGeneration": snapshot.manifest["metadata"].get("generation", 0),
        "replicas": len(groups),
        "desiredReplicas": decision.wanted,
        "readyReplicas": sum(group.is_ready for group in groups.values()),
        "updatedReplicas": sum(group.revision == decision.revision for group in groups.values()),
        **rollout_status(decision, now),
        "selector": names.selector_text(names.rank0_selector(snapshot.manifest["metadata"]["name"])),
        "conditions": build(snapshot.manifest, verdicts, now),
    }
    if (weights := weights_status(decision)) is not None:
        status["weights"] = weights
    if snapshot.experts is not None:
        status["experts"] = expert_status(snapshot.experts)
    autoscaling = autoscaling_status(snapshot, _autoscaling(decision), decision.scaling, now)
    if autoscaling is not None:
        status["autoscaling"] = autoscaling
    if avoided:
        status["avoidedNodes"] = [
            {"name": node.name, "until": timestamp(node.until), "reason": node.reason[:1024]} for node in avoided
        ]
    if snapshot.router is not None:
        status["endpoint"] = endpoint(snapshot.router)
    if deployment is not None:
        status["gpus"] = sum(_gpus(decision, deployment, group) for group in groups.values())
    # Those that failed come first: what is remembered of them is remembered here.
    told = {*decision.places, *_remembered(decision, records, now)}
    shown = sorted(sorted(told, key=lambda index: index not in records)[:GROUPS_SHOWN])
    if shown:
        left = in_flight(snapshot)
        status["groups"] = [
            _group(groups.get(index, Group(index)), records.get(index), left.get(index)) for index in shown
        ]
    return status


def _autoscaling(decision: DeploymentDecision) -> AutoscalingSpec | None:
    return None if decision.deployment is None else decision.deployment.spec.autoscaling


def _remembered(decision: DeploymentDecision, records: Mapping[int, FailureRecord], now: datetime) -> Iterable[int]:
    """Groups whose failures count still, also of those that are not there: with a surge, one goes as another comes."""
    if decision.deployment is None:
        return ()
    recovery = decision.deployment.spec.recovery
    return (index for index, record in records.items() if is_in_window(record, recovery, "", now))


def _gpus(decision: DeploymentDecision, deployment: M3Deployment, group: Group) -> int:
    """GPUs that the pods of a group hold; those of a revision that cannot be read count as the spec has it now."""
    template = decision.templates.get(group.revision or "")
    per_pod = (template.deployment if template else deployment).spec.parallelism.gpus_per_node
    return per_pod * sum(pod.node_name is not None and not pod.is_finished for pod in group.pods)


def _group(group: Group, record: FailureRecord | None, in_flight: int | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "index": group.index,
        "state": str(group.state),
        "ready": sum(pod.is_ready for pod in group.pods),
        "restarts": record.restarts if record else 0,
    }
    if group.revision:
        shown["revision"] = group.revision
    if in_flight is not None:
        shown["inFlight"] = in_flight
    nodes = [pod.node_name for pod in group.pods if pod.node_name]
    if nodes:
        shown["nodes"] = nodes
    if record is not None and record.failed_at is not None:
        shown["lastFailure"] = {"reason": record.reason[:1024], "time": timestamp(record.failed_at)}
        if record.revision:
            shown["lastFailure"]["revision"] = record.revision
        if record.since is not None:
            shown["restartsSince"] = timestamp(record.since)
    return shown


def _verdicts(snapshot: DeploymentSnapshot, decision: DeploymentDecision, problem: Problem | None) -> list[Verdict]:
    serving = min(decision.wanted, sum(group.is_ready for group in decision.groups.values()))
    how_many = f"{serving} of {decision.wanted} groups serve"
    blocker = problem or _idle(decision) or missing_weights(decision, how_many)
    blocker = blocker or _unready_group(decision, how_many) or _unready_router(snapshot)
    ready = Verdict("Ready", True, "AllGroupsReady", how_many)
    if blocker is not None:
        ready = Verdict("Ready", False, blocker.reason, blocker.message)
    return [
        ready,
        _available(snapshot, serving, blocker, how_many),
        _scheduled(decision),
        progressing(decision, problem),
        *rolled_back(decision),
        *_fits(decision),
        *weights_ready(decision),
        *([balanced(snapshot.experts)] if snapshot.experts else []),
        *scaling_verdicts(_autoscaling(decision), decision.scaling),
    ]


def _idle(decision: DeploymentDecision) -> Problem | None:
    if decision.deployment is None or decision.wanted:
        return None
    if decision.deployment.spec.suspend:
        return Problem("Suspended", "spec.suspend is set: no group runs")
    return Problem("ScaledToZero", asleep_message(decision.scaling) or "spec.replicas is 0: no group runs")


def _unready_group(decision: DeploymentDecision, how_many: str) -> Problem | None:
    """Why not all groups serve: the first cause that is known, or else that a group takes its time."""
    known = next((decision.findings[index] for index in sorted(decision.findings)), None)
    if known is not None:
        return Problem(known.reason, f"{how_many}; {known.message}")
    groups = [decision.groups.get(index, Group(index)) for index in decision.places]
    unready = [group for group in groups if not group.is_ready]
    if len(groups) - len(unready) >= decision.wanted:
        return None
    words = f"{how_many}; group {unready[0].index} is {unready[0].state}"
    return Problem("GroupsNotReady", f"{words}: {unready[0].message}" if unready[0].message else words)


def _unready_router(snapshot: DeploymentSnapshot) -> Problem | None:
    router = snapshot.router
    if router is None:
        return Problem("RouterNotReady", "its router is being created")
    ready, status = condition(router, "Ready"), router.get("status", {})
    # A router that misses another deployment still serves this one.
    serves = ready.get("status") == "True" or (
        ready.get("reason") == "DeploymentNotFound" and status.get("readyReplicas", 0) > 0
    )
    if serves:
        return None
    name, told = router["metadata"]["name"], ready.get("message", "not seen yet")
    return Problem("RouterNotReady", f"M3Router {name}: {told}")


def _available(snapshot: DeploymentSnapshot, serving: int, blocker: Problem | None, how_many: str) -> Verdict:
    router_problem = _unready_router(snapshot)
    if serving and router_problem is None:
        return Verdict("Available", True, "GroupsServe", how_many)
    why = (blocker if not serving else router_problem) or Problem("GroupsNotReady", how_many)
    return Verdict("Available", False, why.reason, why.message)


def _scheduled(decision: DeploymentDecision) -> Verdict:
    waiting = [
        pod for group in decision.groups.values() for pod in group.pods if pod.node_name is None and not pod.is_finished
    ]
    if not waiting:
        return Verdict("Scheduled", True, "AllPodsScheduled", "every pod has a node")
    known = next((found for found in decision.findings.values() if found.reason in WAITS_FOR_A_NODE), None)
    if known is not None:
        return Verdict("Scheduled", False, known.reason, f"{len(waiting)} pods wait for a node; {known.message}")
    why = next((pod.message for pod in waiting if pod.message), "the scheduler has not said why yet")
    return Verdict("Scheduled", False, "PodsWaiting", f"{len(waiting)} pods wait for a node; {waiting[0].name}: {why}")


def _fits(decision: DeploymentDecision) -> list[Verdict]:
    """Whether a group fits its GPUs; nothing of a spec that cannot be read."""
    assessment = decision.assessment
    if assessment is None:
        return []
    holds = None if assessment.answer == "unknown" else assessment.answer == "yes"
    return [Verdict("Fits", holds, assessment.reason, assessment.message)]
