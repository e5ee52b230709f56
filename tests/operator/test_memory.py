"""What is remembered of failures, by what was done and what was only begun."""

from dataclasses import replace
from datetime import timedelta

from m3_operator.decide.memory import Memory, remember, told
from m3_operator.plan.actions import CreatePods, DeletePods
from m3_operator.spec.recovery import RecoverySpec
from operator_world import NOW, members

RECOVERY = RecoverySpec()
DEAD = DeletePods(0, tuple(members(0, 3)), "it ended", counts_as_restart=True, blamed_nodes=("n",))


def test_a_replacement_that_was_done_is_counted_once_however_many_actions_it_took() -> None:
    others = replace(DEAD, counts_as_restart=False, blamed_nodes=())
    after = remember(Memory(), (others, DEAD), (), RECOVERY, NOW)
    assert (after.records[0].restarts, after.records[0].failed_at, after.records[0].revision) == (1, NOW, "r1")
    assert [node.name for node in after.avoided] == ["n"]


def test_one_that_was_done_by_half_counts_once_the_rest_of_its_group_was_seen_to() -> None:
    half = remember(Memory(), (), (DEAD,), RECOVERY, NOW)
    assert half.records == {}
    assert [node.name for node in half.avoided] == ["n"]
    for rest in (replace(DEAD, counts_as_restart=False), DEAD, CreatePods(0, (0,), "r1", "it lacks one")):
        after = remember(half, (rest,), (), RECOVERY, NOW + timedelta(seconds=1))
        assert after.records[0].restarts == 1
        assert after.halves == {}


def test_what_is_done_to_one_group_says_nothing_of_another() -> None:
    half = remember(Memory(), (), (DEAD,), RECOVERY, NOW)
    after = remember(half, (CreatePods(1, (0,), "r1", "one more is wanted"),), (), RECOVERY, NOW)
    assert after.records == {}
    assert after.halves == {0: DEAD}


def test_once_it_was_told_no_more_is_known_than_the_next_process_would_read() -> None:
    half = DeletePods(1, tuple(members(1, 2)), "it ended", counts_as_restart=True)
    before = remember(remember(Memory(), (DEAD,), (), RECOVERY, NOW), (), (half,), RECOVERY, NOW)
    failure = {"reason": "it ended", "time": "2026-11-21T12:00:00Z", "revision": "r1"}
    shown = {"index": 0, "restarts": 1, "lastFailure": failure, "restartsSince": "2026-11-21T12:00:00Z"}
    after = told(before, {"groups": [shown]}, places=(0, 1))
    assert (after.records, after.avoided, after.halves) == (before.records, (), {1: half})
    assert told(before, {}, places=(0,)) == Memory(), "nothing is left of group 1, nor will be"
