"""The plan of a group: its rules, what it says, and that a worker takes it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_operator.expert_plan.packing import initial_plan
from m3_operator.expert_plan.plan import ExpertPlan, ExpertPlanError, GroupShape, Move
from m3_worker.model.expert_plan import ExpertPlan as WorkerPlan

FOUR_ON_TWO = GroupShape(experts=4, nodes=2, ranks_per_node=1, redundant=2)
SLOTS = (0, 1, 2, 3, 0, 1)


def plan(*layers: tuple[int, ...], epoch: int = 0) -> ExpertPlan:
    return ExpertPlan(FOUR_ON_TWO, layers, epoch)


def test_spare_slots_are_beyond_the_share_of_experts_that_each_rank_has() -> None:
    assert GroupShape.with_spare_slots(128, 1, 8) == GroupShape(128, 1, 8, redundant=8)
    assert GroupShape.with_spare_slots(128, 4, 8, spare_per_rank=2) == GroupShape(128, 4, 8, redundant=64)
    # 128 experts on 12 ranks are 11 each with 4 slots left over, and one spare slot each beside them
    assert GroupShape.with_spare_slots(128, 3, 4) == GroupShape(128, 3, 4, redundant=16)
    # two ranks of which each has all of three experts need no more
    assert GroupShape.with_spare_slots(3, 1, 2, spare_per_rank=4) == GroupShape(3, 1, 2, redundant=3)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((8, 1, 4, 1), "8 experts and 1 redundant slots over 4 ranks: .*; 4 redundant would do"),
        ((4, 1, 2, 6), "5 slots on each rank for 4 experts: .*; 4 redundant are the most"),
        ((4, 0, 2, 0), "needs an expert, a node and a rank"),
        ((4, 1, 2, -2), "no negative redundancy"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_one_that_can(sizes: tuple[int, int, int, int], said: str) -> None:
    with pytest.raises(ExpertPlanError, match=said):
        GroupShape(*sizes)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([(0, 1, 2, 3)], r"layers\[0\] has 4 slots: must be 6"),
        ([SLOTS, (0, 1, 2, 3, 4, 0)], r"layers\[1\] has expert 4: must be 0 to 3"),
        ([(0, 1, 2, 0, 1, 2)], r"layers\[0\] has no slot for expert 3"),
    ],
)
def test_layers_that_break_a_rule_are_refused_with_their_place(layers: list[tuple[int, ...]], said: str) -> None:
    with pytest.raises(ExpertPlanError, match=said):
        plan(*layers)


def test_copies_share_their_experts_load_evenly() -> None:
    # ranks: 0 1 2 | 3 0 1; of 12, 4, 6, 2 tokens the first rank carries 6 + 2 + 6, the second 2 + 6 + 2
    balance = plan(SLOTS, (0, 1, 2, 3, 2, 0)).balance([[12, 4, 6, 2], [8, 8, 8, 8]])

    # second layer: 4 + 8 + 4 against 8 + 4 + 4
    assert balance.ratios == (14 / 12, 1.0)
    assert balance.worst == 14 / 12
    assert balance.worst_layer == 0
    assert balance.mean == pytest.approx((14 / 12 + 1) / 2)


def test_a_group_without_load_is_even() -> None:
    assert plan(SLOTS).balance([[0, 0, 0, 0]]).worst == 1.0


def test_a_model_without_experts_is_even_and_has_no_worst_layer() -> None:
    balance = plan().balance([])

    assert (balance.worst, balance.mean, balance.worst_layer) == (1.0, 1.0, None)


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        ([], "loads of 0 layers: the plan has 1"),
        ([[1, 1, 1]], r"loads\[0\] has 3 figures: must be 4"),
        ([[1, 1, -1, 1]], r"loads\[0\]\[2\] is -1"),
        ([[1, float("nan"), 1, 1]], r"loads\[0\]\[1\] is nan"),
    ],
)
def test_loads_that_do_not_fit_are_refused(loads: list[list[float]], said: str) -> None:
    with pytest.raises(ExpertPlanError, match=said):
        plan(SLOTS).balance(loads)


def test_experts_are_lost_when_no_live_rank_has_a_copy() -> None:
    both = plan(SLOTS, (0, 2, 1, 0, 3, 1))

    assert both.lost_experts([]) == ()
    assert both.lost_experts([0]) == ((0, 2), (1, 2))
    assert both.lost_experts([1]) == ((0, 3), (1, 3))
    assert len(both.lost_experts([0, 1])) == 8


def test_moves_name_each_slot_that_changes() -> None:
    later = plan(SLOTS, (0, 1, 2, 3, 2, 1), epoch=1)

    assert plan(SLOTS, SLOTS).moves_to(later) == (Move(layer=1, slot=4, before=0, after=2),)
    with pytest.raises(ExpertPlanError, match="two shapes"):
        plan(SLOTS).moves_to(later)


def test_the_digest_names_what_is_where_and_not_the_epoch() -> None:
    assert plan(SLOTS).digest == plan(SLOTS, epoch=7).digest
    assert plan(SLOTS).digest != plan((1, 0, 2, 3, 0, 1)).digest
    assert len(plan(SLOTS).digest) == 16


def shapes() -> st.SearchStrategy[GroupShape]:
    return st.builds(
        GroupShape.with_spare_slots, st.integers(3, 12), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1)
    )


@given(shapes(), st.integers(1, 3))
def test_a_worker_takes_our_plans_in_place_of_its_own_first_one(shape: GroupShape, layers: int) -> None:
    own = WorkerPlan.default(layers, shape.experts, shape.ranks, shape.redundant)
    ours = ExpertPlan(shape, initial_plan(shape, layers).layers, epoch=1)

    taken = own.successor(json.loads(json.dumps(ours.as_json())))

    assert taken.is_after(own)
    held: list[Any] = [[taken.held(layer, rank) for rank in range(shape.ranks)] for layer in range(layers)]
    assert held == [shape.by_rank(slots) for slots in ours.layers]
