"""Which revision is wanted, from the first one to a rollback, on a small cluster that carries every decision out."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from m3_operator.decide.deployment import DeploymentDecision, decide_deployment
from m3_operator.decide.installation import Installation
from m3_operator.observed import DeploymentSnapshot
from m3_operator.plan.actions import CreateObject, CreatePods, DeleteObject
from m3_operator.render.worker import group_pods
from m3_operator.status.deployment import deployment_status
from operator_world import SimulatedPods

INSTALLATION = Installation(worker_image="worker.test/m3:1", router_image="router.test/m3:1")
ROUTER = {
    "metadata": {"name": "m3", "namespace": "ns", "uid": "r", "ownerReferences": [{"uid": "u", "controller": True}]},
    "spec": {"deployments": [{"name": "m3"}]},
    "status": {"readyReplicas": 1, "conditions": [{"type": "Ready", "status": "True", "reason": "AllRoutersReady"}]},
}


@dataclass
class World:
    """One M3Deployment, its pods and its ControllerRevisions."""

    spec: dict[str, Any]
    installation: Installation = INSTALLATION
    status: dict[str, Any] = field(default_factory=dict)
    revisions: dict[str, Any] = field(default_factory=dict)
    simulated: SimulatedPods = field(default_factory=SimulatedPods)

    @property
    def now(self) -> datetime:
        return self.simulated.now

    @property
    def decision(self) -> DeploymentDecision:
        spec = {"model": {"name": "M", "source": {"tiny": {}}}, "parallelism": {"gpusPerNode": 0}, **self.spec}
        snapshot = DeploymentSnapshot(
            manifest={
                "metadata": {"name": "m3", "namespace": "ns", "uid": "u", "generation": 1},
                "spec": spec,
                "status": self.status,
            },
            pods=tuple(self.simulated.pods.values()),
            names_in_the_way=frozenset(),
            children={("ControllerRevision", name): found for name, found in self.revisions.items()},
            router=ROUTER,
            namesake=ROUTER,
        )
        decision = decide_deployment(snapshot, self.installation, self.now)
        self.status_now = deployment_status(snapshot, decision, decision.records, decision.problem, self.now)
        return decision

    def step(self, seconds: float = 1.0) -> None:
        """One cycle, and then time."""
        decision = self.decision
        for action in decision.objects:
            if isinstance(action, CreateObject):
                owned = {**action.manifest["metadata"], "ownerReferences": [{"uid": "u", "controller": True}]}
                self.revisions[owned["name"]] = {**action.manifest, "metadata": owned}
            elif isinstance(action, DeleteObject) and action.manifest.get("kind") == "ControllerRevision":
                del self.revisions[action.manifest["metadata"]["name"]]
        assert decision.revisions is not None
        self.simulated.perform(decision.steps.actions, decision.revisions.wanted)
        assert self.decision is not None
        self.status = self.status_now
        self.simulated.let_time_pass(seconds)

    def settle(self, steps: int = 30) -> None:
        for _ in range(steps):
            self.step()

    def asked(self) -> str:
        revisions = self.decision.revisions
        assert revisions is not None
        return revisions.asked

    def breaks(self, **spec: Any) -> str:
        """Ask for a spec whose pods never come up; its revision."""
        self.spec = {**self.spec, **spec}
        self.simulated.broken |= {self.asked()}
        return self.asked()

    def condition(self, name: str) -> tuple[str, str, str]:
        (found,) = [one for one in self.status["conditions"] if one["type"] == name]
        return found["status"], found["reason"], found["message"]

    def running(self) -> set[str | None]:
        return {group.revision for group in self.simulated.groups.values()}


def engine(**changes: Any) -> dict[str, Any]:
    return {"engine": {"maxConcurrent": 7, **changes}}


def settled(**spec: Any) -> tuple[World, str]:
    """A deployment of two groups that all serve, and its revision."""
    world = World({"replicas": 2, **spec})
    world.settle()
    return world, world.asked()


def test_the_first_revision_is_current_once_all_groups_serve() -> None:
    world = World({"replicas": 2})
    world.step()
    assert "currentRevision" not in world.status
    assert world.condition("Progressing")[:2] == ("True", "Scaling")
    world.settle()
    assert world.status["currentRevision"] == world.status["updateRevision"] == world.status["revision"]
    assert (world.status["availableReplicas"], world.status["updatedReplicas"]) == (2, 2)
    assert world.condition("Progressing")[:2] == ("False", "Settled")
    assert "rollout" not in world.status
    assert [found["revision"] for found in world.revisions.values()] == [1]


def test_during_a_rollout_the_status_names_both_revisions() -> None:
    world, before = settled()
    world.spec |= engine()
    world.step()
    assert (world.status["currentRevision"], world.status["updateRevision"]) == (before, world.asked())
    assert world.condition("Progressing")[:2] == ("True", "RollingOut")
    world.settle()
    assert world.running() == {world.asked()} == {world.status["currentRevision"]}
    assert sorted(found["revision"] for found in world.revisions.values()) == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 3},
        {"suspend": True},
        {"router": {"name": "m3"}},
        {"rollout": {"partition": 1, "minReadySeconds": 5, "autoRollback": True}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_no_pod_carries_makes_no_revision(change: dict[str, Any]) -> None:
    world, before = settled()
    world.spec |= change
    world.settle()
    assert world.asked() == before
    assert len(world.revisions) == 1


def test_a_failed_group_of_the_partition_is_rendered_from_the_revision_that_was_kept() -> None:
    world, before = settled(rollout={"partition": 1})
    world.spec |= engine(image="worker.test/m3:2")
    world.settle()
    assert world.running() == {before, world.asked()}
    assert world.condition("Progressing")[1:] == (
        "Settled",
        "1 of 2 groups stay at other revisions by rollout.partition",
    )
    (old,) = [name for name, one in world.simulated.pods.items() if one.revision == before]
    del world.simulated.pods[old]
    (action,) = world.decision.steps.actions
    assert isinstance(action, CreatePods)
    assert action.revision == before
    template = world.decision.templates[before]
    (made,) = group_pods(template.deployment, action.group, before, image=template.image)
    assert made["spec"]["containers"][0]["image"] == "worker.test/m3:1"
    assert not [flag for flag in made["spec"]["containers"][0]["args"] if "concurrent" in flag]


def test_history_is_bounded_and_never_forgets_what_is_in_use() -> None:
    world, first = settled(rollout={"partition": 1, "revisionHistoryLimit": 2})
    for value in range(1, 7):
        world.spec |= engine(maxConcurrent=value)
        world.settle(5)
    kept = sorted(found["revision"] for found in world.revisions.values())
    assert kept == [1, 5, 6, 7]
    assert f"m3-{first}" in world.revisions


def test_an_old_revision_that_is_asked_for_again_is_the_same_one() -> None:
    world, before = settled()
    world.spec |= engine()
    world.settle()
    del world.spec["engine"]
    world.settle()
    assert world.asked() == before
    assert len(world.revisions) == 2
    assert world.running() == {before}


def test_a_rollout_without_progress_says_so_at_its_deadline_and_goes_on_trying() -> None:
    world, before = settled(rollout={"progressDeadlineSeconds": 60})
    broken = world.breaks(**engine())
    world.settle(10)
    assert world.condition("Progressing")[:2] == ("True", "RollingOut")
    assert world.decision.wake_at is not None
    world.simulated.now = world.decision.wake_at
    world.step()
    status, reason, message = world.condition("Progressing")
    assert (status, reason) == ("False", "ProgressDeadlineExceeded")
    assert message.startswith("no progress for 60 s: 0 of 2 groups are of revision")
    assert world.running() == {before, broken}
    world.simulated.broken = frozenset()
    world.settle()
    assert world.condition("Progressing")[:2] == ("False", "Settled")


def test_a_group_that_comes_and_goes_is_no_progress() -> None:
    world, _ = settled(rollout={"progressDeadlineSeconds": 60})
    world.breaks(**engine())
    world.settle(3)
    since = world.status["rollout"]["progressTime"]
    for _ in range(5):
        name = next(name for name, one in world.simulated.pods.items() if one.phase == "Pending")
        del world.simulated.pods[name]
        world.step()
        world.step()
    assert world.status["rollout"]["progressTime"] == since


def test_a_stuck_rollout_goes_back_by_itself_and_names_both_revisions() -> None:
    world, before = settled(rollout={"progressDeadlineSeconds": 60, "autoRollback": True})
    broken = world.breaks(**engine())
    world.settle(5)
    assert world.running() == {before, broken}
    world.simulated.now += timedelta(seconds=60)
    world.settle()
    assert world.running() == {before}
    assert world.simulated.ready() == 2
    status, reason, message = world.condition("RolledBack")
    assert (status, reason) == ("True", "ProgressDeadlineExceeded")
    assert broken in message
    assert before in message
    assert world.condition("Progressing")[:2] == ("False", "RolledBack")
    assert world.condition("Ready")[0] == "True"
    assert (world.status["updateRevision"], world.status["currentRevision"]) == (before, before)


def test_a_rollback_lasts_until_the_spec_asks_for_yet_another_revision() -> None:
    world, before = settled(rollout={"progressDeadlineSeconds": 60, "autoRollback": True})
    world.breaks(**engine())
    world.settle(5)
    world.simulated.now += timedelta(days=1)
    world.settle()
    world.simulated.now += timedelta(days=30)
    world.settle()
    assert world.running() == {before}
    world.spec |= engine(maxConcurrent=9)
    world.settle()
    assert world.running() == {world.asked()} != {before}
    assert not [one for one in world.status["conditions"] if one["type"] == "RolledBack"]
    assert "rollout" not in world.status


def test_a_rollback_needs_no_failed_group() -> None:
    world, before = settled(replicas=1, rollout={"progressDeadlineSeconds": 60, "autoRollback": True})
    broken = world.breaks(**engine())
    world.settle(5)
    assert world.running() == {broken}
    world.simulated.now += timedelta(seconds=60)
    world.simulated.pods.clear()  # refused by a quota, or taken by hand
    world.settle()
    assert world.running() == {before}
    assert world.condition("RolledBack")[0] == "True"


def test_a_first_revision_that_does_not_come_up_has_nothing_to_go_back_to() -> None:
    world = World({"replicas": 1, "rollout": {"progressDeadlineSeconds": 60, "autoRollback": True}})
    first = world.breaks()
    world.settle(5)
    world.simulated.now += timedelta(days=1)
    world.settle(5)
    assert world.condition("Progressing")[:2] == ("False", "ProgressDeadlineExceeded")
    second = world.breaks(**engine())
    world.simulated.now += timedelta(days=1)
    world.settle(5)
    assert first != second
    assert world.running() == {second}


def test_the_deadline_does_not_run_while_paused() -> None:
    world, before = settled(rollout={"progressDeadlineSeconds": 60, "paused": True, "autoRollback": True})
    world.breaks(**engine())
    world.settle(3)
    world.simulated.now += timedelta(days=1)
    world.settle(3)
    assert world.condition("Progressing")[:2] == ("False", "Paused")
    assert world.running() == {before}


def test_a_spec_that_cannot_fit_rolls_nothing_and_so_nothing_is_rolled_back() -> None:
    world, before = settled(rollout={"progressDeadlineSeconds": 60, "autoRollback": True})
    world.spec |= {"engine": {"maxContextTokens": 4096, "cacheTokens": 1024}}
    world.settle(3)
    world.simulated.now += timedelta(days=1)
    world.settle(3)
    assert world.condition("Progressing")[:2] == ("False", "Refused")
    assert world.running() == {before}
    assert "rollout" not in world.status


def test_a_lost_status_only_makes_the_deadline_later() -> None:
    world, before = settled(rollout={"progressDeadlineSeconds": 60, "autoRollback": True})
    world.breaks(**engine())
    world.settle(5)
    world.simulated.now += timedelta(seconds=40)
    world.status = {}
    world.step()
    assert world.status["currentRevision"] == before
    world.simulated.now += timedelta(seconds=40)
    world.settle(3)
    assert world.condition("Progressing")[1] == "RollingOut"
    world.simulated.now += timedelta(seconds=40)
    world.settle()
    assert world.running() == {before}


def test_a_revision_whose_object_is_gone_cannot_be_gone_back_to() -> None:
    world, before = settled(rollout={"partition": 1})
    world.spec |= engine()
    del world.revisions[f"m3-{before}"]
    world.settle()
    assert world.running() == {world.asked()}


def test_a_revision_of_the_operators_default_image_comes_back_with_that_image() -> None:
    world, before = settled(rollout={"progressDeadlineSeconds": 60, "autoRollback": True})
    world.installation = Installation(worker_image="worker.test/m3:broken", router_image="r")
    world.breaks()
    world.settle(5)
    world.simulated.now += timedelta(seconds=60)
    world.settle()
    assert world.running() == {before}
    assert world.decision.templates[before].image == "worker.test/m3:1"
