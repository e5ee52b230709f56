"""What is wrong with groups whose pods look alive: lost nodes, failed GPUs, hangs."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_operator.groups import by_index
from m3_operator.observed import DeploymentSnapshot, ObservedNode, ObservedPod, read_node
from m3_operator.plan.faults import GPU_FAILED, HANG_DETECTED, NODE_LOST, Health, examine
from m3_operator.signals.steps import StepRecord, remember_steps
from m3_operator.signals.values import DeploymentSignals, GpuSignals, WorkerSignals
from m3_operator.spec.recovery import RecoverySpec
from operator_world import NOW, members, pod, terminating

READY = ObservedNode(name="n0", is_ready=True, since=NOW)
RECOVERY = RecoverySpec.model_validate({"nodeLostSeconds": 60, "hangSeconds": 30})


def health(
    pods: list[ObservedPod],
    *,
    nodes: tuple[ObservedNode, ...] = (),
    workers: Mapping[str, WorkerSignals] | None = None,
    steps: Mapping[str, StepRecord] | None = None,
) -> Health:
    snapshot = DeploymentSnapshot(
        manifest={},
        pods=tuple(pods),
        names_in_the_way=frozenset(),
        children={},
        router=None,
        namesake=None,
        signals=DeploymentSignals(workers=workers or {}),
        steps=steps or {},
        nodes={node.name: node for node in nodes},
    )
    return examine(by_index(pods), snapshot, RECOVERY, (), NOW)


def down(name: str, seconds: float, *taints: str) -> ObservedNode:
    return ObservedNode(name=name, is_ready=False, since=NOW - timedelta(seconds=seconds), taints=frozenset(taints))


def group(nodes: int = 2) -> list[ObservedPod]:
    return [replace(one, node_name=f"n{one.rank}") for one in members(0, nodes)]


# --- Nodes


def test_a_node_that_is_not_ready_is_lost_after_its_time_and_looked_at_again_then() -> None:
    assert health(group(), nodes=(READY, down("n1", 40))).faults == {}
    assert health(group(), nodes=(READY, down("n1", 40))).wake_at == NOW + timedelta(seconds=20)
    fault = health(group(), nodes=(READY, down("n1", 60))).faults[0]
    assert (fault.reason, fault.blamed_nodes) == (NODE_LOST, ("n1",))
    assert fault.lost_pods == {"uid-0-1"}
    assert fault.message == "node n1 has not been ready for 60 s"


def test_a_node_on_which_a_pod_became_ready_since_is_back_whatever_is_known_of_it() -> None:
    for seconds, is_lost in ((61, True), (30, False)):
        pods = [replace(one, ready_at=NOW - timedelta(seconds=seconds)) for one in group()]
        assert bool(health(pods, nodes=(down("n1", 60),)).faults) is is_lost


def test_a_node_that_is_out_of_service_is_lost_at_once() -> None:
    taken_out = replace(READY, taints=frozenset({"node.kubernetes.io/out-of-service"}))
    assert health(group(), nodes=(taken_out,)).faults[0].lost_pods == {"uid-0-0"}


def test_an_unreachable_node_keeps_its_groups_for_as_long_as_one_that_says_it_is_not_ready() -> None:
    assert health(group(), nodes=(down("n1", 59, "node.kubernetes.io/unreachable"),)).faults == {}
    assert health(group(), nodes=(down("n1", 61, "node.kubernetes.io/unreachable"),)).faults[0].reason == NODE_LOST


def test_a_cordoned_node_and_one_that_nobody_knows_are_no_fault() -> None:
    cordoned = replace(READY, is_unschedulable=True, taints=frozenset({"node.kubernetes.io/unschedulable"}))
    assert health(group(), nodes=(cordoned,)).faults == {}
    assert health(group()).faults == {}


def test_a_node_is_read_without_its_heartbeats() -> None:
    manifest: dict[str, Any] = {
        "metadata": {"name": "n0"},
        "spec": {
            "unschedulable": True,
            "taints": [
                {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
                {"key": "soft", "effect": "PreferNoSchedule"},
            ],
        },
        "status": {
            "conditions": [
                {
                    "type": "Ready",
                    "status": "Unknown",
                    "lastTransitionTime": "2026-11-21T12:00:00Z",
                    "lastHeartbeatTime": "2026-11-21T12:34:56Z",
                }
            ]
        },
    }
    assert read_node(manifest) == ObservedNode(
        name="n0",
        is_ready=False,
        since=NOW,
        is_unschedulable=True,
        taints=frozenset({"node.kubernetes.io/unreachable"}),
    )


# --- GPUs


def spoken(xid: int) -> WorkerSignals:
    return WorkerSignals(scraped_at=NOW, gpus=(GpuSignals(), GpuSignals(xid=xid)))


@pytest.mark.parametrize("xid", [48, 62, 64, 74, 79, 95, 119, 120])
def test_a_gpu_that_needs_a_reset_or_repair_fails_its_group_and_its_node_is_blamed(xid: int) -> None:
    fault = health([replace(pod(0), node_name="n0")], workers={"uid-0-0": spoken(xid)}).faults[0]
    assert (fault.reason, fault.blamed_nodes, fault.lost_pods) == (GPU_FAILED, ("n0",), frozenset())
    assert f"XID {xid} on node n0" in fault.message


@pytest.mark.parametrize("xid", [0, 13, 31, 43, 45, 63, 92, 94, 154])
def test_what_ends_with_its_process_or_is_a_notice_is_no_fault(xid: int) -> None:
    assert health([pod(0)], workers={"uid-0-0": spoken(xid)}).faults == {}


def test_no_node_is_blamed_when_rank_0_speaks_for_the_gpus_of_several() -> None:
    assert health(group(), workers={"uid-0-0": spoken(79)}).faults[0].blamed_nodes == ()
    both = {"uid-0-0": spoken(0), "uid-0-1": spoken(79)}
    assert health(group(), workers=both).faults[0].blamed_nodes == ("n1",)


# --- Hangs


def scrape(second: float, steps: int | None, waiting: int) -> DeploymentSignals:
    found = WorkerSignals(scraped_at=NOW + timedelta(seconds=second), steps=steps, waiting=waiting)
    return DeploymentSignals(workers={"uid-0-0": found})


def stillness(*scrapes: DeploymentSignals) -> float | None:
    """Seconds for which the worker is seen to stand still after these scrapes."""
    records: dict[str, StepRecord] = {}
    for signals in scrapes:
        records = remember_steps(records, signals)
    return records["uid-0-0"].still_seconds if records else None


def test_a_worker_stands_still_while_its_steps_do_and_requests_wait() -> None:
    assert stillness(scrape(0, 7, 1), scrape(15, 7, 2), scrape(40, 7, 1)) == 40
    assert stillness(scrape(0, 7, 1), scrape(15, 8, 1), scrape(40, 8, 1)) == 25
    assert stillness(scrape(0, 7, 1), scrape(15, 7, 0), scrape(40, 7, 1)) == 0, "it was idle meanwhile"
    assert stillness(scrape(0, 7, 0)) is None
    assert stillness(scrape(0, None, 3)) is None, "an engine that counts no steps cannot be judged"


def test_a_scrape_that_is_seen_twice_makes_nothing_older() -> None:
    assert stillness(scrape(0, 7, 1), scrape(0, 7, 1), scrape(0, 7, 1)) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_the_memory_says_what_looking_at_all_scrapes_together_says(history: list[tuple[int, int, int]]) -> None:
    second, scrapes = 0, []
    for pause, steps, waiting in history:
        second += pause
        scrapes.append((second, steps, waiting))
    tail = []
    for entry in reversed(scrapes):
        if entry[2] == 0 or entry[1] != scrapes[-1][1]:
            break
        tail.append(entry[0])
    expected = tail[0] - tail[-1] if tail else None
    assert stillness(*(scrape(at, steps, waiting) for at, steps, waiting in scrapes)) == expected


def test_a_group_that_stands_still_for_its_time_hangs() -> None:
    began = NOW - timedelta(seconds=30)
    fault = health([pod(0)], steps={"uid-0-0": StepRecord(7, began, NOW)}).faults[0]
    assert fault.reason == HANG_DETECTED
    assert fault.message == "m3-g0-r0 has computed no step for 30 s while requests wait"
    assert health([terminating(pod(0))], steps={"uid-0-0": StepRecord(7, began, NOW)}).faults == {}


def test_a_group_that_may_hang_is_looked_at_again_and_not_all_the_time() -> None:
    fresh = health([pod(0)], steps={"uid-0-0": StepRecord(7, NOW - timedelta(seconds=10), NOW)})
    assert fresh.wake_at == NOW + timedelta(seconds=20)
    unseen = StepRecord(7, NOW - timedelta(seconds=100), NOW - timedelta(seconds=90))
    stale = health([pod(0)], steps={"uid-0-0": unseen})
    assert stale.faults == {}, "no scrape says that it hangs"
    assert stale.wake_at == NOW + timedelta(seconds=7.5)


def test_the_gravest_fault_is_told() -> None:
    found = health([replace(pod(0), node_name="n0")], nodes=(down("n0", 90),), workers={"uid-0-0": spoken(79)})
    assert found.faults[0].reason == NODE_LOST
