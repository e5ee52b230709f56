"""From a decision of the autoscaler to groups: told in the status first, carried out next, never in spec.replicas."""

from datetime import timedelta
from typing import Any

import pytest

from m3_operator.decide.deployment import DeploymentDecision, decide_deployment
from m3_operator.decide.installation import Installation
from m3_operator.observed import DeploymentSnapshot, ObservedPod
from m3_operator.plan.actions import ApplyObject, CreatePods, DeletePods
from m3_operator.signals.values import DeploymentSignals, Sample, WorkerSignals
from m3_operator.status.deployment import deployment_status
from operator_world import NOW, pod, terminating

INSTALLATION = Installation(worker_image="w", router_image="r", optional_kinds=frozenset({"HorizontalPodAutoscaler"}))
BUILT_IN = {"maxReplicas": 5, "signals": [{"type": "CacheUsage", "target": 1}]}


def signals(value: float, *, ready: int = 1, workers: dict[str, WorkerSignals] | None = None) -> DeploymentSignals:
    samples = tuple(
        Sample(at=NOW - timedelta(seconds=back), ready=ready, requests=3, values={"CacheUsage": value})
        for back in range(300, -1, -5)
    )
    return DeploymentSignals(samples=samples, workers=workers or {}, busy_at=NOW)


def snapshot(
    *groups: ObservedPod, told: dict[str, Any] | None = None, seen: DeploymentSignals | None = None, **spec: Any
) -> DeploymentSnapshot:
    manifest: dict[str, Any] = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "prod", "uid": "owner", "generation": 1},
        "spec": {
            "model": {"name": "M", "source": {"tiny": {}}},
            "parallelism": {"gpusPerNode": 0},
            "autoscaling": BUILT_IN,
            **spec,
        },
        "status": {"autoscaling": told} if told else {},
    }
    bare = DeploymentSnapshot(
        manifest=manifest, pods=(), names_in_the_way=frozenset(), children={}, router=None, namesake=None
    )
    revision = str(decide_deployment(bare, INSTALLATION, NOW).revision)
    return DeploymentSnapshot(
        manifest=manifest,
        pods=tuple(pod(one.group, one.rank, revision=revision, deletion_at=one.deletion_at) for one in groups),
        names_in_the_way=frozenset(),
        children={},
        router=None,
        namesake=None,
        signals=seen or DeploymentSignals(),
    )


def decide(found: DeploymentSnapshot) -> tuple[DeploymentDecision, dict[str, Any]]:
    decision = decide_deployment(found, INSTALLATION, NOW)
    return decision, deployment_status(found, decision, {}, decision.problem, NOW)


def created(decision: DeploymentDecision) -> list[int]:
    return [action.group for action in decision.steps.actions if isinstance(action, CreatePods)]


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {found["type"]: (found["status"], found["reason"]) for found in status["conditions"]}


def test_a_new_number_is_told_before_it_is_carried_out() -> None:
    told = {"backend": "Builtin", "desired": 1, "reason": "WithinTarget"}
    first, status = decide(snapshot(pod(0), told=told, seen=signals(1.6)))
    assert created(first) == []
    assert first.scaling is not None
    assert first.scaling.told_at is not None
    assert status["autoscaling"]["desired"] == 2
    assert status["autoscaling"]["history"] == [
        {"time": "2026-11-21T12:00:00Z", "from": 1, "to": 2, "reason": "CacheUsage is above its target"}
    ]
    second, after = decide(snapshot(pod(0), told=status["autoscaling"], seen=signals(1.6)))
    assert created(second) == [1]
    assert second.scaling is not None
    assert second.scaling.told_at is None
    assert after["autoscaling"]["history"] == status["autoscaling"]["history"]


def test_spec_replicas_does_not_count_and_the_status_is_the_memory() -> None:
    told = {"backend": "Builtin", "desired": 2, "reason": "WithinTarget"}
    decision, status = decide(snapshot(pod(0), pod(1), told=told, replicas=5))
    assert (created(decision), status["autoscaling"]["desired"]) == ([], 2)
    assert conditions(status)["ScalingActive"] == ("False", "NoMetrics")


@pytest.mark.parametrize(("groups", "desired"), [(0, 1), (3, 3), (7, 5)])
def test_without_a_memory_the_groups_that_exist_count(groups: int, desired: int) -> None:
    decision, status = decide(snapshot(*(pod(group) for group in range(groups))))
    assert decision.wanted == status["autoscaling"]["desired"] == desired


def test_a_spec_that_cannot_run_forgets_nothing() -> None:
    told = {"backend": "Builtin", "desired": 4, "reason": "WithinTarget", "history": []}
    _, status = decide(snapshot(told=told, replicas="many"))
    assert status["autoscaling"] == told


def test_a_suspension_runs_no_group_and_forgets_nothing() -> None:
    told = {"backend": "Builtin", "desired": 4, "reason": "WithinTarget"}
    decision, status = decide(snapshot(told=told, seen=signals(1.6), suspend=True))
    assert (decision.wanted, status["autoscaling"]["desired"]) == (0, 4)
    assert conditions(status)["ScalingActive"] == ("False", "Suspended")
    assert decision.scaling is not None
    assert decision.scaling.told_at is None


def test_a_group_without_a_node_limits_scaling() -> None:
    told = {"backend": "Builtin", "desired": 2, "reason": "AboveTarget"}
    found = snapshot(pod(0), pod(1), told=told, seen=signals(1.6))
    waiting = pod(
        1,
        revision=found.pods[1].revision,
        phase="Pending",
        is_ready=False,
        node_name=None,
        message="not scheduled: 0/4 nodes are available",
    )
    decision, status = decide(
        DeploymentSnapshot(
            manifest=found.manifest,
            pods=(found.pods[0], waiting),
            names_in_the_way=frozenset(),
            children={},
            router=None,
            namesake=None,
            signals=found.signals,
        )
    )
    assert decision.wanted == status["autoscaling"]["desired"] == 2
    assert conditions(status)["ScalingLimited"] == ("True", "Capacity")


def test_other_backends_write_spec_replicas_themselves() -> None:
    hpa = {**BUILT_IN, "backend": "HPA"}
    decision, status = decide(snapshot(autoscaling=hpa, replicas=3))
    applied = [action.manifest["kind"] for action in decision.objects if isinstance(action, ApplyObject)]
    assert "HorizontalPodAutoscaler" in applied
    assert (decision.wanted, status["autoscaling"]["desired"]) == (3, 3)
    assert conditions(status)["ScalingActive"] == ("True", "OwnedByBackend")


def test_a_backend_that_the_api_server_does_not_have_is_named() -> None:
    keda = {**BUILT_IN, "backend": "KEDA", "prometheusUrl": "http://p"}
    decision, status = decide(snapshot(autoscaling=keda, replicas=2))
    assert "ScaledObject" not in [action.manifest["kind"] for action in decision.objects]
    assert decision.wanted == 2
    assert conditions(status)["ScalingActive"] == ("False", "BackendMissing")


def test_a_group_that_drains_shows_what_it_still_answers() -> None:
    told = {"backend": "Builtin", "desired": 1, "reason": "BelowTarget"}
    busy = WorkerSignals(scraped_at=NOW, running=2, waiting=1)
    found = snapshot(pod(0), terminating(pod(1)), told=told, seen=signals(0.7, workers={"uid-1-0": busy}))
    decision, status = decide(found)
    assert not [action for action in decision.steps.actions if isinstance(action, DeletePods)]
    assert [group.get("inFlight") for group in status["groups"]] == [None, 3]
