"""As many groups as wanted: create the lowest free indexes, let the highest go. Never touches what may stay."""

from collections.abc import Mapping

from m3_operator.groups import Group, GroupState
from m3_operator.plan.actions import CreatePods, DeletePods, PodAction

_GOING_ALREADY = (GroupState.DRAINING, GroupState.TERMINATING, GroupState.FAILED)
_RUNNING = (GroupState.READY, GroupState.LOADING)


def scale(groups: Mapping[int, Group], wanted: int, nodes: int, revision: str) -> list[PodAction]:
    """Create groups 0 .. wanted-1 where they are absent or half created, drain those above."""
    actions: list[PodAction] = []
    for index in range(wanted):
        group = groups.get(index, Group(index))
        if group.state is GroupState.ABSENT:
            actions.append(CreatePods(index, tuple(range(nodes)), revision, f"{wanted} groups are wanted"))
        elif group.state is GroupState.CREATING and group.revision == revision:
            actions.append(CreatePods(index, group.missing_ranks, revision, "the group is not complete"))
    for index in sorted(groups, reverse=True):
        if index >= wanted:
            actions += drain(groups[index], f"only {wanted} groups are wanted")
    return actions


def drain(group: Group, reason: str) -> list[PodAction]:
    """Let a group go without cutting an answer: rank 0 first, and its peers once it is gone.

    The second half is `recovery`'s, which removes what is left of a group without rank 0. A group that never ran goes
    at once; one that runs may still be answering, even while it is not ready.
    """
    if group.state in _GOING_ALREADY:
        return []
    pods = group.pods[:1] if group.state in _RUNNING else group.pods
    return [DeletePods(group.index, pods, reason)] if pods else []
