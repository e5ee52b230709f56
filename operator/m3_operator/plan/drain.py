"""How a group leaves without cutting an answer: rank 0 first, and its peers once it is gone."""

from typing import Final

from m3_operator.groups import Group, GroupState
from m3_operator.plan.actions import DeletePods

_GOING_ALREADY: Final = (GroupState.DRAINING, GroupState.TERMINATING, GroupState.FAILED)
_RUNNING: Final = (GroupState.READY, GroupState.LOADING)


def drain(group: Group, reason: str) -> list[DeletePods]:
    """Let a group go. The second half is `recovery`'s, which removes what is left of a group without rank 0.

    A group that never ran goes at once; one that runs may still be answering, even while it is not ready.
    """
    if group.state in _GOING_ALREADY:
        return []
    pods = group.pods[:1] if group.state in _RUNNING else group.pods
    return [DeletePods(group.index, pods, reason)] if pods else []
