"""Placing experts from nothing, by every method: how even, how soon, and what a lost node would take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TypeVar

from rivals import contiguous, published_greedy

from expert_loads import EXPERTS, layer_loads
from m3_operator.expert_plan.balancing import BalancePolicy
from m3_operator.expert_plan.moves import rebalance
from m3_operator.expert_plan.packing import initial_plan
from m3_operator.expert_plan.plan import ExpertPlan, GroupShape, Loads

GPUS_PER_NODE = 8
MOVED, ENOUGH = BalancePolicy().max_moved_share, BalancePolicy().enough_ratio

T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """How even a plan is, how long finding it took, and what a lost node would take."""

    mean: float
    """Of the layers' max / mean; `worst` is the highest."""
    worst: float
    seconds: float
    on_one_node: float
    """Of the experts with copies, the share whose copies are all on one node."""

    @property
    def text(self) -> str:
        return f"{self.mean:.3f} ({self.worst:.3f})"


@dataclass(frozen=True)
class StaticRow:
    """One load on one number of GPUs."""

    kind: str
    gpus: int
    contiguous: Placement
    greedy: Sequence[Placement]
    """With one and with two spare slots a GPU; so is `ours`."""
    ours: Sequence[Placement]
    round_seconds: float
    """Finding one round of moves, from a plan that knew nothing of the load."""

    @property
    def text(self) -> str:
        cells = [self.kind, str(self.gpus)]
        cells += [placed.text for placed in (self.contiguous, *self.greedy, *self.ours)]
        lost = [f"{placed.on_one_node:.0%}" for placed in (self.greedy[0], self.ours[0])]
        cells.append(" / ".join(lost) if self.gpus > GPUS_PER_NODE else "-")
        seconds = (self.greedy[0].seconds, self.ours[0].seconds, self.ours[1].seconds, self.round_seconds)
        cells.append(" / ".join(f"{one:.2f}" for one in seconds))
        return f"| {' | '.join(cells)} |"


def shape_of(gpus: int, spare: int) -> GroupShape:
    """Nodes of eight GPUs, each GPU with so many spare slots."""
    return GroupShape.with_spare_slots(EXPERTS, gpus // GPUS_PER_NODE, GPUS_PER_NODE, spare)


def timed(repetitions: int, work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the least CPU time of it: other processes only ever add to it."""
    seconds = []
    for _ in range(repetitions):
        begun = time.process_time()
        result = work()
        seconds.append(time.process_time() - begun)
    return result, min(seconds)


def judged(loads: Loads, repetitions: int, work: Callable[[], ExpertPlan]) -> Placement:
    """Place all layers and judge the plan."""
    plan, seconds = timed(repetitions, work)
    balance = plan.balance(loads)
    return Placement(balance.mean, balance.worst, seconds, on_one_node(plan))


def greedy_plan(shape: GroupShape, loads: Loads) -> ExpertPlan:
    return ExpertPlan(shape, tuple(published_greedy(shape, of_layer) for of_layer in loads))


def on_one_node(plan: ExpertPlan) -> float:
    """See `Placement.on_one_node`; 0 where there are no copies."""
    nodes: list[int] = []
    for slots in plan.layers:
        for expert in range(plan.shape.experts):
            ranks = [plan.shape.rank_of(slot) for slot, one in enumerate(slots) if one == expert]
            if len(ranks) > 1:
                nodes.append(len({plan.shape.node_of[rank] for rank in ranks}))
    return sum(count == 1 for count in nodes) / len(nodes) if nodes else 0.0


def static_row(kind: str, gpus: int, layers: int, repetitions: int) -> StaticRow:
    """Every way to place one load from nothing."""
    loads = [layer_loads(kind, Random(seed)) for seed in range(layers)]
    bare, *spared = (shape_of(gpus, spare) for spare in range(3))
    unknowing = initial_plan(spared[0], layers)
    return StaticRow(
        kind,
        gpus,
        judged(loads, 1, lambda: ExpertPlan(bare, (contiguous(bare),) * layers)),
        [judged(loads, repetitions, partial(greedy_plan, shape, loads)) for shape in spared],
        [judged(loads, repetitions, partial(initial_plan, shape, layers, loads)) for shape in spared],
        timed(repetitions, lambda: rebalance(unknowing, loads, MOVED, ENOUGH))[1],
    )
