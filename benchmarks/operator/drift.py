"""Following a load that drifts, by every method: how even it stays, and how many slots move for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import mean

from placing import ENOUGH, MOVED, greedy_plan, shape_of

from expert_loads import drifting_loads
from m3_operator.expert_plan.moves import rebalance
from m3_operator.expert_plan.packing import initial_plan
from m3_operator.expert_plan.plan import ExpertPlan, Loads

ROUNDS, DRIFT_LAYERS, DRIFT_SEED = 8, 10, 1


@dataclass(frozen=True)
class Drift:
    """One way to follow a drifting load."""

    gpus: int
    title: str
    met: Sequence[float]
    """For each round the mean ratio that the new load meets, `left` what the round leaves."""
    left: Sequence[float]
    moved: Sequence[float]
    """Of all slots."""

    @property
    def text(self) -> str:
        rounds = " | ".join(f"{ratio:.3f}" for ratio in self.left)
        return (
            f"| {self.gpus} | {self.title} | {rounds} | {mean(self.met):.3f} | {mean(self.left):.3f} | "
            f"{mean(self.moved):.1%} |"
        )


def drifts_on(gpus: int) -> list[Drift]:
    """Everyone follows the same load from the same plan."""
    shape, load = shape_of(gpus, 1), drifting_loads(DRIFT_LAYERS, Random(DRIFT_SEED))
    first = next(load)
    loads = [next(load) for _ in range(ROUNDS)]
    start = initial_plan(shape, DRIFT_LAYERS, first)
    return [
        follow("never", start, loads, lambda plan, _: plan),
        follow("published greedy, anew", start, loads, lambda plan, load: _kept(plan, greedy_plan(shape, load))),
        follow("**ours**", start, loads, lambda plan, load: rebalance(plan, load, MOVED, 1.0).plan),
        follow(f"**ours**, to {ENOUGH:g}", start, loads, lambda plan, load: rebalance(plan, load, MOVED, ENOUGH).plan),
    ]


def follow(
    title: str, start: ExpertPlan, loads: Sequence[Loads], adapt: Callable[[ExpertPlan, Loads], ExpertPlan]
) -> Drift:
    """Let the plan follow the loads."""
    plan, met, left, moved = start, list[float](), list[float](), list[float]()
    for load in loads:
        later = adapt(plan, load)
        met.append(plan.balance(load).mean)
        left.append(later.balance(load).mean)
        moved.append(len(plan.moves_to(later)) / plan.slots)
        plan = later
    return Drift(start.shape.ranks, title, met, left, moved)


def _kept(present: ExpertPlan, later: ExpertPlan) -> ExpertPlan:
    """`later` with the slots of each rank ordered so that what the rank has already stays where it is."""
    shape, layers = present.shape, []
    for slots, wanted in zip(present.layers, later.layers, strict=True):
        ordered: list[int] = []
        for have, want in zip(shape.by_rank(slots), map(list, shape.by_rank(wanted)), strict=True):
            kept = [want.pop(want.index(expert)) if expert in want else None for expert in have]
            ordered += [want.pop() if expert is None else expert for expert in kept]
        layers.append(tuple(ordered))
    return ExpertPlan(shape, tuple(layers))
