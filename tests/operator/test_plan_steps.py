"""Whole sequences of plans, and what holds at every step of any of them."""

from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_operator.observed import ObservedPod
from m3_operator.plan.actions import CreatePods, DeletePods, PodAction
from m3_operator.plan.steps import Wanted, next_steps
from operator_world import NAME, NOW, SimulatedPods, failed, members, pod, terminating

# The machine may be busy with other tests: time says nothing about a plan.
unhurried = settings(deadline=None)


def want(groups: int, *, nodes: int = 1, revision: str = "r1") -> Wanted:
    return Wanted(deployment=NAME, groups=groups, nodes=nodes, revision=revision)


def told(actions: tuple[PodAction, ...]) -> list[str]:
    """The actions in short: +1/0 creates rank 0 of group 1, -1/0 deletes it."""
    words = []
    for action in actions:
        sign = "+" if isinstance(action, CreatePods) else "-"
        ranks = action.ranks if isinstance(action, CreatePods) else [one.rank for one in action.pods]
        words += [f"{sign}{action.group}/{rank}" for rank in ranks]
    return words


def film(world: SimulatedPods, wanted: Wanted) -> list[list[str]]:
    """The actions of each cycle until nothing is left to do."""
    frames = []
    for _ in range(50):
        steps = world.plan(wanted)
        if steps.actions:
            frames.append(told(steps.actions))
        world.perform(steps.actions, wanted)
        world.let_time_pass()
        if not steps.actions and not world.plan(wanted).actions:
            return frames
    raise AssertionError(f"no end: {frames}")


FILMS = [
    ("a new deployment creates all groups at once", [], want(2), [["+0/0", "+1/0"]]),
    ("a group of two nodes is two pods", [], want(1, nodes=2), [["+0/0", "+0/1"]]),
    ("scaling up touches no running group", members(0, 1), want(3), [["+1/0", "+2/0"]]),
    ("scaling down takes the highest", [pod(0), pod(1), pod(2)], want(1), [["-2/0", "-1/0"]]),
    (
        "a group of two nodes drains its leader first",
        [*members(0, 2), *members(1, 2)],
        want(1, nodes=2),
        [["-1/0"], ["-1/1"]],
    ),
    (
        "a new revision replaces one group at a time, the highest first",
        [pod(0), pod(1), pod(2)],
        want(3, revision="r2"),
        [["-2/0"], ["+2/0"], ["-1/0"], ["+1/0"], ["-0/0"], ["+0/0"]],
    ),
    (
        "a group that does not serve is replaced at once, the others one by one",
        [pod(0), replace(pod(1), phase="Pending", is_ready=False), replace(pod(2), phase="Pending", is_ready=False)],
        want(3, revision="r2"),
        [["-2/0", "-1/0"], ["+1/0", "+2/0"], ["-0/0"], ["+0/0"]],
    ),
    ("a pod that ended is replaced", [failed(pod(0))], want(1), [["-0/0"], ["+0/0"]]),
    (
        "when a member ends, all of its group go, and come back together",
        [members(0, 3)[0], members(0, 3)[1], failed(members(0, 3)[2])],
        want(1, nodes=3),
        [["-0/0", "-0/1", "-0/2"], ["+0/0", "+0/1", "+0/2"]],
    ),
    (
        "when a member is deleted, the rest of its group goes too",
        [members(0, 2)[0], terminating(members(0, 2)[1])],
        want(1, nodes=2),
        [["-0/0"], ["+0/0", "+0/1"]],
    ),
    (
        "a group that was half created is completed",
        [replace(members(0, 2)[0], phase="Pending", is_ready=False)],
        want(1, nodes=2),
        [["+0/1"]],
    ),
    (
        "a half created group of an old revision starts over",
        [replace(members(0, 2)[0], phase="Pending", is_ready=False)],
        want(1, nodes=2, revision="r2"),
        [["-0/0"], ["+0/0", "+0/1"]],
    ),
    (
        "a change of shape replaces the group by one of the new shape",
        members(0, 2),
        want(1, nodes=1, revision="r2"),
        [["-0/0"], ["-0/1"], ["+0/0"]],
    ),
    ("suspending lets everything go", [pod(0), pod(1)], want(0), [["-1/0", "-0/0"]]),
    ("what is there and wanted stays", [pod(0), pod(1)], want(2), []),
]


