"""A group that lost a member is replaced as a whole.

Live members go at once: without their peer they cannot answer. Members that ended stay, with their logs, until the
group's turn has come: the first failure is repaired at once, later ones wait longer and longer, until the restarts of a
window are used up. Then the group stays as it is until the window has passed; a new revision starts a new count. A
group of an old revision, or one too many, does not wait: there is nothing to protect.

A group that serves while a peer of rank 0 is being deleted (its node is drained) drains: rank 0 goes with all its time,
and its peers live until it is gone. A group that failed while it waited for room for one of its members is left alone
until there is room: tearing it down would not make any.

A pod that is still there a minute after its time is up sits on a node that does not answer; it is removed by force, or
its group could not come back.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from m3_operator.groups import Group, GroupState
from m3_operator.plan.actions import DeletePods, PodAction
from m3_operator.plan.faults import HEALTHY, Fault, Health
from m3_operator.spec.recovery import RecoverySpec

ORPHAN_GRACE_SECONDS: Final = 10
_OVERDUE_AFTER: Final = timedelta(seconds=60)
_DEFAULT: Final = RecoverySpec()


@dataclass(frozen=True)
class FailureRecord:
    """What is remembered of a group's failures, in the status of its owner."""

    restarts: int = 0
    failed_at: datetime | None = None
    reason: str = ""
    since: datetime | None = None  # when the window began in which the restarts are counted
    revision: str = ""  # what failed


@dataclass(frozen=True)
class Outlook:
    """What becomes of a group that failed."""

    due_at: datetime
    is_exhausted: bool = False  # the window's restarts are used up


def recover(
    groups: Mapping[int, Group],
    held: Collection[int],
    records: Mapping[int, FailureRecord],
    now: datetime,
    *,
    recovery: RecoverySpec = _DEFAULT,
    health: Health = HEALTHY,
) -> tuple[list[PodAction], datetime | None]:
    """Removals that are due now, and when the next one will be. `held` are the groups that stay or are made again."""
    actions: list[PodAction] = []
    wakes: list[datetime] = [health.wake_at] if health.wake_at is not None else []
    for group in groups.values():
        forced, forced_at = _remove_by_force(group, now)
        actions += forced
        wakes += forced_at
        taken = frozenset(pod.uid for action in forced for pod in action.pods)
        fault, record = health.faults.get(group.index), records.get(group.index, FailureRecord())
        if not needs_replacement(group, fault):
            actions += [*_drain_with_its_peer(group), *_let_it_use_mended_nodes(group, health)]
        elif group.index not in held:
            actions += _replace(group, fault, taken, counts=False)
        elif recovery.policy == "RecreateGroup" and not is_short_of_room(group, fault):
            outlook = outlook_of(group, record, recovery, now)
            if outlook.due_at <= now:
                actions += _replace(group, fault, taken, counts=True)
                continue
            wakes.append(outlook.due_at)
            if fault is None and not outlook.is_exhausted:
                actions += _let_live_members_go(group)
    return actions, min(wakes, default=None)


def needs_replacement(group: Group, fault: Fault | None) -> bool:
    """Whether a group cannot go on as it is."""
    return group.state is GroupState.FAILED or fault is not None


def is_short_of_room(group: Group, fault: Fault | None) -> bool:
    """Whether a group failed because a member of it never got a node."""
    return fault is None and bool(group.finished and group.unscheduled) and not group.missing_ranks


def outlook_of(group: Group, record: FailureRecord, recovery: RecoverySpec, now: datetime) -> Outlook:
    """When a failed group of the current revision is replaced, given how often it was lately.

    A group of which only a part was deleted did not fail: it is replaced at once.
    """
    if group.state is GroupState.FAILED and not group.finished:
        return Outlook(now)
    failed_at = group.failed_at or record.failed_at or now
    began = record.since or record.failed_at
    if began is None or not is_in_window(record, recovery, group.revision or "", now):
        return Outlook(failed_at)
    if record.restarts >= recovery.max_restarts:
        return Outlook(began + timedelta(seconds=recovery.window_seconds), is_exhausted=True)
    return Outlook(failed_at + restart_delay(record.restarts, recovery))


def restart_delay(restarts: int, recovery: RecoverySpec) -> timedelta:
    """How long a group waits that was replaced so often in this window."""
    if restarts == 0:
        return timedelta()
    # The exponent is bounded: the count of restarts is large where somebody allows that.
    seconds = recovery.backoff.base_seconds * int(2 ** min(restarts - 1, 20))
    return timedelta(seconds=min(seconds, recovery.backoff.max_seconds))


