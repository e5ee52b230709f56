"""The next safe steps for the pods of one M3Deployment: recovery, then rollout, then scale.

At the fixed point the list is empty. No two steps touch one group: whoever comes first in that order has it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from m3_operator.groups import Group
from m3_operator.names import pod_name
from m3_operator.plan.actions import CreatePods, PodAction
from m3_operator.plan.avoidance import keep_away
from m3_operator.plan.faults import HEALTHY, Health
from m3_operator.plan.recovery import FailureRecord, recover
from m3_operator.plan.rollout import roll
from m3_operator.plan.scale import scale
from m3_operator.spec.recovery import RecoverySpec


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the spec asks for."""

    deployment: str
    groups: int
    nodes: int
    revision: str
    recovery: RecoverySpec = field(default_factory=RecoverySpec)


@dataclass(frozen=True)
class Steps:
    """Actions in order, and when to look again even if nothing happens."""

    actions: tuple[PodAction, ...] = ()
    wake_at: datetime | None = None


def next_steps(
    wanted: Wanted,
    groups: Mapping[int, Group],
    records: Mapping[int, FailureRecord],
    names_in_the_way: Collection[str],
    now: datetime,
    *,
    health: Health = HEALTHY,
) -> Steps:
    """What to do now. The same observation gives the same steps, whatever event led here."""
    recovery, wake_at = recover(
        groups, wanted.groups, wanted.revision, records, now, recovery=wanted.recovery, health=health
    )
    candidates = [
        *recovery,
        *roll(groups, wanted.groups, wanted.revision),
        *scale(groups, wanted.groups, wanted.nodes, wanted.revision),
    ]
    taken: set[int] = set()
    actions: list[PodAction] = list(recovery)
    taken.update(action.group for action in recovery)
    for action in candidates[len(recovery) :]:
        if action.group in taken or _is_blocked(wanted.deployment, action, names_in_the_way):
            continue
        taken.add(action.group)
        actions.append(action)
    return Steps(tuple(keep_away(actions, health.avoided)), wake_at)


def _is_blocked(deployment: str, action: PodAction, names_in_the_way: Collection[str]) -> bool:
    """Whether a pod of an earlier owner still has one of the names; its deletion wakes us."""
    if not isinstance(action, CreatePods):
        return False
    return any(pod_name(deployment, action.group, rank) in names_in_the_way for rank in action.ranks)
