"""How groups are counted, made and drained: whole rollouts as films, then what holds at every step of any of them."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_operator.groups import GroupState
from m3_operator.observed import ObservedPod
from m3_operator.plan.actions import CreatePods, DeletePods
from m3_operator.plan.faults import HEALTHY, Fault
from m3_operator.plan.rollout import roll, stand
from m3_operator.plan.steps import RolloutPolicy, Wanted, next_steps
from m3_operator.spec.recovery import RecoverySpec
from operator_world import NAME, NOW, SimulatedPods, failed, members, pod, terminating

unhurried = settings(deadline=None)
PENDING = {"phase": "Pending", "is_ready": False, "node_name": None}


def want(groups: int, *, current: str | None = "r1", revision: str = "r2", **rollout: object) -> Wanted:
    """From r1 to r2, groups of one pod."""
    return Wanted(
        deployment=NAME,
        groups=groups,
        nodes=1,
        revision=revision,
        current=current,
        current_nodes=1,
        rollout=replace(RolloutPolicy(), **rollout),
    )


def film(world: SimulatedPods, wanted: Wanted, *, frames: int = 40) -> str:
    """What each cycle does until nothing is left to do: `-2` lets group 2 go, `+2r1` makes it of r1."""
    told = []
    for _ in range(frames):
        steps = world.plan(wanted)
        words = [
            f"+{action.group}{action.revision}" if isinstance(action, CreatePods) else f"-{action.group}"
            for action in steps.actions
        ]
        told += [" ".join(words)] if words else []
        world.perform(steps.actions, wanted)
        world.let_time_pass()
        if not words and not world.plan(wanted).actions and steps.wake_at is None:
            return " | ".join(told)
    raise AssertionError(f"no end: {told}")


OLD = [pod(0), pod(1), pod(2)]
FILMS = [
    ("one group at a time, the highest first", OLD, want(3), "-2 | +2r2 | -1 | +1r2 | -0 | +0r2"),
    ("two groups may be down", OLD, want(3, unavailable=2), "-2 -1 | +1r2 +2r2 | -0 | +0r2"),
    (
        "a group more is made first, and takes a free index",
        OLD,
        want(3, strategy="Surge", surge=1, unavailable=0),
        "+3r2 | -2 | +2r2 | -1 | +1r2 | -0",
    ),
    (
        "two groups more at once",
        OLD,
        want(3, strategy="Surge", surge=2, unavailable=0),
        "+3r2 +4r2 | -2 -1 | +1r2 | -0",
    ),
    ("all old groups go before the first new one", OLD, want(3, strategy="Recreate"), "-2 -1 -0 | +0r2 +1r2 +2r2"),
    ("nothing is replaced that nobody deletes", OLD, want(3, strategy="OnDelete"), ""),
    ("in the place of what was deleted a new one is made", OLD[:2], want(3, strategy="OnDelete"), "+2r2"),
    ("a partition stays, the lowest indexes", OLD, want(3, partition=2), "-2 | +2r2"),
    ("what is missing of the partition is made of the old revision", [pod(0)], want(3, partition=2), "+1r1 +2r2"),
    ("a failed group of the partition comes back old", [failed(pod(0)), pod(1)], want(2, partition=2), "-0 | +0r1"),
    ("a partition that is larger than all holds all", OLD, want(3, partition=9), ""),
    ("without an earlier revision a partition holds nothing", [], want(2, partition=2, current=None), "+0r2 +1r2"),
    ("paused, nothing is replaced", OLD, want(3, is_paused=True), ""),
    ("paused, scaling out makes more of what runs", OLD, want(4, is_paused=True), "+3r1"),
    ("paused, scaling in still takes the highest", OLD, want(2, is_paused=True), "-2"),
    ("paused, what fails comes back as it was", [failed(pod(0)), *OLD[1:]], want(3, is_paused=True), "-0 | +0r1"),
    (
        "scaling in takes what does not serve first",
        [pod(0, **PENDING), pod(1), pod(2), pod(3)],
        want(2, revision="r1"),
        "-3 -0",
    ),
    ("groups may have any index", [pod(5), pod(7)], want(2, revision="r1"), ""),
    ("the lowest free index is taken", [pod(0), pod(2), pod(5)], want(5, revision="r1"), "+1r1 +3r1"),
    (
        "scaling in while rolling",
        [pod(0), pod(1), pod(2), pod(3, revision="r2")],
        want(2),
        "-2 -1 -0 | +0r2",
    ),
    (
        "a group of a third revision goes too",
        [pod(0, revision="r0"), pod(1), pod(2, revision="r2")],
        want(3),
        "-1 | +1r2 | -0 | +0r2",
    ),
]


@pytest.mark.parametrize(("pods", "wanted", "told"), [case[1:] for case in FILMS], ids=[case[0] for case in FILMS])
def test_sequence(pods: list[ObservedPod], wanted: Wanted, told: str) -> None:
    assert film(SimulatedPods.of(pods), wanted) == told


@pytest.mark.parametrize(
    ("rollout", "serving"),
    [
        ({}, 3),
        ({"unavailable": 2}, 2),
        ({"strategy": "Surge", "surge": 1, "unavailable": 0}, 4),
        ({"strategy": "Surge", "surge": 2, "unavailable": 1}, 3),
    ],
)
def test_a_revision_that_does_not_come_up_costs_no_more_than_allowed(rollout: dict[str, object], serving: int) -> None:
    world, wanted = SimulatedPods.of(pod(index) for index in range(4)), want(4, **rollout)
    world.broken = frozenset({"r2"})
    for _ in range(20):
        world.perform(world.plan(wanted).actions, wanted)
        world.let_time_pass()
    assert world.plan(wanted).actions == ()
    assert world.ready() == serving


def test_going_back_removes_the_groups_that_do_not_serve_at_once_and_touches_no_other() -> None:
    broken = [pod(index, revision="r2", **PENDING) for index in (2, 3)]
    world = SimulatedPods.of([pod(0), pod(1), *broken])
    assert film(world, want(4, revision="r1")) == "-3 -2 | +2r1 +3r1"


def test_going_back_needs_no_group_of_the_revision_that_is_left() -> None:
    assert film(SimulatedPods.of([pod(0)]), want(2, revision="r1")) == "+1r1"


def test_a_new_group_counts_only_after_it_has_served_for_long_enough() -> None:
    wanted = want(2, min_ready=timedelta(seconds=60))
    new = pod(1, revision="r2", ready_at=NOW - timedelta(seconds=20))
    world = SimulatedPods.of([pod(0), new])
    steps = world.plan(wanted)
    assert (steps.actions, steps.wake_at) == ((), NOW + timedelta(seconds=40))
    world.now += timedelta(seconds=40)
    assert [action.group for action in world.plan(wanted).actions] == [0]


def test_a_blink_of_every_group_gives_none_of_them_away() -> None:
    blinked = [pod(index, ready_at=NOW - timedelta(seconds=1)) for index in range(3)]
    assert SimulatedPods.of(blinked).plan(want(3, min_ready=timedelta(seconds=60))).actions == ()


def test_a_group_that_waits_for_its_turn_keeps_its_place() -> None:
    world, wanted = SimulatedPods.of([failed(pod(0)), pod(1)]), want(2, revision="r1")
    world.perform([DeletePods(0, (), "", counts_as_restart=True)], wanted)
    steps = world.plan(wanted)
    assert steps.actions == ()
    assert steps.wake_at == NOW + timedelta(seconds=10)


def test_a_group_that_drains_keeps_its_place_because_its_gpus_are_not_free() -> None:
    going = [terminating(pod(0)), pod(1)]
    assert SimulatedPods.of(going).plan(want(2, revision="r1")).actions == ()


def test_within_the_surge_a_group_that_leaves_is_made_up_for_at_once() -> None:
    leaving = members(0, 2, revision="r2")
    world = SimulatedPods.of([terminating(leaving[0]), leaving[1], *members(1, 2, revision="r2")])
    wanted = replace(want(2, strategy="Surge", surge=1, unavailable=0), nodes=2)
    assert [action.group for action in world.plan(wanted).actions] == [2]


@pytest.mark.parametrize("rollout", [{"is_paused": True}, {"strategy": "OnDelete"}], ids=["paused", "OnDelete"])
def test_what_nothing_can_complete_is_made_anew_even_where_nothing_is_replaced(rollout: dict[str, object]) -> None:
    half_made = pod(0, nodes=2, revision="r0", **PENDING)
    wanted = want(2, **rollout)
    (action,) = SimulatedPods.of([half_made, pod(1)]).plan(wanted).actions
    assert isinstance(action, DeletePods)
    assert action.group == 0
    completed = SimulatedPods.of([replace(half_made, revision="r1"), pod(1)])
    (action,) = completed.plan(replace(wanted, current_nodes=2)).actions
    assert isinstance(action, CreatePods)
    assert (action.group, action.ranks, action.revision) == (0, (1,), "r1")


def test_what_somebody_else_takes_down_is_left_alone_and_counts_as_down() -> None:
    groups, wanted = SimulatedPods.of(OLD).groups, want(3)
    standing = stand(wanted, groups, NOW)
    for taken in (0, 2):
        assert roll(wanted, groups, standing, NOW, taken={taken}, names_in_the_way=()) == []
    two_down = replace(wanted, rollout=replace(wanted.rollout, unavailable=2))
    (action,) = roll(two_down, groups, standing, NOW, taken={2}, names_in_the_way=())
    assert action.group == 1


def test_what_is_left_of_a_drained_group_goes_whatever_the_recovery_and_of_a_wanted_one_only_by_it() -> None:
    two_nodes = [one for index in range(2) for one in members(index, 2, revision="r2")]
    without_a_leader = [one for one in two_nodes if one.name != f"{NAME}-g1-r0"]
    for groups, recovery, touched in [(1, "None", {1}), (2, "None", set()), (2, "RecreateGroup", {1})]:
        wanted = replace(want(groups), nodes=2, recovery=RecoverySpec(policy=recovery))
        steps = SimulatedPods.of(without_a_leader).plan(wanted)
        assert {action.group for action in steps.actions} == touched
        assert steps.leaving == ({1} if groups == 1 else set())


def test_a_group_with_a_fault_does_not_count_as_available() -> None:
    world, wanted = SimulatedPods.of([pod(0, revision="r2"), pod(1)]), want(2)
    assert [action.group for action in world.plan(wanted).actions] == [1]
    fault = Fault("Hung", "its steps stand still")
    waiting = replace(wanted, recovery=RecoverySpec(policy="None"))
    steps = next_steps(waiting, world.groups, {}, (), NOW, health=replace(HEALTHY, faults={0: fault}))
    assert steps.actions == ()


STATES: list[Callable[[ObservedPod], ObservedPod]] = [
    lambda one: one,
    lambda one: one,
    lambda one: replace(one, **PENDING),
    lambda one: replace(one, is_ready=False),
    terminating,
    failed,
]
WORLDS = st.lists(
    st.builds(
        lambda group, revision, change: change(pod(group, revision=revision)),
        st.integers(0, 7),
        st.sampled_from(["r0", "r1", "r1", "r2", "r2"]),
        st.sampled_from(STATES),
    ),
    max_size=8,
    unique_by=lambda one: one.name,
)
POLICIES = st.one_of(
    st.builds(RolloutPolicy, unavailable=st.integers(1, 3), partition=st.integers(0, 3), is_paused=st.booleans()),
    st.builds(
        lambda surge, unavailable, partition: RolloutPolicy(
            strategy="Surge", surge=surge, unavailable=unavailable, partition=partition
        ),
        st.integers(1, 3),
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    st.builds(RolloutPolicy, strategy=st.sampled_from(["Recreate", "OnDelete"]), partition=st.integers(0, 3)),
)
WANTED = st.builds(
    lambda groups, current, rollout: replace(want(groups, current=current), rollout=rollout),
    st.integers(0, 5),
    st.sampled_from([None, "r1", "r2"]),
    POLICIES,
)


def live(world: SimulatedPods) -> int:
    """Groups that exist and do not leave already."""
    going = (GroupState.DRAINING, GroupState.TERMINATING)
    return sum(group.state not in going for group in world.groups.values())


@unhurried
@given(WORLDS, WANTED)
def test_at_no_step_are_there_more_groups_than_allowed_or_fewer_that_serve(
    pods: list[ObservedPod], wanted: Wanted
) -> None:
    world, allowed = SimulatedPods.of(pods), wanted.groups + wanted.rollout.surge
    for _ in range(60):
        groups_before, serving_before = live(world), world.ready()
        steps = world.plan(wanted)
        world.perform(steps.actions, wanted)
        assert live(world) <= max(allowed, groups_before)
        if wanted.rollout.strategy != "Recreate":
            assert world.ready() >= min(wanted.groups - wanted.rollout.unavailable, serving_before)
        assert all(len({one.revision for one in group.pods}) == 1 for group in world.groups.values())
        world.let_time_pass(60 if steps.wake_at and not steps.actions else 1)


@unhurried
@given(WORLDS, WANTED)
def test_every_rollout_ends_with_what_was_asked_for(pods: list[ObservedPod], wanted: Wanted) -> None:
    # A group that runs and never serves is nobody's to remove, if it is of the right revision.
    world = SimulatedPods.of(
        replace(one, is_ready=one.phase == "Running") if not one.is_terminating else one for one in pods
    )
    world.settle(wanted)
    assert world.ready() == len(world.groups) == wanted.groups
    revisions = [group.revision for group in world.groups.values()]
    if not wanted.rollout.is_paused and wanted.rollout.strategy != "OnDelete":
        assert revisions.count("r2") >= wanted.groups - wanted.groups_behind
        assert set(revisions) <= {"r2", wanted.current}


@unhurried
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2), st.integers(0, 3))
def test_a_surge_of_healthy_groups_keeps_all_but_the_allowed_serving(
    groups: int, surge: int, unavailable: int, partition: int
) -> None:
    world = SimulatedPods.of(pod(index) for index in range(groups))
    wanted = want(groups, strategy="Surge", surge=surge, unavailable=unavailable, partition=partition)
    for _ in range(groups * 6):
        world.perform(world.plan(wanted).actions, wanted)
        assert world.ready() >= groups - unavailable
        assert len(world.groups) <= groups + surge
        world.let_time_pass()
    revisions = sorted(group.revision or "" for group in world.groups.values())
    behind = min(partition, groups)
    assert revisions == ["r1"] * behind + ["r2"] * (groups - behind)


@unhurried
@given(WORLDS, WANTED)
def test_what_is_on_delete_or_paused_loses_no_group_that_serves_and_is_not_too_many(
    pods: list[ObservedPod], wanted: Wanted
) -> None:
    wanted = replace(wanted, rollout=replace(wanted.rollout, is_paused=True))
    world = SimulatedPods.of(pods)
    serving = world.ready()
    world.perform(world.plan(wanted).actions, wanted)
    assert world.ready() == min(serving, wanted.groups)
