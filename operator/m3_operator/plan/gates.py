"""Whose turn it is where nobody schedules groups as wholes: one group at a time is let to the scheduler.

Pods of such groups are created behind a gate, which keeps the scheduler from seeing them. Two groups that each got half
of the free nodes would wait for each other for ever; behind gates the first one takes what it needs, and the second
begins when every pod of the first has a node. A group that cannot have its nodes keeps its turn for a while only: what
it lacks may be there for the next, in another domain. This is about one M3Deployment; groups of two can still meet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from m3_operator.groups import Group, GroupState
from m3_operator.observed import ObservedPod

_SOON: Final = timedelta(seconds=1)


@dataclass(frozen=True)
class OpenGates:
    """Let these pods of a group to the scheduler."""

    group: int
    pods: tuple[ObservedPod, ...]
    reason: str


@dataclass(frozen=True)
class Turn:
    """What to open now, and when to look again: when the turn of a group that has no nodes yet is over, and soon after
    one was due to be opened, for pods that were just made behind gates make no event by which to notice them."""

    opening: OpenGates | None = None
    wake_at: datetime | None = None


def next_turn(groups: Mapping[int, Group], timeout: timedelta, now: datetime) -> Turn:
    """At most one group to open. A group that was opened by half is finished first, whatever else waits."""
    rising = [group for _, group in sorted(groups.items()) if group.state is GroupState.PENDING]
    waiting = [group for group in rising if any(pod.is_gated for pod in group.pods)]
    for group in waiting:
        if not all(pod.is_gated for pod in group.pods):
            return Turn(_open(group, "part of the group was opened before"), now + _SOON)
    ends = [_end_of_turn(group, timeout) for group in rising if group not in waiting and _is_unplaced(group)]
    held_until = max((end for end in ends if end is not None and end > now), default=None)
    if not waiting:
        return Turn()
    if held_until is not None:
        return Turn(wake_at=held_until)
    reason = "a group before it waits too long for nodes" if ends else "every group before it has its nodes"
    return Turn(_open(waiting[0], reason), now + _SOON)


def _open(group: Group, reason: str) -> OpenGates:
    return OpenGates(group.index, tuple(pod for pod in group.pods if pod.is_gated), reason)


def _is_unplaced(group: Group) -> bool:
    return any(pod.node_name is None for pod in group.pods)


def _end_of_turn(group: Group, timeout: timedelta) -> datetime | None:
    """When the turn is over that its last pod was given; None for pods that never had a gate."""
    opened = [pod.opened_at for pod in group.pods if pod.opened_at is not None]
    return max(opened) + timeout if opened else None