def next_record(
    record: FailureRecord, reason: str, now: datetime, recovery: RecoverySpec = _DEFAULT, revision: str = ""
) -> FailureRecord:
    """The record after one more failure, of a group of this revision."""
    if not is_in_window(record, recovery, revision, now):
        return FailureRecord(1, now, reason, now, revision)
    return FailureRecord(record.restarts + 1, now, reason, record.since or record.failed_at, revision)


def is_in_window(record: FailureRecord, recovery: RecoverySpec, revision: str, now: datetime) -> bool:
    """Whether the restarts that are remembered count still. A record that names no revision is of any."""
    since = record.since or record.failed_at
    if since is None or (record.revision and revision and record.revision != revision):
        return False
    return now - since < timedelta(seconds=recovery.window_seconds)


def _drain_with_its_peer(group: Group) -> list[PodAction]:
    leader = group.leader
    if group.state is not GroupState.DRAINING or leader is None or leader.is_terminating:
        return []
    return [DeletePods(group.index, (leader,), f"its group drains: {what_is_wrong(group)}")]


def _let_it_use_mended_nodes(group: Group, health: Health) -> list[PodAction]:
    """A group that never ran and waits for room, while it stays away from nodes that nobody avoids any more."""
    avoided = {node.name for node in health.avoided}
    mended = sorted({name for pod in group.unscheduled for name in pod.avoids} - avoided)
    if not mended or any(pod.has_started or pod.is_terminating for pod in group.pods):
        return []
    return [DeletePods(group.index, group.pods, f"it waits for room, and may use {', '.join(mended[:3])} again")]


def _let_live_members_go(group: Group) -> list[PodAction]:
    if not group.staying:
        return []
    reason = f"group {group.index} is replaced as a whole: {what_is_wrong(group)}"
    return [DeletePods(group.index, group.staying, reason, ORPHAN_GRACE_SECONDS)]


def _replace(group: Group, fault: Fault | None, taken: Collection[str], *, counts: bool) -> list[PodAction]:
    """Everything of the group goes, but what is `taken` (uids). The last action counts, and blames the nodes at fault.

    That somebody deleted pods is no failure.
    """
    why, lost_pods = what_is_wrong(group, fault), fault.lost_pods if fault is not None else frozenset()
    as_a_whole = why if fault is not None else f"group {group.index} is replaced as a whole: {why}"
    removals = [
        (tuple(pod for pod in group.pods if pod.uid in lost_pods and pod.uid not in taken), as_a_whole, 0),
        (tuple(pod for pod in group.staying if pod.uid not in lost_pods), as_a_whole, ORPHAN_GRACE_SECONDS),
        (tuple(pod for pod in group.finished if pod.uid not in lost_pods), why, None),
    ]
    actions = [DeletePods(group.index, pods, reason, grace_seconds) for pods, reason, grace_seconds in removals if pods]
    if actions:
        is_failure = counts and bool(group.finished or (fault is not None and group.staying))
        blamed = fault.blamed_nodes if fault is not None else ()
        actions[-1] = replace(actions[-1], counts_as_restart=is_failure, blamed_nodes=blamed)
    return list(actions)


def _remove_by_force(group: Group, now: datetime) -> tuple[list[DeletePods], list[datetime]]:
    due = {pod: pod.deletion_at + _OVERDUE_AFTER for pod in group.pods if pod.deletion_at is not None}
    overdue = tuple(pod for pod, at in due.items() if at <= now)
    reason = "it should have been gone a minute ago: its node does not answer"
    actions = [DeletePods(group.index, overdue, reason, grace_seconds=0)] if overdue else []
    return actions, [at for at in due.values() if at > now]


def what_is_wrong(group: Group, fault: Fault | None = None) -> str:
    """Why a group cannot go on, in words."""
    if fault is not None:
        return fault.message
    if group.finished:
        return "; ".join(f"{pod.name} ended ({pod.message or pod.phase})" for pod in group.finished[:3])
    going = [pod.name for pod in group.pods if pod.is_terminating]
    if going:
        return f"{', '.join(going[:3])} is being deleted"
    if group.missing_ranks:
        return f"rank {', '.join(str(rank) for rank in group.missing_ranks[:8])} is gone"
    return "its pods are not of one revision and shape"
