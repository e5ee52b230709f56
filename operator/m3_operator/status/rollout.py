"""What people read about a rollout: revisions, the record that the deadline counts from, Progressing and RolledBack."""

from datetime import datetime
from typing import Any

from m3_operator.decide.deployment import DeploymentDecision
from m3_operator.decide.diagnosis import LEFT_ALONE
from m3_operator.decide.problem import Problem
from m3_operator.decide.revisions import Revisions
from m3_operator.groups import Group, GroupState
from m3_operator.plan.rollout import is_available
from m3_operator.status.conditions import Verdict, timestamp


def rollout_status(decision: DeploymentDecision, now: datetime) -> dict[str, Any]:
    """The fields of the status that tell of revisions."""
    revisions = decision.revisions
    if revisions is None:
        return {}
    available = sum(is_available(revisions.wanted, group, now) for group in decision.groups.values())
    told: dict[str, Any] = {
        "availableReplicas": available,
        "revision": revisions.target,
        "updateRevision": revisions.target,
    }
    if revisions.current is not None:
        told["currentRevision"] = revisions.current
    if (record := revisions.record) is not None:
        told["rollout"] = {
            "revision": record.revision,
            "availableReplicas": record.available,
            "outdatedReplicas": record.outdated,
            "progressTime": timestamp(record.progressed_at),
            "rolledBack": record.is_rolled_back,
        }
    return told


def progressing(decision: DeploymentDecision, problem: Problem | None) -> Verdict:
    """Whether something is under way, and what."""
    if decision.is_refused:
        return Verdict("Progressing", False, "Refused", "no group is made or replaced until the spec fits")
    revisions = decision.revisions
    if revisions is None:
        reason = problem.reason if problem is not None else "Settled"
        return Verdict("Progressing", False, reason, "no group is made or replaced until the spec is mended")
    return _of_rollout(decision, revisions) or _of_groups(decision) or _at_rest(decision, revisions)


def rolled_back(decision: DeploymentDecision) -> list[Verdict]:
    """That the asked revision was given up; nothing otherwise."""
    revisions = decision.revisions
    if revisions is None or not revisions.is_rolled_back:
        return []
    message = (
        f"revision {revisions.asked} made no progress for {revisions.patience.total_seconds():.0f} s: groups go "
        f"back to revision {revisions.target}, until the spec asks for another one"
    )
    return [Verdict("RolledBack", True, "ProgressDeadlineExceeded", message)]


def _of_rollout(decision: DeploymentDecision, revisions: Revisions) -> Verdict | None:
    seen, rollout = revisions.seen, revisions.wanted.rollout
    there = f"{seen.available} of {seen.wanted} groups are of revision {revisions.target} and available"
    left = f"{there}; {seen.outdated} of other revisions are left"
    if revisions.asked in revisions.weights.missing and seen.wanted:
        message = f"groups of revision {revisions.asked} are made when their model is downloaded; see WeightsReady"
        return Verdict("Progressing", True, "DownloadingWeights", message)
    if rollout.is_paused and seen.outdated:
        return Verdict("Progressing", False, "Paused", f"spec.rollout.paused is set; {left}")
    if revisions.is_stuck:
        why = _first_trouble(decision, revisions)
        message = f"no progress for {revisions.patience.total_seconds():.0f} s: {left}{why}"
        return Verdict("Progressing", False, "ProgressDeadlineExceeded", message)
    is_first = revisions.current is None and not seen.outdated
    if revisions.record is not None and not is_first and not (revisions.is_rolled_back and not seen.outdated):
        return Verdict("Progressing", True, "RollingOut", left)
    return None


def _of_groups(decision: DeploymentDecision) -> Verdict | None:
    groups, wanted = decision.groups, decision.wanted
    failed = [group for group in groups.values() if group.state is GroupState.FAILED]
    left = next((found for found in decision.findings.values() if found.reason in LEFT_ALONE), None)
    if failed and left is not None:
        return Verdict("Progressing", False, left.reason, left.message)
    if failed:
        return Verdict("Progressing", True, "Recovering", f"group {failed[0].index} failed: {failed[0].message}")
    coming = max(0, wanted - sum(group.is_ready for group in groups.values()))
    going = max(0, len(groups) - wanted)
    if coming or going:
        return Verdict("Progressing", True, "Scaling", f"{coming} groups are coming, {going} are going")
    return None


def _at_rest(decision: DeploymentDecision, revisions: Revisions) -> Verdict:
    if revisions.is_rolled_back:
        message = f"revision {revisions.asked} was given up; revision {revisions.target} runs"
        return Verdict("Progressing", False, "RolledBack", message)
    if revisions.seen.outdated:
        why = (
            "until somebody deletes them" if revisions.wanted.rollout.strategy == "OnDelete" else "by rollout.partition"
        )
        message = f"{revisions.seen.outdated} of {decision.wanted} groups stay at other revisions {why}"
        return Verdict("Progressing", False, "Settled", message)
    return Verdict("Progressing", False, "Settled", "nothing is left to do")


def _first_trouble(decision: DeploymentDecision, revisions: Revisions) -> str:
    updated = (group for group in decision.groups.values() if group.revision == revisions.target)
    trouble: Group | None = next((group for group in updated if not group.is_ready and group.message), None)
    return "" if trouble is None else f"; group {trouble.index} is {trouble.state}: {trouble.message}"
