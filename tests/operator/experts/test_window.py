"""One window: what groups are told, given what they say."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from m3_operator.expert_plan.plan import ExpertPlan, GroupShape
from m3_operator.experts.reading import ExpertReading
from m3_operator.experts.window import Memory, Window, next_window
from m3_operator.spec.experts import ExpertBalancingSpec

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
SHAPE = GroupShape(experts=8, nodes=2, ranks_per_node=2, redundant=4)
IN_ORDER = ExpertPlan(SHAPE, (tuple(slot % 8 for slot in range(12)),) * 2)
DYNAMIC = ExpertBalancingSpec(mode="Dynamic", window_seconds=60)
HOT = (400_000, 400_000, 100, 100, 100, 100, 100, 100)
"""Experts 0 and 1 have everything; in order, both are on rank 0, and their copies on rank 2."""


def counted(plan: ExpertPlan, windows: int, tokens: tuple[int, ...] = HOT) -> ExpertReading:
    return ExpertReading(plan, (tuple(windows * count for count in tokens),) * len(plan.layers))


def windows(
    spec: ExpertBalancingSpec, count: int, plan: ExpertPlan = IN_ORDER, tokens: tuple[int, ...] = HOT
) -> list[Window]:
    """One group that takes what it is told, over some windows."""
    memory, found = Memory(), []
    for place in range(count):
        window = next_window(spec, {"a": counted(plan, place, tokens)}, memory, NOW + timedelta(minutes=place))
        found.append(window)
        memory, plan = window.memory, window.publish.get("a", plan)
    return found


def test_copies_go_to_different_nodes_before_anything_is_known_of_the_load() -> None:
    (first,) = windows(DYNAMIC, 1)
    plan = first.publish["a"]
    assert plan.epoch == 1
    for slots in plan.layers:
        for expert in range(8):
            nodes = [SHAPE.node_of[SHAPE.rank_of(slot)] for slot, held in enumerate(slots) if held == expert]
            assert len(nodes) == len(set(nodes))
    assert first.memory.state is not None
    assert first.memory.state.reason == "Placed"


def test_a_load_that_stays_uneven_moves_experts_within_the_budget_until_it_is_even() -> None:
    spec = replace_spec(DYNAMIC, max_moved_percent=25)
    plan = replace(IN_ORDER, epoch=1)
    found = windows(spec, 12, plan)
    moved = [window for window in found if window.publish]
    assert moved, [window.memory.state for window in found]
    for window in moved:
        before = plan
        plan = window.publish["a"]
        assert plan.epoch == before.epoch + 1
        assert 0 < len(before.moves_to(plan)) <= 0.25 * plan.slots
    last = found[-1].memory.state
    first = found[2].memory.state
    assert first is not None
    assert last is not None
    assert last.ratio < first.ratio
    assert last.rebalanced_at is not None


def replace_spec(spec: ExpertBalancingSpec, **changes: object) -> ExpertBalancingSpec:
    return spec.model_copy(update=changes)


def test_static_says_how_uneven_it_is_and_moves_nothing() -> None:
    found = windows(ExpertBalancingSpec(window_seconds=60), 8, replace(IN_ORDER, epoch=1))
    assert not any(window.publish for window in found)
    state = found[-1].memory.state
    assert state is not None
    assert state.ratio > 1.9
    assert state.reason == "Uneven"


def test_a_group_that_starts_later_is_told_the_plan_that_is_in_force() -> None:
    plan = replace(IN_ORDER, epoch=9)
    readings = {"old": counted(plan, 1), "new": counted(IN_ORDER, 0)}
    window = next_window(DYNAMIC, readings, Memory(), NOW)
    assert window.publish == {"new": plan}


def test_groups_of_another_shape_are_left_alone_while_a_rollout_replaces_them() -> None:
    other = GroupShape(experts=8, nodes=1, ranks_per_node=2, redundant=0)
    strangers = ExpertPlan(other, (tuple(range(8)),) * 2)
    readings = {"a": counted(IN_ORDER, 1), "b": counted(IN_ORDER, 1), "c": counted(strangers, 1)}
    assert next_window(DYNAMIC, readings, Memory(), NOW).publish.keys() == {"a", "b"}


def test_the_load_of_all_groups_counts_together() -> None:
    plan = replace(IN_ORDER, epoch=1)
    other = (*HOT[2:5], *HOT[:2], *HOT[5:])  # experts 3 and 4, which are on rank 1
    memory = Memory()
    for place in range(3):
        readings = {"a": counted(plan, place), "b": counted(plan, place, other)}
        memory = next_window(ExpertBalancingSpec(), readings, memory, NOW + timedelta(minutes=5 * place)).memory
    one = windows(ExpertBalancingSpec(), 3, plan)[-1].memory.state
    assert memory.state is not None
    assert one is not None
    assert memory.state.ratio < one.ratio


def test_a_worker_that_began_anew_and_a_clock_that_went_back_begin_a_new_average() -> None:
    plan = replace(IN_ORDER, epoch=1)
    memory = next_window(DYNAMIC, {"a": counted(plan, 5)}, Memory(), NOW).memory
    memory = next_window(DYNAMIC, {"a": counted(plan, 1)}, memory, NOW - timedelta(hours=1)).memory
    state = next_window(DYNAMIC, {"a": counted(plan, 2)}, memory, NOW).memory.state
    assert state is not None
    assert state.ratio > 1.9


def test_without_groups_what_was_known_stays_and_off_forgets_it() -> None:
    known = windows(DYNAMIC, 1)[0].memory
    assert next_window(DYNAMIC, {}, known, NOW).memory.state == known.state
    off = ExpertBalancingSpec(mode="Off")
    assert next_window(off, {"a": counted(IN_ORDER, 1)}, known, NOW) == Window(Memory(), {})
