"""Why a group does not serve, and what to do about it: one reason for programs, one sentence for people.

Pure: what the pods of a group say, and what recovery makes of it. A reason goes when its cause does, because nothing of
it is kept. docs/recovery.md lists every reason.
"""

import re
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final

from m3_operator.decide.problem import Problem
from m3_operator.groups import Group, GroupState
from m3_operator.observed import HelperPod, ObservedPod
from m3_operator.plan.faults import HEALTHY, Health
from m3_operator.plan.recovery import (
    FailureRecord,
    is_short_of_room,
    needs_replacement,
    outlook_of,
    what_is_wrong,
)
from m3_operator.spec.recovery import RecoverySpec

WAITS_FOR_A_NODE: Final = frozenset({"Unschedulable", "NodeSelectorMatchesNothing", "ClaimNotFound", "ClaimNotBound"})
"""Reasons that are the scheduler's."""
LEFT_ALONE: Final = frozenset({"RestartBudgetExhausted", "RecoveryOff"})
"""Reasons for which a failed group is not replaced now."""
_CRASHES: Final = 3
"""Restarts within a window from which on a group is said to crash again and again."""
_PULL_TROUBLES: Final = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_START_TROUBLES: Final = frozenset({"CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun"})
_NO_CLAIM: Final = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
_NO_SECRET: Final = re.compile(r'secret "([^"]+)" not found|in Secret (?:[^\s/]+/)?(\S+)$')
_NO_CONFIG: Final = re.compile(r'configmap "([^"]+)" not found|in ConfigMap (?:[^\s/]+/)?(\S+)$')
_OF_ALL_NODES: Final = re.compile(r"0/(\d+) nodes are available: (\d+) node\(s\) didn't match Pod's node affinity")


def diagnose(
    groups: Mapping[int, Group],
    held: Collection[int],
    records: Mapping[int, FailureRecord],
    *,
    recovery: RecoverySpec,
    health: Health,
    now: datetime,
) -> dict[int, Problem]:
    """What stands in the way of each group that stays; of those that serve, or merely take their time, nothing."""
    found = {}
    # A group that crashed says so also while it has no pods.
    for index in sorted({*groups, *records}):
        group = groups.get(index, Group(index))
        if index in held and (not group.is_ready or index in health.faults):
            problem = _diagnose(group, records.get(index, FailureRecord()), recovery, health, now)
            if problem is not None:
                found[index] = problem
    return found


def _diagnose(
    group: Group, record: FailureRecord, recovery: RecoverySpec, health: Health, now: datetime
) -> Problem | None:
    fault = health.faults.get(group.index)
    if needs_replacement(group, fault) and not is_short_of_room(group, fault):
        return _failed(group, record, recovery, health, now)
    for pod in group.pods:
        problem = pod_problem(pod, health)
        if problem is not None:
            return problem
    if _crashes_again_and_again(group, record, recovery, now) and group.state is not GroupState.DRAINING:
        return _crash_loop(group, record, "it is coming up again")
    return None


def _failed(
    group: Group, record: FailureRecord, recovery: RecoverySpec, health: Health, now: datetime
) -> Problem | None:
    fault = health.faults.get(group.index)
    why, outlook = what_is_wrong(group, fault), outlook_of(group, record, recovery, now)
    words, due = f"group {group.index}: {why}", f"{outlook.due_at:%H:%M:%S} UTC"
    problem: Problem | None = None
    if recovery.policy == "None":
        problem = Problem(
            "RecoveryOff", f"{words}; spec.recovery.policy is None: delete its pods to have it made again"
        )
    elif outlook.is_exhausted and outlook.due_at > now:
        left = f"it stays with its logs until {due}, or until the spec changes"
        problem = Problem("RestartBudgetExhausted", f"{words}; it failed after {record.restarts} restarts: {left}")
    elif fault is not None:
        problem = Problem(fault.reason, f"{words}; it is replaced")
    elif group.finished and _crashes_again_and_again(group, record, recovery, now):
        problem = _crash_loop(group, record, f"it is replaced at {due}: {why}")
    elif outlook.due_at > now:
        problem = Problem("BackingOff", f"{words}; it is replaced at {due}")
    return problem


def _crashes_again_and_again(group: Group, record: FailureRecord, recovery: RecoverySpec, now: datetime) -> bool:
    is_recent = record.since is not None and (now - record.since).total_seconds() < recovery.window_seconds
    return (
        is_recent and record.restarts >= _CRASHES and (not record.revision or group.revision in (None, record.revision))
    )


def _crash_loop(group: Group, record: FailureRecord, next_step: str) -> Problem:
    words = f"group {group.index} was restarted {record.restarts} times since {record.since:%H:%M:%S} UTC; {next_step}"
    return Problem("CrashLooping", f"{words}; it failed last because {record.reason}; see kubectl logs of its pods")


def pod_problem(pod: ObservedPod | HelperPod, health: Health = HEALTHY) -> Problem | None:
    """What one pod says of itself, if it is known what to do about it."""
    if pod.trouble in _PULL_TROUBLES:
        message = f"{pod.name}: {pod.message}; correct the image, or name a secret that may pull it"
        return Problem("ImagePullFailed", message)
    if pod.trouble == "CreateContainerConfigError":
        return _config_problem(pod)
    if pod.trouble in _START_TROUBLES:
        return Problem("ContainerNotStarted", f"{pod.name}: {pod.message}; correct the image or spec.template")
    if pod.trouble == "Unschedulable" and pod.node_name is None:
        return _scheduling_problem(pod, health)
    return None


def _config_problem(pod: ObservedPod | HelperPod) -> Problem:
    secret, config = _NO_SECRET.search(pod.message), _NO_CONFIG.search(pod.message)
    if secret is not None:
        remedy = f"create Secret {secret[1] or secret[2]} with what it asks for, or correct its name"
        return Problem("SecretNotFound", f"{pod.name}: {pod.message}; {remedy}")
    if config is not None:
        remedy = f"create ConfigMap {config[1] or config[2]} with what it asks for, or correct its name"
        return Problem("ConfigNotFound", f"{pod.name}: {pod.message}; {remedy}")
    return Problem(
        "ContainerNotStarted", f"{pod.name}: {pod.message}; correct the environment or volume that asks for it"
    )


def _scheduling_problem(pod: ObservedPod | HelperPod, health: Health) -> Problem:
    claim, unmatched = _NO_CLAIM.search(pod.message), _OF_ALL_NODES.search(pod.message)
    if claim is not None:
        message = f"{pod.name}: there is no PersistentVolumeClaim {claim[1]} in this namespace; create it"
        return Problem("ClaimNotFound", message)
    if "unbound immediate PersistentVolumeClaims" in pod.message:
        message = f"{pod.name}: {pod.message}; see kubectl describe of its PersistentVolumeClaims"
        return Problem("ClaimNotBound", message)
    avoided = [node.name for node in health.avoided]
    if unmatched is not None and unmatched[1] == unmatched[2] and not avoided:
        message = (
            f"{pod.name}: none of {unmatched[1]} nodes has what spec.template and spec.placement ask for; "
            "label a node, or correct them"
        )
        return Problem("NodeSelectorMatchesNothing", message)
    kept_away = f" (nodes that are avoided: {', '.join(avoided[:8])})" if avoided else ""
    message = f"{pod.name}: {pod.message}{kept_away}; free or add nodes, or ask for fewer groups"
    return Problem("Unschedulable", message)
