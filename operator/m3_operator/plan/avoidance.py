"""Which nodes new groups stay away from, and until when.

A node is blamed when it was lost or when its GPU failed. The memory is in the owner's status, bounded, and forgets by
itself: a node that was mended serves again without anybody saying so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from m3_operator.plan.actions import CreatePods, DeletePods, PodAction
from m3_operator.spec.status import AVOIDED_NODES_SHOWN


@dataclass(frozen=True)
class AvoidedNode:
    """A node that gets no new group of this owner."""

    name: str
    until: datetime
    reason: str


def still_avoided(avoided: Iterable[AvoidedNode], now: datetime) -> tuple[AvoidedNode, ...]:
    """Those whose time is not up, by name."""
    return tuple(sorted((node for node in avoided if node.until > now), key=lambda node: node.name))


def blame(
    avoided: Sequence[AvoidedNode], actions: Iterable[PodAction], avoid_seconds: int, now: datetime
) -> tuple[AvoidedNode, ...]:
    """The memory after these actions. When there are too many, those whose time is up soonest are forgotten."""
    found = {node.name: node for node in avoided}
    until = now.replace(microsecond=0) + timedelta(seconds=avoid_seconds)
    for action in actions:
        for name in action.blamed_nodes if isinstance(action, DeletePods) else ():
            found[name] = AvoidedNode(name, until, action.reason)
    kept = sorted(found.values(), key=lambda node: (node.until, node.name))[-AVOIDED_NODES_SHOWN:]
    return still_avoided(kept, now)


def keep_away(actions: Iterable[PodAction], avoided: Sequence[AvoidedNode]) -> list[PodAction]:
    """The actions, with every new pod kept away from the nodes that are avoided."""
    names = tuple(node.name for node in avoided)
    return [replace(action, avoid_nodes=names) if isinstance(action, CreatePods) else action for action in actions]
