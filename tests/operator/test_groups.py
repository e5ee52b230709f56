"""The state of a group, from its pods alone."""

import random
from dataclasses import replace

import pytest

from m3_operator.groups import Group, GroupState, by_index
from m3_operator.observed import ObservedPod
from operator_world import failed, members, pod, terminating


def pending(one: ObservedPod) -> ObservedPod:
    return replace(one, phase="Pending", is_ready=False, node_name=None)


def loading(one: ObservedPod) -> ObservedPod:
    return replace(one, is_ready=False)


TWO, THREE = members(0, 2), members(0, 3)
UNSEEN = [THREE[0], pending(THREE[1]), terminating(THREE[2])]
CASES = [
    ("no pods", [], GroupState.ABSENT),
    ("all ready", TWO, GroupState.READY),
    ("one of two created, not started", [pending(TWO[0])], GroupState.CREATING),
    ("one of two there, and it has started", [TWO[0]], GroupState.FAILED),
    ("the leader is missing", [TWO[1]], GroupState.FAILED),
    ("one waits for a node", [TWO[0], pending(TWO[1])], GroupState.PENDING),
    ("the leader is not ready", [loading(TWO[0]), TWO[1]], GroupState.LOADING),
    ("a member ended", [TWO[0], failed(TWO[1])], GroupState.FAILED),
    ("a member finished as if it had worked", [TWO[0], replace(TWO[1], phase="Succeeded")], GroupState.FAILED),
    ("the leader is going, its peers live", [terminating(TWO[0]), TWO[1]], GroupState.DRAINING),
    ("a peer is going, the leader lives", [TWO[0], terminating(TWO[1])], GroupState.DRAINING),
    ("a peer is going, the leader loads", [loading(TWO[0]), terminating(TWO[1])], GroupState.DRAINING),
    ("a peer that never ran is going", [loading(TWO[0]), terminating(pending(TWO[1]))], GroupState.FAILED),
    ("a peer is going, the leader serves, another was not seen to start", UNSEEN, GroupState.DRAINING),
    ("a peer ended while it was going", [TWO[0], terminating(failed(TWO[1]))], GroupState.FAILED),
    ("the leader ended while it was going", [terminating(failed(TWO[0])), TWO[1]], GroupState.FAILED),
    ("a peer is going, another is gone", [THREE[0], terminating(THREE[1])], GroupState.FAILED),
    ("all are going", [terminating(one) for one in TWO], GroupState.TERMINATING),
    ("the last one is going", [terminating(TWO[1])], GroupState.TERMINATING),
    ("the leader is going, a peer ended", [terminating(TWO[0]), failed(TWO[1])], GroupState.FAILED),
    ("pods of two revisions", [TWO[0], replace(TWO[1], revision="r2")], GroupState.FAILED),
    ("pods of two sizes", [TWO[0], replace(TWO[1], nodes=3)], GroupState.FAILED),
    ("a single pod is going", [terminating(pod(0))], GroupState.TERMINATING),
]


@pytest.mark.parametrize(("pods", "state"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_state_follows_from_the_pods(pods: list[ObservedPod], state: GroupState) -> None:
    assert Group(0, tuple(pods)).state is state


def test_the_order_of_the_pods_does_not_matter() -> None:
    pods = [one for group in range(4) for one in members(group, 3)]
    expected = by_index(pods)
    for seed in range(20):
        shuffled = random.Random(seed).sample(pods, len(pods))
        assert by_index(shuffled) == expected
    assert list(expected) == [0, 1, 2, 3]
    assert [one.rank for one in expected[2].pods] == [0, 1, 2]


def test_a_group_names_the_pod_that_has_something_to_say() -> None:
    group = Group(0, (TWO[0], replace(TWO[1], message="not scheduled: no GPU")))
    assert group.message == "m3-g0-r1: not scheduled: no GPU"
