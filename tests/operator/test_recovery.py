"""What becomes of groups that fail: backoff, budget, drains with a peer, lack of room, nodes to avoid."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_operator.groups import GroupState, by_index
from m3_operator.observed import ObservedPod
from m3_operator.plan.actions import CreatePods, DeletePods, PodAction
from m3_operator.plan.avoidance import AvoidedNode, blame, still_avoided
from m3_operator.plan.faults import GPU_FAILED, HANG_DETECTED, NODE_LOST, Fault, Health
from m3_operator.plan.recovery import ORPHAN_GRACE_SECONDS, FailureRecord, next_record, outlook_of
from m3_operator.plan.steps import Wanted
from m3_operator.spec.recovery import RecoverySpec
from operator_world import NAME, NOW, SimulatedPods, failed, members, pod, terminating

unhurried = settings(deadline=None)


def want(groups: int = 1, *, nodes: int = 1, revision: str = "r1", **recovery: Any) -> Wanted:
    return Wanted(
        deployment=NAME, groups=groups, nodes=nodes, revision=revision, recovery=RecoverySpec.model_validate(recovery)
    )


def waiting(one: ObservedPod) -> ObservedPod:
    """The pod while no node has room for it."""
    return replace(one, phase="Pending", is_ready=False, node_name=None, trouble="Unschedulable")


def deleted(actions: tuple[PodAction, ...]) -> list[tuple[str, int | None]]:
    """Which pods are deleted, and with how much grace."""
    found = [action for action in actions if isinstance(action, DeletePods)]
    return [(one.name, action.grace_seconds) for action in found for one in action.pods]


# --- Backoff and budget


def crash_film(wanted: Wanted, *, failures: int, every: timedelta) -> list[float]:
    """A group that ends `every` so often after each start: seconds from the first failure to each replacement."""
    world, times = SimulatedPods.of([pod(0)]), []
    for _ in range(failures):
        world.pods = {name: failed(one, at=world.now) for name, one in world.pods.items()}
        while not (steps := world.plan(wanted)).actions:
            assert steps.wake_at is not None, "nobody would ever look at the failed group again"
            assert steps.wake_at > world.now
            world.now = steps.wake_at
        times.append((world.now - NOW).total_seconds())
        world.perform(steps.actions, wanted)
        world.perform(world.plan(wanted).actions, wanted)
        world.pods = {name: replace(one, phase="Running", node_name="n") for name, one in world.pods.items()}
        world.now += every
    return times


def test_the_wait_doubles_within_its_bounds_and_the_budget_ends_it_for_the_rest_of_the_window() -> None:
    wanted = want(maxRestarts=4, windowSeconds=600, backoff={"baseSeconds": 5, "maxSeconds": 15})
    # 0, 5, 10, 15 (bounded), then the window of 600 s must pass, and everything begins anew.
    assert crash_film(wanted, failures=6, every=timedelta()) == [0, 5, 15, 30, 600, 605]


def test_a_group_that_fails_rarely_never_waits() -> None:
    wanted = want(windowSeconds=600)
    assert crash_film(wanted, failures=4, every=timedelta(seconds=601)) == [0, 601, 1202, 1803]


def test_an_exhausted_group_keeps_all_its_pods_with_their_logs() -> None:
    world = SimulatedPods.of([pod(0, 0, nodes=2), failed(pod(0, 1, nodes=2))])
    world.records[0] = FailureRecord(10, NOW, "again", NOW - timedelta(seconds=900), "r1")
    steps = world.plan(want(nodes=2))
    assert steps.actions == ()
    assert steps.wake_at == NOW + timedelta(seconds=900)


def test_a_new_revision_replaces_an_exhausted_group_at_once_and_counts_anew() -> None:
    world, wanted = SimulatedPods.of([failed(pod(0))]), want(revision="r2")
    world.records[0] = FailureRecord(10, NOW, "again", NOW, "r1")
    assert deleted(world.plan(wanted).actions) == [("m3-g0-r0", None)]
    world.pods = {"m3-g0-r0": failed(pod(0, revision="r2"))}
    world.perform(world.plan(wanted).actions, wanted)
    assert world.records[0].restarts == 1
    assert world.records[0].revision == "r2"


def test_the_budget_is_of_each_group() -> None:
    world = SimulatedPods.of([failed(pod(0)), failed(pod(1))])
    world.records[0] = FailureRecord(10, NOW, "again", NOW, "r1")
    assert deleted(world.plan(want(2)).actions) == [("m3-g1-r0", None)]


@unhurried
@given(
    st.integers(1, 6),
    st.integers(60, 2000),
    st.integers(1, 100),
    st.integers(0, 400),
    st.lists(st.integers(0, 500), min_size=1, max_size=30),
)
def test_no_window_ever_sees_more_restarts_than_the_budget_and_each_group_is_tried_again(
    budget: int, window: int, base: int, more: int, pauses: list[int]
) -> None:
    recovery = RecoverySpec.model_validate(
        {
            "maxRestarts": budget,
            "windowSeconds": window,
            "backoff": {"baseSeconds": base, "maxSeconds": base + more},
        }
    )
    record, now, restarts = FailureRecord(), NOW, list[tuple[datetime, datetime]]()
    for pause in pauses:
        now += timedelta(seconds=pause)
        (group,) = by_index([failed(pod(0), at=now)]).values()
        outlook = outlook_of(group, record, recovery, now)
        assert outlook.due_at - now <= timedelta(seconds=window + base + more)
        if outlook.due_at > now:
            now = outlook.due_at
            assert outlook_of(group, record, recovery, now).due_at <= now
        record = next_record(record, "x", now, recovery, "r1")
        assert record.since is not None
        restarts.append((now, record.since))
    for _, since in restarts:
        counted = [at for at, began in restarts if began == since]
        assert len(counted) <= budget
        assert all(at - since < timedelta(seconds=window) for at in counted)


def test_policy_none_leaves_a_failed_group_and_its_live_members_alone() -> None:
    pods = [pod(0, 0, nodes=2), failed(pod(0, 1, nodes=2))]
    assert SimulatedPods.of(pods).plan(want(nodes=2, policy="None")).actions == ()
    hung = SimulatedPods.of([pod(0)])
    hung.health = Health(faults={0: Fault(HANG_DETECTED, "it hangs")})
    assert hung.plan(want(policy="None")).actions == ()


def test_policy_none_still_makes_what_is_missing_and_lets_go_what_is_too_much() -> None:
    too_many = SimulatedPods.of([pod(0), failed(pod(1))])
    assert deleted(too_many.plan(want(1, policy="None")).actions) == [("m3-g1-r0", None)]
    too_few = SimulatedPods.of([failed(pod(0))])
    (action,) = too_few.plan(want(2, policy="None")).actions
    assert isinstance(action, CreatePods)
    assert action.group == 1


# --- A peer is evicted


def test_when_a_peer_is_evicted_rank_0_goes_with_all_its_time_and_the_others_after_it() -> None:
    first, evicted, third = members(0, 3)
    evicted = terminating(evicted)
    world = SimulatedPods.of([first, evicted, third])
    assert deleted(world.plan(want(nodes=3)).actions) == [("m3-g0-r0", None)]
    drained = SimulatedPods.of([terminating(first), evicted, third])
    assert drained.plan(want(nodes=3)).actions == (), "a peer must live until rank 0 is gone"
    alone = SimulatedPods.of([evicted, third])
    assert deleted(alone.plan(want(nodes=3)).actions) == [("m3-g0-r2", ORPHAN_GRACE_SECONDS)]


def test_an_eviction_is_no_restart() -> None:
    first, evicted = members(0, 2)
    world, wanted = SimulatedPods.of([first, terminating(evicted)]), want(nodes=2)
    world.settle(wanted)
    assert world.records == {}
    assert world.ready() == 1


@unhurried
@given(st.integers(2, 5), st.data())
def test_however_peers_are_evicted_none_of_the_others_is_deleted_before_rank_0_is_gone(
    nodes: int, data: st.DataObject
) -> None:
    evicted = data.draw(st.sets(st.integers(0, nodes - 1), min_size=1))
    pods = [terminating(one) if one.rank in evicted else one for one in members(0, nodes)]
    wanted = want(data.draw(st.integers(0, 1)), nodes=nodes, revision=data.draw(st.sampled_from(["r1", "r2"])))
    assert {name for name, _ in deleted(SimulatedPods.of(pods).plan(wanted).actions)} <= {"m3-g0-r0"}
    assert all(grace is None for _, grace in deleted(SimulatedPods.of(pods).plan(wanted).actions))


# --- No room


@unhurried
@given(st.integers(1, 4), st.integers(0, 100_000), st.booleans())
def test_a_group_that_waits_for_room_is_never_torn_down(nodes: int, seconds: int, is_partly_placed: bool) -> None:
    pods = [waiting(one) for one in members(0, nodes)]
    if is_partly_placed:
        pods[0] = replace(pods[0], phase="Running", node_name="node-0")
    world = SimulatedPods.of(pods)
    world.now += timedelta(seconds=seconds)
    assert world.plan(want(nodes=nodes)).actions == ()


def test_a_member_that_gave_up_waiting_for_one_without_a_node_does_not_tear_the_group_down() -> None:
    first, gave_up, never_placed = members(0, 3)
    world = SimulatedPods.of([first, failed(gave_up), waiting(never_placed)])
    assert world.plan(want(nodes=3)).actions == ()
    world.pods[never_placed.name] = never_placed  # there is room now: the world is made anew
    assert len(deleted(world.plan(want(nodes=3)).actions)) == 3


def test_a_group_that_waits_for_room_is_made_anew_once_a_node_it_avoids_may_be_used_again() -> None:
    world = SimulatedPods.of([replace(waiting(pod(0)), avoids=("bad", "worse"))])
    world.health = Health(avoided=(AvoidedNode("bad", NOW + timedelta(hours=1), "x"), *_until_later("worse")))
    assert world.plan(want()).actions == ()
    world.health = Health(avoided=_until_later("worse"))
    assert deleted(world.plan(want()).actions) == [("m3-g0-r0", None)]
    world.settle(want())
    assert world.pods["m3-g0-r0"].avoids == ("worse",)
    assert world.records == {}


# --- Faults of groups that look alive


def test_pods_of_a_lost_node_go_by_force_and_the_rest_of_the_group_goes_too() -> None:
    pods = [replace(one, node_name=f"n{one.rank}") for one in members(0, 2)]
    world = SimulatedPods.of(pods)
    world.health = Health(faults={0: Fault(NODE_LOST, "node n1 is lost", frozenset({pods[1].uid}), ("n1",))})
    actions = world.plan(want(nodes=2)).actions
    assert deleted(actions) == [("m3-g0-r1", 0), ("m3-g0-r0", ORPHAN_GRACE_SECONDS)]
    assert sum(isinstance(action, DeletePods) and action.counts_as_restart for action in actions) == 1
    assert blame((), actions, 3600, NOW) == (AvoidedNode("n1", NOW + timedelta(hours=1), "node n1 is lost"),)


def test_a_group_that_goes_anyway_is_removed_from_a_lost_node_without_being_counted() -> None:
    going = terminating(pod(0))
    world = SimulatedPods.of([going])
    world.health = Health(faults={0: Fault(NODE_LOST, "node-0 is lost", frozenset({going.uid}), ("node-0",))})
    (action,) = world.plan(want()).actions
    assert isinstance(action, DeletePods)
    assert (action.grace_seconds, action.counts_as_restart, action.blamed_nodes) == (0, False, ("node-0",))


@pytest.mark.parametrize("reason", [HANG_DETECTED, GPU_FAILED])
def test_a_group_that_hangs_or_lost_a_gpu_is_replaced_once_and_counted(reason: str) -> None:
    world = SimulatedPods.of([pod(0), pod(1)])
    world.health = Health(faults={1: Fault(reason, "something is wrong")})
    steps = world.plan(want(2))
    assert deleted(steps.actions) == [("m3-g1-r0", ORPHAN_GRACE_SECONDS)]
    world.perform(steps.actions, want(2))
    assert world.records[1].reason == "something is wrong"
    assert world.plan(want(2)).actions == ()


def test_a_group_with_a_fault_waits_its_turn_as_any_other_that_fails_again() -> None:
    world = SimulatedPods.of([pod(0)])
    world.records[0] = FailureRecord(2, NOW, "before", NOW, "r1")
    world.health = Health(faults={0: Fault(HANG_DETECTED, "it hangs")})
    steps = world.plan(want())
    assert steps.actions == ()
    assert steps.wake_at == NOW + timedelta(seconds=20)


def test_new_groups_stay_away_from_the_nodes_that_are_avoided() -> None:
    world = SimulatedPods.of([])
    world.health = Health(avoided=_until_later("bad", "worse"))
    (action,) = world.plan(want()).actions
    assert isinstance(action, CreatePods)
    assert action.avoid_nodes == ("bad", "worse")


# --- Memory of nodes


def test_a_node_is_forgotten_when_its_time_is_up_and_only_so_many_are_remembered() -> None:
    many = [
        DeletePods(0, (), "lost", blamed_nodes=tuple(f"n{number:03}" for number in range(first, first + 50)))
        for first in (0, 50)
    ]
    assert len(blame((), many, 60, NOW)) == 64
    assert still_avoided(blame((), many, 60, NOW), NOW + timedelta(seconds=60)) == ()
    assert blame((), many, 0, NOW) == ()


def test_a_node_that_fails_again_is_avoided_for_longer() -> None:
    before = (AvoidedNode("n", NOW + timedelta(seconds=10), "first"),)
    again = [DeletePods(0, (), "second", blamed_nodes=("n",))]
    assert blame(before, again, 60, NOW) == (AvoidedNode("n", NOW + timedelta(seconds=60), "second"),)


def test_draining_is_what_a_group_does_while_its_evicted_peer_lives() -> None:
    first, second = members(0, 2)
    (group,) = by_index([first, terminating(second)]).values()
    assert group.state is GroupState.DRAINING


def _until_later(*nodes: str) -> tuple[AvoidedNode, ...]:
    return tuple(AvoidedNode(node, NOW + timedelta(hours=1), "x") for node in nodes)
