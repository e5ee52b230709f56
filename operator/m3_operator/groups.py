"""The state of one group, derived from its pods at this moment and never stored.

A group is one world of ranks: it serves when all of them are up and fails when one of them ends or is lost. Rank 0
alone serves HTTP, so a group drains by deleting rank 0 first: its peers must live while it answers what it took. A peer
that is being deleted (the drain of its node, say) ignores that until rank 0 is gone, so the group drains then as well.

    absent -> creating -> pending -> loading -> ready          (as its pods come up)
    any -> draining -> terminating -> absent                   (a member is going, then rank 0, then all of it)
    any -> failed -> terminating -> absent                     (a member ended or is lost)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property

from m3_operator.observed import ObservedPod


class GroupState(StrEnum):
    """Where a group is between being wanted and being gone."""

    ABSENT = "Absent"
    CREATING = "Creating"
    PENDING = "Pending"
    LOADING = "Loading"
    READY = "Ready"
    DRAINING = "Draining"
    FAILED = "Failed"
    TERMINATING = "Terminating"


@dataclass(frozen=True)
class Group:
    """The pods of one group, by rank."""

    index: int
    pods: tuple[ObservedPod, ...] = ()

    @cached_property
    def nodes(self) -> int:
        """Pods that the group should have, as declared when it was created."""
        return max((pod.nodes for pod in self.pods), default=0)

    @property
    def revision(self) -> str | None:
        """What its pods were created from; None without pods."""
        return self.pods[0].revision if self.pods else None

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        """Ranks without a pod, of those that were declared."""
        present = {pod.rank for pod in self.pods}
        return tuple(rank for rank in range(self.nodes) if rank not in present)

    @property
    def finished(self) -> tuple[ObservedPod, ...]:
        """Pods whose process ended without being asked to."""
        return tuple(pod for pod in self.pods if pod.is_finished and not pod.is_terminating)

    @property
    def staying(self) -> tuple[ObservedPod, ...]:
        """Pods that live and are not being deleted."""
        return tuple(pod for pod in self.pods if not pod.is_finished and not pod.is_terminating)

    @property
    def leader(self) -> ObservedPod | None:
        """Rank 0, as long as there is one."""
        return self.pods[0] if self.pods and self.pods[0].rank == 0 else None

    @property
    def unscheduled(self) -> tuple[ObservedPod, ...]:
        """Pods that wait for a node."""
        return tuple(pod for pod in self.staying if pod.node_name is None)

    @property
    def failed_at(self) -> datetime | None:
        """When its last member ended."""
        return max((pod.finished_at for pod in self.finished if pod.finished_at), default=None)

    @property
    def ready_since(self) -> datetime | None:
        """When the last of its pods became ready; None if that is not known."""
        return max((pod.ready_at for pod in self.pods if pod.ready_at), default=None)

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return self.state is GroupState.READY

    @cached_property
    def message(self) -> str:
        """The most telling words about it, with the pod's name."""
        return next((f"{pod.name}: {pod.message}" for pod in self.pods if pod.message), "")

    @cached_property
    def state(self) -> GroupState:
        """Its state now."""
        going = [pod for pod in self.pods if pod.is_terminating]
        if len(going) == len(self.pods):
            return GroupState.TERMINATING if going else GroupState.ABSENT
        if going and not self.finished:
            return GroupState.DRAINING if self._can_drain else GroupState.FAILED
        is_one_world = len({(pod.revision, pod.nodes) for pod in self.pods}) == 1 and self.pods[-1].rank < self.nodes
        if self.finished or not is_one_world:
            return GroupState.FAILED
        if self.missing_ranks:
            lost_a_member = any(pod.has_started for pod in self.pods)
            return GroupState.FAILED if lost_a_member else GroupState.CREATING
        return self._rising_state()

    @property
    def _can_drain(self) -> bool:
        """Whether every member lives, those that are going included, so that rank 0 can answer what it took.

        A rank 0 that is ready has met all its peers, also one that was not seen to start.
        """
        if self.leader is None or self.missing_ranks or any(pod.is_finished for pod in self.pods):
            return False
        return self.leader.is_ready or all(pod.has_started for pod in self.pods)

    def _rising_state(self) -> GroupState:
        if all(pod.is_ready for pod in self.pods):
            return GroupState.READY
        return GroupState.LOADING if all(pod.phase == "Running" for pod in self.pods) else GroupState.PENDING


def by_index(pods: Iterable[ObservedPod]) -> dict[int, Group]:
    """The groups that have pods, in order; the order of `pods` does not matter."""
    found: dict[int, list[ObservedPod]] = {}
    for pod in sorted(pods, key=lambda pod: (pod.group, pod.rank)):
        found.setdefault(pod.group, []).append(pod)
    return {index: Group(index, tuple(members)) for index, members in found.items()}
