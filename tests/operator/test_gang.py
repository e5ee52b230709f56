"""Groups that are scheduled as wholes: what each scheduler is told, and the turn of each group where there is none."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_operator.api import M3Deployment, parse_deployment
from m3_operator.decide.deployment import decide_deployment
from m3_operator.decide.equipment import choose_gang
from m3_operator.decide.installation import Installation
from m3_operator.groups import by_index
from m3_operator.observed import DeploymentSnapshot, ObservedPod, read_pod
from m3_operator.plan.actions import ApplyObject, CreatePods
from m3_operator.plan.gates import next_turn
from m3_operator.render import worker
from m3_operator.render.gang import Gang, gang_object
from m3_operator.resources import OPTIONAL_KINDS, RESOURCES, table_kind
from operator_world import NOW, members, pod

TIMEOUT = timedelta(seconds=300)
SOON = "and soon again"
NATIVE, VOLCANO, PLUGINS = "PodGroup", "PodGroup.scheduling.volcano.sh", "PodGroup.scheduling.x-k8s.io"


def manifest(nodes: int = 2, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "prod", "uid": "owner", "generation": 1},
        "spec": {
            "model": {"name": "M", "source": {"hostPath": {"path": "/m"}}},
            "parallelism": {"nodes": nodes},
            **spec,
        },
    }


def deployment(nodes: int = 2, **spec: Any) -> M3Deployment:
    return parse_deployment(manifest(nodes, **spec), strict=True)


def installation(*kinds: str) -> Installation:
    return Installation(worker_image="w.test/m3:1", router_image="r.test/m3:1", optional_kinds=frozenset(kinds))


def gang(provider: str, **more: Any) -> dict[str, Any]:
    return {"gang": {"provider": provider, **more}}


@pytest.mark.parametrize(
    ("kinds", "scheduler", "chosen"),
    [
        ((), None, "Gates"),
        ((PLUGINS,), None, "Gates"),
        ((PLUGINS,), "scheduler-plugins-scheduler", "SchedulerPlugins"),
        ((PLUGINS, VOLCANO), "scheduler-plugins-scheduler", "SchedulerPlugins"),
        ((PLUGINS, VOLCANO), None, "Volcano"),
        ((VOLCANO,), "mine", "Gates"),
        ((PLUGINS, VOLCANO, NATIVE), None, "Native"),
    ],
)
def test_auto_takes_the_first_that_the_cluster_has_and_its_scheduler_reads(
    kinds: tuple[str, ...], scheduler: str | None, chosen: str
) -> None:
    template = {"schedulerName": scheduler} if scheduler else {}
    assert choose_gang(deployment(template=template), installation(*kinds)) == chosen


def test_a_group_of_one_node_is_no_gang() -> None:
    assert choose_gang(deployment(1), installation(*OPTIONAL_KINDS)) == "None"
    assert gang_object(deployment(1), 0, "rev", "Native") is None


def pods(gang: Gang, nodes: int = 2, **spec: Any) -> list[dict[str, Any]]:
    return worker.group_pods(deployment(nodes, **spec), 3, "rev", image="i", gang=gang)


@pytest.mark.parametrize("provider", ["Native", "Volcano", "SchedulerPlugins", "Kueue", "Gates", "None"])
def test_pods_of_every_gang_are_valid_to_kubernetes(provider: Gang) -> None:
    placement = gang("Kueue", queueName="gpus") if provider == "Kueue" else {}
    for rendered in pods(provider, placement=placement):
        kubernetes_validate.validate(rendered, "1.37", strict=True)


def test_the_native_pod_group_asks_for_all_pods_and_loses_all_together() -> None:
    found = gang_object(deployment(template={"priorityClassName": "serving"}), 3, "rev", "Native")
    assert found is not None
    kubernetes_validate.validate(found, "1.37", strict=True)
    assert found["spec"] == {
        "schedulingPolicy": {"gang": {"minCount": 2}},
        "disruptionMode": {"all": {}},
        "priorityClassName": "serving",
    }
    for rendered in pods("Native"):
        assert rendered["spec"]["schedulingGroup"] == {"podGroupName": found["metadata"]["name"]}


def test_volcano_gets_its_pod_group_queue_and_scheduler() -> None:
    placement = gang("Volcano", queueName="serving")
    found = gang_object(deployment(placement=placement), 3, "rev", "Volcano")
    assert found is not None
    assert (found["apiVersion"], found["kind"]) == ("scheduling.volcano.sh/v1beta1", "PodGroup")
    assert found["spec"] == {"minMember": 2, "queue": "serving"}
    for rendered in pods("Volcano"):
        assert rendered["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == found["metadata"]["name"]
        assert rendered["spec"]["schedulerName"] == "volcano"
    for rendered in pods("Volcano", template={"schedulerName": "volcano-gpu"}):
        assert rendered["spec"]["schedulerName"] == "volcano-gpu"


def test_scheduler_plugins_get_a_pod_group_by_label_and_keep_the_schedulers_name() -> None:
    found = gang_object(deployment(placement=gang("Auto", timeoutSeconds=60)), 3, "rev", "SchedulerPlugins")
    assert found is not None
    assert found["spec"] == {"minMember": 2, "scheduleTimeoutSeconds": 60}
    for rendered in pods("SchedulerPlugins", template={"schedulerName": "mine"}):
        assert rendered["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] == found["metadata"]["name"]
        assert rendered["spec"]["schedulerName"] == "mine"


def test_kueue_reads_labels_and_needs_no_object() -> None:
    placement = gang("Kueue", queueName="gpus")
    assert gang_object(deployment(placement=placement), 3, "rev", "Kueue") is None
    first, second = pods("Kueue", placement=placement)
    assert first["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert first["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    name = "kueue.x-k8s.io/pod-group-name"
    assert first["metadata"]["labels"][name] == second["metadata"]["labels"][name]


def test_kinds_of_one_name_are_told_apart_by_their_group() -> None:
    for provider, kind in (("Native", NATIVE), ("Volcano", VOLCANO), ("SchedulerPlugins", PLUGINS)):
        found = gang_object(deployment(), 0, "rev", provider)  # type: ignore[arg-type]  # a Gang, spelled out
        assert found is not None
        assert table_kind(found) == kind
        assert RESOURCES[kind].api_version == found["apiVersion"]
    assert table_kind({"apiVersion": "v1", "kind": "Pod"}) == "Pod"


def snapshot(found: Mapping[str, Any], *pods: ObservedPod) -> DeploymentSnapshot:
    return DeploymentSnapshot(
        manifest=found, pods=pods, names_in_the_way=frozenset(), children={}, router=None, namesake=None
    )


def test_the_pod_groups_of_running_and_coming_groups_are_applied_before_their_pods() -> None:
    current = worker.revision(deployment(replicas=2), "w.test/m3:1")
    running = members(0, 2, revision=current)
    decision = decide_deployment(snapshot(manifest(replicas=2), *running), installation(NATIVE), NOW)
    applied = [action.manifest for action in decision.objects if isinstance(action, ApplyObject)]
    names = [found["metadata"]["name"] for found in applied if found["kind"] == "PodGroup"]
    assert names == [f"m3-g0-{current}", f"m3-g1-{current}"]
    (created,) = decision.steps.actions
    assert isinstance(created, CreatePods)
    assert decision.templates[current].gang == "Native"


@pytest.mark.parametrize(
    ("spec", "reason", "word"),
    [
        ({"placement": gang("Volcano")}, "GangUnavailable", "PodGroup.scheduling.volcano.sh"),
        ({"placement": gang("Native")}, "GangUnavailable", "provider to Auto"),
        ({"accelerator": {"mode": "DRA"}}, "DRAUnavailable", "resource.k8s.io/v1"),
    ],
)
def test_what_the_cluster_lacks_is_a_problem_and_makes_no_pods(spec: dict[str, Any], reason: str, word: str) -> None:
    decision = decide_deployment(snapshot(manifest(**spec)), installation(), NOW)
    assert decision.problem is not None
    assert decision.problem.reason == reason
    assert word in decision.problem.message
    assert (decision.steps.actions, decision.objects) == ((), ())


def gated(group: int, nodes: int = 2) -> list[ObservedPod]:
    return members(group, nodes, phase="Pending", is_ready=False, node_name=None, is_gated=True)


def opened(group: int, at: Any = NOW, nodes: int = 2, **changes: Any) -> list[ObservedPod]:
    usual = {"phase": "Pending", "is_ready": False, "node_name": None, "opened_at": at}
    return members(group, nodes, **{**usual, **changes})


def turn(*pods: ObservedPod, now: Any = NOW) -> tuple[int | None, Any]:
    found = next_turn(by_index(pods), TIMEOUT, now)
    return (found.opening.group, SOON) if found.opening else (None, found.wake_at)


def test_the_first_waiting_group_is_opened_and_the_next_waits_for_it() -> None:
    assert turn(*gated(0), *gated(1)) == (0, SOON)
    assert turn(*opened(0), *gated(1)) == (None, NOW + TIMEOUT)


def test_a_group_whose_pods_all_have_nodes_gives_the_turn_on_before_it_is_ready() -> None:
    assert turn(*opened(0, node_name="n", phase="Running"), *gated(1)) == (1, SOON)


def test_a_group_without_nodes_keeps_its_turn_only_for_a_while() -> None:
    late = NOW + TIMEOUT
    assert turn(*opened(0), *gated(1), now=late - timedelta(seconds=1)) == (None, late)
    assert turn(*opened(0), *gated(1), *gated(2), now=late) == (1, SOON)
    assert turn(*opened(0), *opened(1, at=late), *gated(2), now=late) == (None, late + TIMEOUT)


def test_a_group_that_was_opened_by_half_is_finished_before_any_other() -> None:
    first, second = gated(1)
    half = replace(first, is_gated=False, opened_at=NOW)
    found = next_turn(by_index([*gated(0), half, second]), TIMEOUT, NOW)
    assert found.opening is not None
    assert found.opening.pods == (second,)


def test_a_group_that_is_not_complete_or_on_its_way_out_is_not_opened() -> None:
    assert turn(gated(0)[0]) == (None, None)
    leaving = [replace(one, deletion_at=NOW) for one in gated(0)]
    assert turn(*leaving) == (None, None)


def test_without_gates_there_are_no_turns() -> None:
    assert turn(*members(0, 2), pod(1, nodes=1, phase="Pending", node_name=None, is_ready=False)) == (None, None)


def test_a_gate_and_the_time_it_went_are_read_from_the_pod() -> None:
    rendered = pods("Gates")[0]
    found = read_pod(rendered)
    assert found is not None
    assert found.is_gated
    assert found.opened_at is None
    rendered["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    rendered["metadata"]["annotations"]["serving.m3.dev/opened-at"] = "2026-11-21T12:00:00Z"
    found = read_pod(rendered)
    assert found is not None
    assert not found.is_gated
    assert found.opened_at == NOW


@given(
    groups=st.integers(1, 5), nodes=st.integers(1, 4), free=st.integers(0, 16), order=st.randoms(use_true_random=False)
)
def test_as_many_groups_come_up_as_there_is_room_for_and_never_two_search_at_once(
    groups: int, nodes: int, free: int, order: Random
) -> None:
    """A scheduler that gives free nodes to pods in any order, as the default one does."""
    pods = {one.name: one for index in range(groups) for one in gated(index, nodes)}
    now = NOW
    for _ in range(3 * groups + 3):
        found = next_turn(by_index(pods.values()), TIMEOUT, now)
        for one in found.opening.pods if found.opening else ():
            pods[one.name] = replace(one, is_gated=False, opened_at=now)
        searching = [one for one in pods.values() if not one.is_gated and one.node_name is None]
        fresh = {one.group for one in searching if one.opened_at is not None and one.opened_at + TIMEOUT > now}
        assert len(fresh) <= 1
        order.shuffle(searching)
        for one in searching[:free]:
            pods[one.name] = replace(one, node_name="n")
        free -= min(free, len(searching))
        now = found.wake_at or now + timedelta(seconds=1)
    whole = [group for group in by_index(pods.values()).values() if all(one.node_name for one in group.pods)]
    room = (free + sum(one.node_name is not None for one in pods.values())) // nodes
    assert len(whole) == min(groups, room)
    assert not any(one.is_gated for one in pods.values())
