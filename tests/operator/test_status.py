"""Conditions and counts from what is observed."""

from datetime import timedelta
from typing import Any

import pytest

from m3_operator.decide.deployment import decide_deployment
from m3_operator.decide.installation import Installation
from m3_operator.observed import DeploymentSnapshot, ObservedPod, read_pod
from m3_operator.status.conditions import Verdict, build
from m3_operator.status.deployment import deployment_status
from operator_world import NOW, failed, members, pod, terminating

READY_ROUTER = {
    "metadata": {"name": "m3", "namespace": "prod", "uid": "r", "ownerReferences": [{"uid": "u", "controller": True}]},
    "spec": {"deployments": [{"name": "m3"}], "service": {"port": 8080}},
    "status": {"readyReplicas": 1, "conditions": [{"type": "Ready", "status": "True", "reason": "AllRoutersReady"}]},
}
WAITING_ROUTER = {**READY_ROUTER, "status": {}}


def snapshot(pods: list[ObservedPod], router: Any = READY_ROUTER, **spec: Any) -> DeploymentSnapshot:
    return DeploymentSnapshot(
        manifest={
            "apiVersion": "serving.m3.dev/v1alpha1",
            "kind": "M3Deployment",
            "metadata": {"name": "m3", "namespace": "prod", "uid": "u", "generation": 4},
            "spec": {"model": {"name": "M", "source": {"tiny": {}}}, "parallelism": {"gpusPerNode": 8}, **spec},
        },
        pods=tuple(pods),
        names_in_the_way=frozenset(),
        children={},
        router=router,
        namesake=router,
    )


def status_of(found: DeploymentSnapshot) -> dict[str, Any]:
    decision = decide_deployment(found, Installation(worker_image="w", router_image="r"), NOW)
    return deployment_status(found, decision, decision.records, decision.problem, NOW)


def current(found: DeploymentSnapshot) -> str:
    revision = decide_deployment(found, Installation(worker_image="w", router_image="r"), NOW).revision
    assert revision is not None
    return revision