@pytest.mark.parametrize(("pods", "wanted", "frames"), [case[1:] for case in FILMS], ids=[case[0] for case in FILMS])
def test_sequence(pods: list[ObservedPod], wanted: Wanted, frames: list[list[str]]) -> None:
    assert film(SimulatedPods.of(pods), wanted) == frames


def test_a_rollout_stops_at_a_revision_that_does_not_come_up() -> None:
    world, wanted = SimulatedPods.of([pod(0), pod(1), pod(2)]), want(3, revision="broken")
    world.perform(world.plan(wanted).actions, wanted)
    world.let_time_pass()
    world.perform(world.plan(wanted).actions, wanted)  # group 2 is created, and stays pending
    for _ in range(5):
        assert world.plan(wanted).actions == ()
    assert world.ready() == 2


def test_a_repaired_revision_replaces_the_broken_group_first() -> None:
    broken = replace(pod(2), revision="broken", phase="Pending", is_ready=False)
    world = SimulatedPods.of([pod(0), pod(1), broken])
    assert told(world.plan(want(3, revision="r3")).actions) == ["-2/0"]


def test_the_second_failure_waits_and_the_wait_doubles() -> None:
    world, wanted, waits = SimulatedPods.of([failed(pod(0))]), want(1), []
    for _ in range(7):
        steps = world.plan(wanted)
        waits.append((steps.wake_at - world.now).total_seconds() if steps.wake_at else 0.0)
        world.now = steps.wake_at or world.now
        world.perform(world.plan(wanted).actions, wanted)
        world.perform(world.plan(wanted).actions, wanted)
        name = f"{NAME}-g0-r0"
        world.pods[name] = failed(world.pods[name], at=world.now)
    assert waits == [0, 10, 20, 40, 80, 160, 300]


def test_live_members_of_a_failed_group_go_at_once_even_while_it_waits() -> None:
    world, wanted = SimulatedPods.of([members(0, 2)[0], failed(members(0, 2)[1])]), want(1, nodes=2)
    world.perform([DeletePods(0, (), "", counts_as_restart=True)], wanted)
    steps = world.plan(wanted)
    assert told(steps.actions) == ["-0/0"]
    assert steps.wake_at == NOW + timedelta(seconds=10)


def test_half_an_hour_without_failure_forgets_the_earlier_ones() -> None:
    world, wanted = SimulatedPods.of([pod(0)]), want(1)
    world.perform([DeletePods(0, (), "", counts_as_restart=True)] * 5, wanted)
    world.now += timedelta(minutes=31)
    world.pods = {one.name: failed(one, at=world.now) for one in world.pods.values()}
    assert told(world.plan(wanted).actions) == ["-0/0"]


def test_a_failed_group_of_an_old_revision_does_not_wait() -> None:
    world = SimulatedPods.of([failed(pod(0))])
    world.perform([DeletePods(0, (), "", counts_as_restart=True)] * 5, want(1))
    steps = world.plan(want(1, revision="r2"))
    assert told(steps.actions) == ["-0/0"]
    assert not any(isinstance(action, DeletePods) and action.counts_as_restart for action in steps.actions)


def test_a_pod_that_outlives_its_time_is_removed_by_force() -> None:
    stuck = replace(pod(0), deletion_at=NOW - timedelta(seconds=61))
    world = SimulatedPods.of([stuck])
    (action,) = world.plan(want(1)).actions
    assert isinstance(action, DeletePods)
    assert action.grace_seconds == 0
    waiting = SimulatedPods.of([replace(pod(0), deletion_at=NOW - timedelta(seconds=40))])
    assert waiting.plan(want(1)).actions == ()
    assert waiting.plan(want(1)).wake_at == NOW + timedelta(seconds=20)


def test_a_name_that_an_earlier_owner_still_holds_is_left_to_it() -> None:
    steps = next_steps(want(2), {}, {}, frozenset({f"{NAME}-g1-r0"}), NOW)
    assert told(steps.actions) == ["+0/0", "+2/0"]


