"""The next safe steps for the pods of one M3Deployment: recovery, and then the number and revision of groups.

At the fixed point the list is empty. No two steps touch one group: what recovery takes the rest leaves alone.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from m3_operator.groups import Group
from m3_operator.plan.actions import PodAction
from m3_operator.plan.avoidance import keep_away
from m3_operator.plan.faults import HEALTHY, Health
from m3_operator.plan.recovery import FailureRecord, recover
from m3_operator.plan.rollout import next_availability, roll, stand
from m3_operator.plan.wanted import RolloutPolicy, Wanted

__all__ = ["RolloutPolicy", "Steps", "Wanted", "next_steps"]


@dataclass(frozen=True)
class Steps:
    """Actions in order, and when to look again even if nothing happens."""

    actions: tuple[PodAction, ...] = ()
    wake_at: datetime | None = None
    leaving: frozenset[int] = frozenset()
    """Groups that go and are not made again: too many, or drained for another."""


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
    standing = stand(wanted, groups, now)
    held = standing.held | standing.missed
    recovery, wake_at = recover(groups, held, records, now, recovery=wanted.recovery, health=health)
    # A group that a fault was found in does not count as available, whatever its probes say.
    taken = {action.group for action in recovery} | health.faults.keys()
    rollout = roll(wanted, groups, standing, now, taken=taken, names_in_the_way=names_in_the_way)
    wakes = [at for at in (wake_at, next_availability(wanted, groups.values(), now)) if at is not None]
    leaving = standing.excess | (standing.going - standing.missed)
    return Steps(tuple(keep_away([*recovery, *rollout], health.avoided)), min(wakes, default=None), leaving)
