"""A group that lost a member is replaced as a whole.

Live members go at once: without their peer they cannot answer. Members that ended stay, with their logs, until the
group's turn has come: the first failure is repaired at once, later ones wait 10 s, 20 s ... 5 min, until half an hour
has passed without one. A group of an old revision, or one too many, does not wait: there is nothing to protect.

A pod that is still there a minute after its time is up sits on a node that does not answer; it is removed by force, or
its group could not come back.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from m3_operator.groups import Group, GroupState
from m3_operator.plan.actions import DeletePods, PodAction

ORPHAN_GRACE_SECONDS: Final = 10
_BASE_DELAY: Final = timedelta(seconds=10)
_LONGEST_DELAY: Final = timedelta(minutes=5)
_FORGET_AFTER: Final = timedelta(minutes=30)
_OVERDUE_AFTER: Final = timedelta(seconds=60)


@dataclass(frozen=True)
class FailureRecord:
    """What is remembered of a group's failures, in the status of its owner."""

    restarts: int = 0
    failed_at: datetime | None = None
    reason: str = ""


def recover(
    groups: Mapping[int, Group], held: Collection[int], records: Mapping[int, FailureRecord], now: datetime
) -> tuple[list[PodAction], datetime | None]:
    """Removals that are due now, and when the next one will be. `held` are the groups that stay or are made again."""
    actions: list[PodAction] = []
    wakes: list[datetime] = []
    for group in groups.values():
        forced, forced_at = _remove_by_force(group, now)
        actions += forced
        wakes += forced_at
        if group.state is not GroupState.FAILED:
            continue
        if group.staying:
            reason = f"group {group.index} is replaced as a whole: {_what_is_wrong(group)}"
            actions.append(DeletePods(group.index, group.staying, reason, ORPHAN_GRACE_SECONDS))
        if group.finished:
            is_current = group.index in held
            delay = restart_delay(records.get(group.index, FailureRecord()), now) if is_current else timedelta()
            due = (group.failed_at or now) + delay
            if due <= now:
                reason = _what_is_wrong(group)
                actions.append(DeletePods(group.index, group.finished, reason, counts_as_restart=is_current))
            else:
                wakes.append(due)
    return actions, min(wakes, default=None)


def restart_delay(record: FailureRecord, now: datetime) -> timedelta:
    """How long a failed group waits before it is replaced."""
    if record.restarts == 0 or record.failed_at is None or now - record.failed_at > _FORGET_AFTER:
        return timedelta()
    # The exponent is bounded: the count of restarts is not.
    doublings = min(record.restarts - 1, 10)
    return min(_BASE_DELAY * int(2**doublings), _LONGEST_DELAY)


def next_record(record: FailureRecord, reason: str, now: datetime) -> FailureRecord:
    """The record after one more failure."""
    is_recent = record.failed_at is not None and now - record.failed_at <= _FORGET_AFTER
    return FailureRecord(restarts=record.restarts + 1 if is_recent else 1, failed_at=now, reason=reason)


def _remove_by_force(group: Group, now: datetime) -> tuple[list[PodAction], list[datetime]]:
    due = {pod: pod.deletion_at + _OVERDUE_AFTER for pod in group.pods if pod.deletion_at is not None}
    overdue = tuple(pod for pod, at in due.items() if at <= now)
    reason = "it should have been gone a minute ago: its node does not answer"
    actions: list[PodAction] = [DeletePods(group.index, overdue, reason, grace_seconds=0)] if overdue else []
    return actions, [at for at in due.values() if at > now]


def _what_is_wrong(group: Group) -> str:
    if group.finished:
        return "; ".join(f"{pod.name} ended ({pod.message or pod.phase})" for pod in group.finished[:3])
    going = [pod.name for pod in group.pods if pod.is_terminating]
    if going:
        return f"{', '.join(going[:3])} is being deleted"
    if group.missing_ranks:
        return f"rank {', '.join(str(rank) for rank in group.missing_ranks[:8])} is gone"
    return "its pods are not of one revision and shape"
