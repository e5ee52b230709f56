"""When experts are moved: whole sequences of windows."""

from dataclasses import replace
from random import Random

import pytest

from expert_loads import drifting_loads
from m3_operator.expert_plan.balancing import BalancePolicy, Reason, Verdict, Watch, judge
from m3_operator.expert_plan.packing import initial_plan
from m3_operator.expert_plan.plan import ExpertPlan, ExpertPlanError, GroupShape

SHAPE = GroupShape(experts=4, nodes=1, ranks_per_node=2, redundant=0)
PLAN = ExpertPlan(SHAPE, ((0, 1, 2, 3),), epoch=3)
EVEN = [[30e3, 30e3, 30e3, 30e3]]
UNEVEN = [[60e3, 40e3, 15e3, 25e3]]
"""1.43; with 1 and 2 exchanged 1.07."""
TURNED = [[60e3, 15e3, 40e3, 25e3]]
"""1.07 as it is; 1.43 with 1 and 2 exchanged."""
ALL = BalancePolicy(max_moved_share=1)


def windows(plan: ExpertPlan, loads: list[list[list[float]]], *, takes: bool = True) -> tuple[list[Reason], Verdict]:
    """The reason of each window, of a group that takes the plans it is sent or does not; and the last verdict."""
    watch, reasons = Watch(), []
    for of_window in loads:
        verdict = judge(plan, of_window, watch, ALL)
        watch = verdict.watch
        reasons.append(verdict.reason)
        if verdict.rebalance is not None and takes:
            plan = verdict.rebalance.plan
    return reasons, verdict


def test_two_uneven_windows_in_a_row_move_experts() -> None:
    reasons, verdict = windows(PLAN, [UNEVEN, EVEN, UNEVEN, UNEVEN])

    assert reasons == [Reason.UNEVEN, Reason.EVEN, Reason.UNEVEN, Reason.REBALANCED]
    assert verdict.balance.worst == pytest.approx(100 / 70)
    assert verdict.rebalance is not None
    assert verdict.rebalance.plan.epoch == 4
    assert verdict.rebalance.after.worst == pytest.approx(75 / 70)


def test_a_plan_that_helped_is_kept_and_forgotten() -> None:
    reasons, verdict = windows(PLAN, [UNEVEN] * 4)

    assert reasons == [Reason.UNEVEN, Reason.REBALANCED, Reason.EVEN, Reason.EVEN]
    assert verdict.watch == Watch()


def test_a_plan_that_did_not_help_is_followed_by_a_pause() -> None:
    # When the plan is in force the load has turned, and it is worse than the one before.
    reasons, verdict = windows(PLAN, [UNEVEN, UNEVEN, TURNED, TURNED, TURNED])

    assert reasons == [Reason.UNEVEN, Reason.REBALANCED, Reason.PAUSED, Reason.PAUSED, Reason.REBALANCED]
    assert verdict.watch.setbacks == 1


def test_pauses_grow_while_a_group_does_not_take_what_it_is_sent() -> None:
    reasons, _ = windows(PLAN, [UNEVEN] * 60, takes=False)

    sent = [window for window, reason in enumerate(reasons) if reason is Reason.REBALANCED]
    # Two windows to begin with; then pauses of 2, 4, 8, 16 windows, in which the uneven ones are counted.
    assert sent == [1, 4, 9, 18, 35]
    assert {reason for window, reason in enumerate(reasons) if window not in (0, *sent)} == {Reason.PAUSED}


def test_a_pause_ends_at_its_bound() -> None:
    watch = Watch(uneven_windows=9, setbacks=1000)

    verdict = judge(ExpertPlan(SHAPE, ((0, 1, 2, 3),)), [[90e3, 10e3, 10e3, 10e3]], watch, ALL)

    # One expert is three quarters of the load, and there is no spare slot for a copy of it.
    assert verdict.reason is Reason.NOTHING_GAINS
    assert verdict.watch.pause_windows == 32


def test_a_success_ends_the_setbacks() -> None:
    first = judge(PLAN, UNEVEN, Watch(uneven_windows=1, setbacks=3), ALL)
    assert first.rebalance is not None

    second = judge(first.rebalance.plan, UNEVEN, first.watch, ALL)

    assert second.watch.setbacks == 0


def test_a_few_tokens_decide_nothing() -> None:
    trial = judge(PLAN, UNEVEN, Watch(uneven_windows=1), ALL).watch
    few = [[load / 10 for load in UNEVEN[0]]]

    verdict = judge(PLAN, few, trial, ALL)

    assert verdict.reason is Reason.TOO_FEW_TOKENS
    assert verdict.watch == trial
    assert verdict.rebalance is None


def test_while_it_is_uneven_a_round_follows_each_that_helped() -> None:
    shape = GroupShape.with_spare_slots(128, nodes=4, ranks_per_node=8)
    plan, loads = initial_plan(shape, 5), next(drifting_loads(5, Random(1)))
    policy = BalancePolicy(max_moved_share=0.03)
    watch, reasons, ratios = Watch(), [], []
    for _ in range(8):
        verdict = judge(plan, loads, watch, policy)
        watch = verdict.watch
        reasons.append(verdict.reason)
        ratios.append(verdict.balance.worst)
        if verdict.rebalance is not None:
            assert verdict.rebalance.moved_share <= 0.03
            plan = verdict.rebalance.plan

    rounds = reasons.count(Reason.REBALANCED)
    assert reasons == [Reason.UNEVEN] + [Reason.REBALANCED] * rounds + [Reason.EVEN] * (7 - rounds)
    assert rounds >= 2
    assert ratios[0] > 1.8
    assert ratios[-1] <= 1.15


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enough_ratio": 0.9}, "enough_ratio is 0.9: must be at least 1"),
        ({"enough_ratio": 1.2}, "at most trigger_ratio 1.15"),
        ({"max_moved_share": 0}, "max_moved_share is 0: must be above 0"),
        ({"trigger_windows": 0}, "must be at least 1"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ExpertPlanError, match=said):
        replace(BalancePolicy(), **changes)