# The shape of a group is part of its revision, as it is in the operator's.
PODS = st.builds(
    lambda group, rank, nodes, revision, phase, is_ready, change: change(
        pod(
            group,
            rank,
            nodes=nodes,
            revision=f"{revision}-{nodes}",
            phase=phase,
            is_ready=is_ready and phase == "Running",
        )
    ),
    group=st.integers(0, 4),
    rank=st.integers(0, 2),
    nodes=st.integers(1, 3),
    revision=st.sampled_from(["r1", "r2"]),
    phase=st.sampled_from(["Pending", "Running", "Running", "Running"]),
    is_ready=st.booleans(),
    change=st.sampled_from([lambda one: one, lambda one: one, terminating, failed]),
)
WORLDS = st.lists(PODS, max_size=12, unique_by=lambda one: one.name)
WANTED = st.builds(
    lambda groups, nodes, revision: want(groups, nodes=nodes, revision=f"{revision}-{nodes}"),
    st.integers(0, 5),
    st.integers(1, 3),
    st.sampled_from(["r1", "r2"]),
)


@unhurried
@given(WORLDS, WANTED)
def test_from_anywhere_the_plan_reaches_what_is_wanted_and_then_is_empty(
    pods: list[ObservedPod], wanted: Wanted
) -> None:
    unready = [one for one in pods if one.phase == "Running" and not one.is_ready and not one.is_terminating]
    world = SimulatedPods.of(replace(one, is_ready=True) if one in unready else one for one in pods)
    world.settle(wanted)
    assert world.ready() == wanted.groups == len(world.groups)
    assert all(len(group.pods) == wanted.nodes for group in world.groups.values())
    assert {group.revision for group in world.groups.values()} <= {wanted.revision}
    assert world.plan(wanted).actions == ()


@unhurried
@given(WORLDS, WANTED, st.randoms(use_true_random=False))
def test_the_order_of_observation_does_not_matter(pods: list[ObservedPod], wanted: Wanted, random: Random) -> None:
    shuffled = random.sample(pods, len(pods))
    assert SimulatedPods.of(shuffled).plan(wanted) == SimulatedPods.of(pods).plan(wanted)


@unhurried
@given(WORLDS, WANTED)
def test_performing_a_plan_twice_is_as_good_as_once(pods: list[ObservedPod], wanted: Wanted) -> None:
    once, twice = SimulatedPods.of(pods), SimulatedPods.of(pods)
    actions = once.plan(wanted).actions
    once.perform(actions, wanted)
    twice.perform(actions, wanted)
    twice.perform([action for action in actions if isinstance(action, CreatePods)], wanted)
    assert twice.pods == once.pods


@unhurried
@given(WORLDS, WANTED)
def test_no_group_is_touched_by_two_decisions_in_one_cycle(pods: list[ObservedPod], wanted: Wanted) -> None:
    actions = SimulatedPods.of(pods).plan(wanted).actions
    names = [name for action in actions if isinstance(action, DeletePods) for name in (one.name for one in action.pods)]
    created = {action.group for action in actions if isinstance(action, CreatePods)}
    assert not created & {action.group for action in actions if isinstance(action, DeletePods)}
    assert len(created) == sum(isinstance(action, CreatePods) for action in actions)
    assert len(set(names)) == len(names)


@unhurried
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_a_rollout_never_takes_more_than_one_group_down(groups: int, nodes: int, new_nodes: int) -> None:
    world = SimulatedPods.of(one for group in range(groups) for one in members(group, nodes))
    wanted = want(groups, nodes=new_nodes, revision="r2")
    for _ in range(groups * 5):
        world.perform(world.plan(wanted).actions, wanted)
        assert world.ready() >= groups - 1, f"{groups - world.ready()} of {groups} groups are down at once"
        world.let_time_pass()
        assert world.ready() >= groups - 1
    assert world.ready() == groups
    assert {group.revision for group in world.groups.values()} == {"r2"}


@unhurried
@given(WORLDS, st.integers(0, 5), st.integers(1, 3))
def test_scaling_never_touches_a_healthy_group_that_stays(pods: list[ObservedPod], groups: int, nodes: int) -> None:
    world = SimulatedPods.of(replace(one, revision="r1") for one in pods)
    serving = sorted(index for index, group in world.groups.items() if group.is_ready)
    healthy = set(serving[:groups])
    touched = {action.group for action in world.plan(want(groups, nodes=nodes)).actions}
    assert not healthy & touched
