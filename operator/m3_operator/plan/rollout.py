"""A changed spec reaches running groups one at a time.

A group that serves is replaced only while every other wanted group serves, so that a rollout alone never takes more
than one down, and one whose new revision does not come up stops it. Groups that do not serve are replaced at once:
they have nothing to lose, and the change may be what repairs them.
"""

from collections.abc import Mapping

from m3_operator.groups import Group, GroupState
from m3_operator.plan.actions import PodAction
from m3_operator.plan.scale import drain

_COMING_UP = (GroupState.CREATING, GroupState.PENDING, GroupState.LOADING)


def roll(groups: Mapping[int, Group], wanted: int, revision: str) -> list[PodAction]:
    """Remove what the rollout may remove now; `scale` creates the new revision in its place."""
    reason = f"revision {revision} replaces it"
    outdated = [group for index, group in groups.items() if index < wanted and group.revision != revision]
    actions: list[PodAction] = []
    for group in outdated:
        if group.state in _COMING_UP:
            actions += drain(group, reason)
    serving = [group for group in outdated if group.is_ready]
    if serving:
        candidate = max(serving, key=lambda group: group.index)
        others = (index for index in range(wanted) if index != candidate.index)
        if all(index in groups and groups[index].is_ready for index in others):
            actions += drain(candidate, reason)
    return actions
