"""Builders of what the operator observes, and a tiny simulated cluster that carries its plans out.

The simulation knows three things of Kubernetes: a created pod comes up, a deleted one goes, and names are unique.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from m3_operator.groups import Group, by_index
from m3_operator.names import pod_name
from m3_operator.observed import ObservedPod
from m3_operator.plan.actions import CreatePods, PodAction
from m3_operator.plan.faults import HEALTHY, Health
from m3_operator.plan.recovery import FailureRecord, next_record
from m3_operator.plan.steps import Steps, Wanted, next_steps

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
NAME = "m3"


def pod(group: int, rank: int = 0, **changes: Any) -> ObservedPod:
    """A pod that runs and is ready, unless told otherwise."""
    usual: dict[str, Any] = {
        "name": pod_name(NAME, group, rank),
        "uid": f"uid-{group}-{rank}",
        "owner_uid": "owner",
        "deployment": NAME,
        "group": group,
        "rank": rank,
        "nodes": 1,
        "revision": "r1",
        "phase": "Running",
        "node_name": "node-0",
        "ip": "10.0.0.1",
        "is_ready": True,
        "deletion_at": None,
        "finished_at": None,
        "message": "",
    }
    return ObservedPod(**{**usual, **changes})


def members(group: int, nodes: int, **changes: Any) -> list[ObservedPod]:
    """All pods of one group, alike."""
    return [pod(group, rank, nodes=nodes, **changes) for rank in range(nodes)]


def terminating(one: ObservedPod) -> ObservedPod:
    """The pod after its deletion was asked for."""
    return replace(one, deletion_at=NOW + timedelta(seconds=30))


def failed(one: ObservedPod, at: datetime = NOW) -> ObservedPod:
    """The pod after its process ended."""
    return replace(one, phase="Failed", is_ready=False, finished_at=at, message="exit code 1")


@dataclass
class SimulatedPods:
    """The pods of one deployment, and what has been remembered of its failures."""

    pods: dict[str, ObservedPod] = field(default_factory=dict)
    records: dict[int, FailureRecord] = field(default_factory=dict)
    now: datetime = NOW
    created: int = 0
    health: Health = HEALTHY
    broken: frozenset[str] = frozenset()
    """Revisions whose pods never come up."""

    @classmethod
    def of(cls, pods: Iterable[ObservedPod]) -> "SimulatedPods":
        """A cluster with these pods."""
        return cls({one.name: one for one in pods})

    @property
    def groups(self) -> Mapping[int, Group]:
        """What the operator makes of them."""
        return by_index(self.pods.values())

    def ready(self) -> int:
        """Groups that serve."""
        return sum(group.is_ready for group in self.groups.values())

    def plan(self, wanted: Wanted) -> Steps:
        """What the operator would do now."""
        return next_steps(wanted, self.groups, self.records, frozenset(), self.now, health=self.health)

    def perform(self, actions: Iterable[PodAction], wanted: Wanted) -> None:
        """Carry a plan out: pods that are created wait, pods that are deleted are on their way."""
        for action in actions:
            if isinstance(action, CreatePods):
                for rank in action.ranks:
                    self._create(action, rank, wanted)
                continue
            for one in action.pods:
                gone = one.is_finished or action.grace_seconds == 0 or one.phase == "Pending"
                if gone:
                    self.pods.pop(one.name, None)
                elif one.name in self.pods:
                    self.pods[one.name] = replace(self.pods[one.name], deletion_at=self.now + timedelta(seconds=30))
            if action.counts_as_restart:
                record = self.records.get(action.group, FailureRecord())
                revision = action.pods[0].revision if action.pods else ""
                self.records[action.group] = next_record(record, action.reason, self.now, wanted.recovery, revision)

    def let_time_pass(self, seconds: float = 1.0) -> None:
        """Pods that are going are gone, pods that wait are ready."""
        self.now += timedelta(seconds=seconds)
        self.pods = {name: self._risen(one) for name, one in self.pods.items() if not one.is_terminating}

    def settle(self, wanted: Wanted, *, turns: int = 200) -> int:
        """Cycles until nothing is left to do; how many it took. Raises AssertionError if it never ends."""
        for turn in range(turns):
            steps = self.plan(wanted)
            if not steps.actions and steps.wake_at is None:
                self.let_time_pass()
                if not self.plan(wanted).actions:
                    return turn
            self.perform(steps.actions, wanted)
            self.let_time_pass(60 if steps.wake_at and not steps.actions else 1)
        raise AssertionError(f"no end after {turns} turns: {self.plan(wanted)}")

    def _create(self, action: CreatePods, rank: int, wanted: Wanted) -> None:
        name = pod_name(NAME, action.group, rank)
        if name in self.pods:
            return  # AlreadyExists, which is fine
        self.created += 1
        self.pods[name] = pod(
            action.group,
            rank,
            avoids=action.avoid_nodes,
            uid=f"uid-{self.created}-new",
            nodes=wanted.nodes if action.revision == wanted.revision else wanted.current_nodes,
            revision=action.revision,
            phase="Pending",
            is_ready=False,
            node_name=None,
        )

    def _risen(self, one: ObservedPod) -> ObservedPod:
        if one.phase != "Pending" or one.revision in self.broken:
            return one
        return replace(one, phase="Running", is_ready=True, ready_at=self.now, node_name="node-0")