def verdicts(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {found["type"]: (found["status"], found["reason"]) for found in status["conditions"]}


def state(name: str = "w", **found: dict[str, Any]) -> dict[str, Any]:
    """The status of a container."""
    return {"name": name, "state": found}


REVISION = current(snapshot([]))
UNSCHEDULED = {
    "phase": "Pending",
    "is_ready": False,
    "node_name": None,
    "message": "not scheduled: 0/4 nodes",
}
CASES = [
    (
        "all groups serve",
        [pod(0, revision=REVISION)],
        READY_ROUTER,
        {
            "Ready": ("True", "AllGroupsReady"),
            "Available": ("True", "GroupsServe"),
            "Scheduled": ("True", "AllPodsScheduled"),
            "Progressing": ("False", "Settled"),
        },
    ),
    (
        "the router is not there yet",
        [pod(0, revision=REVISION)],
        None,
        {"Ready": ("False", "RouterNotReady"), "Available": ("False", "RouterNotReady")},
    ),
    (
        "the router does not answer yet",
        [pod(0, revision=REVISION)],
        WAITING_ROUTER,
        {"Ready": ("False", "RouterNotReady"), "Progressing": ("False", "Settled")},
    ),
    (
        "no node has room",
        [pod(0, revision=REVISION, **UNSCHEDULED)],
        READY_ROUTER,
        {
            "Ready": ("False", "GroupsNotReady"),
            "Scheduled": ("False", "PodsWaiting"),
            "Progressing": ("True", "Scaling"),
        },
    ),
    (
        "a rollout is under way",
        [pod(0, revision="old")],
        READY_ROUTER,
        {"Ready": ("True", "AllGroupsReady"), "Progressing": ("True", "RollingOut")},
    ),
    (
        "a group failed",
        [failed(pod(0, revision=REVISION))],
        READY_ROUTER,
        {"Ready": ("False", "GroupsNotReady"), "Progressing": ("True", "Recovering")},
    ),
    (
        "one group too many is going",
        [pod(0, revision=REVISION), terminating(pod(1, revision=REVISION))],
        READY_ROUTER,
        {"Ready": ("True", "AllGroupsReady"), "Progressing": ("True", "Scaling")},
    ),
]


@pytest.mark.parametrize(("pods", "router", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_conditions(pods: list[ObservedPod], router: Any, expected: dict[str, tuple[str, str]]) -> None:
    found = verdicts(status_of(snapshot(pods, router)))
    assert {name: found[name] for name in expected} == expected


def test_the_scheduler_s_own_words_reach_the_summary() -> None:
    message = status_of(snapshot([pod(0, revision=REVISION, **UNSCHEDULED)]))["conditions"][0]["message"]
    assert message == "0 of 1 groups serve; group 0 is Pending: m3-g0-r0: not scheduled: 0/4 nodes"


def test_counts_groups_and_endpoint() -> None:
    revision = current(snapshot([], parallelism={"gpusPerNode": 4, "nodes": 2}))
    pods = [*members(0, 2, revision=revision), *members(1, 2, revision="old", is_ready=False)]
    status = status_of(snapshot(pods, replicas=2, parallelism={"gpusPerNode": 4, "nodes": 2}))
    expected = {"replicas": 2, "readyReplicas": 1, "updatedReplicas": 1, "gpus": 16, "observedGeneration": 4}
    assert {key: status[key] for key in expected} == expected
    assert status["endpoint"] == "http://m3-router.prod.svc:8080"
    assert [(group["index"], group["state"], group["ready"]) for group in status["groups"]] == [
        (0, "Ready", 2),
        (1, "Loading", 0),
    ]


def test_a_thousand_groups_show_the_first_sixty_four() -> None:
    assert len(status_of(snapshot([], replicas=1000))["groups"]) == 64


def test_a_transition_time_moves_only_when_the_status_does() -> None:
    manifest: dict[str, Any] = {"metadata": {"generation": 1}}
    first = build(manifest, [Verdict("Ready", False, "A", "a")], NOW)
    manifest["status"] = {"conditions": first}
    later = NOW + timedelta(minutes=5)
    (same,) = build(manifest, [Verdict("Ready", False, "B", "b")], later)
    assert (same["lastTransitionTime"], same["reason"]) == ("2026-11-21T12:00:00Z", "B")
    (changed,) = build(manifest, [Verdict("Ready", True, "C", "c")], later)
    assert changed["lastTransitionTime"] == "2026-11-21T12:05:00Z"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            {
                "containerStatuses": [
                    {"name": "w", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no x"}}}
                ]
            },
            "container w: ImagePullBackOff, no x",
        ),
        (
            {
                "phase": "Failed",
                "initContainerStatuses": [
                    {
                        "name": "tiny",
                        "state": {"terminated": {"exitCode": 2, "reason": "Error", "message": "bad\nshape"}},
                    }
                ],
            },
            "container tiny ended: Error, bad shape",
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "Evicted: low on memory"),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]},
            "not scheduled: 0/3 nodes",
        ),
        ({"containerStatuses": [state(waiting={"reason": "ContainerCreating"})]}, ""),
        ({"phase": "Running"}, ""),
    ],
)
def test_a_pod_tells_what_is_wrong_with_it_in_one_line(status: dict[str, Any], message: str) -> None:
    labels = {"serving.m3.dev/deployment": "m3", "serving.m3.dev/group": "0", "serving.m3.dev/rank": "0"}
    found = read_pod({"metadata": {"name": "m3-g0-r0", "labels": labels}, "status": status})
    assert found is not None
    assert found.message == message


def test_a_pod_without_our_labels_is_none_of_ours() -> None:
    assert read_pod({"metadata": {"name": "x", "labels": {"serving.m3.dev/group": "zero"}}}) is None
