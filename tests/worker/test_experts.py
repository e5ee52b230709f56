"""The plan of an expert-parallel group: its rules, what it says, and its JSON form."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.model.expert_plan import ExpertPlan, PlanError


def test_the_default_plan_has_every_expert_once_in_order() -> None:
    plan = ExpertPlan.default(layers=2, experts=4, ranks=2)

    assert plan.layers == ((0, 1, 2, 3), (0, 1, 2, 3))
    assert plan.epoch == 0
    assert [plan.held(0, rank) for rank in range(2)] == [(0, 1), (2, 3)]


def test_experts_that_ranks_cannot_share_evenly_get_the_fewest_copies_that_they_can() -> None:
    plan = ExpertPlan.default(layers=1, experts=4, ranks=3)

    assert plan.layers == ((0, 1, 2, 3, 0, 1),)
    assert [list(plan.owned(rank)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_copies_of_an_expert_are_its_slots() -> None:
    plan = ExpertPlan(0, 2, 3, ((2, 0, 1, 2),))

    assert plan.copies(0) == ((1,), (2,), (0, 3))


def test_a_redundancy_that_ranks_cannot_share_is_refused_with_one_that_they_can() -> None:
    with pytest.raises(PlanError, match=r"9 slots of 8 experts over 4 ranks: .* 12 slots would do"):
        ExpertPlan.default(layers=1, experts=8, ranks=4, redundant=1)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "the body must be an object"),
        ({"epoch": 1}, "layers must be a list of 1 lists"),
        ({"epoch": 1, "layers": [[0, 1, 2, 0]], "rank": 3}, "rank is no field of a plan"),
        ({"epoch": "1", "layers": [[0, 1, 2, 0]]}, "epoch must be an integer above the present one, 0"),
        ({"epoch": True, "layers": [[0, 1, 2, 0]]}, "epoch must be an integer"),
        ({"epoch": -1, "layers": [[0, 1, 2, 0]]}, "epoch is -1: must be 0 to"),
        ({"epoch": 1, "layers": [[0, 1, 2]]}, r"layers\[0\] must be a list of 4 integers"),
        ({"epoch": 1, "layers": [[0, 1, 2, None]]}, r"layers\[0\] must be a list of 4 integers"),
        ({"epoch": 1, "layers": [[0, 1, 2, 3]]}, r"layers\[0\]\[3\] is 3: must be an expert, 0 to 2"),
        ({"epoch": 1, "layers": [[0, 1, 1, 0]]}, r"layers\[0\] has no slot for expert 2"),
    ],
)
def test_a_body_that_is_no_plan_is_refused_with_its_place_and_rule(body: object, said: str) -> None:
    present = ExpertPlan.default(layers=1, experts=3, ranks=2)

    with pytest.raises(PlanError, match=said):
        present.successor(body)


def test_layers_must_have_as_many_slots() -> None:
    with pytest.raises(PlanError, match=r"layers\[1\] has 4 slots, layers\[0\] has 2"):
        ExpertPlan(0, 2, 2, ((0, 1), (0, 1, 0, 1)))


@st.composite
def plans(draw: st.DrawFn) -> ExpertPlan:
    ranks, experts, layers = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    slots = experts + -experts % ranks + ranks * draw(st.integers(0, 2))
    extra = st.lists(st.integers(0, experts - 1), min_size=slots - experts, max_size=slots - experts)
    return ExpertPlan(
        draw(st.integers(1, 9)),
        ranks,
        experts,
        tuple(tuple(draw(st.permutations([*range(experts), *draw(extra)]))) for _ in range(layers)),
    )


@given(plans())
def test_a_plan_survives_json(plan: ExpertPlan) -> None:
    present = ExpertPlan.default(len(plan.layers), plan.experts, plan.ranks, plan.slots - plan.experts)

    assert present.successor(json.loads(json.dumps(plan.as_json()))) == plan
    assert plan.is_after(present)


@given(plans())
def test_every_slot_is_owned_by_one_rank_and_is_one_copy(plan: ExpertPlan) -> None:
    owned = [slot for rank in range(plan.ranks) for slot in plan.owned(rank)]

    assert owned == list(range(plan.slots))
    for layer, slots in enumerate(plan.layers):
        copies = plan.copies(layer)
        assert sorted(slot for of_expert in copies for slot in of_expert) == owned
        assert all(slots[slot] == expert for expert, of_expert in enumerate(copies) for slot in of_expert)


@given(plans())
def test_layer_by_layer_a_plan_becomes_another(plan: ExpertPlan) -> None:
    present = ExpertPlan.default(len(plan.layers), plan.experts, plan.ranks, plan.slots - plan.experts)

    changed = list(present.changed_layers(plan))
    for layer in changed:
        present = present.with_layer(layer, plan.layers[layer])

    assert present.layers == plan.layers
    assert list(present.changed_layers(plan)) == []
