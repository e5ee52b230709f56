"""From the plan in force to a more even one, within a budget of moved slots.

Owns what is moved and what is left for the next round (`rebalance`). A moved slot reads an expert's weights, so slots
are what a round may spend. Each layer is searched from where it is (`arrangement`), which gives it a curve: so many
slots moved, so even. The budget is then spent over all layers where a slot gains most. Layers take turns in the engine,
so a gain is worth the same in each of them.

A fresh plan would be even too, and have most experts elsewhere: nothing is planned anew here.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from m3_operator.expert_plan.arrangement import Arrangement
from m3_operator.expert_plan.plan import Balance, ExpertPlan, GroupShape, Loads, Move, Slots

_LEAST_FALL = 0.001
"""Of a layer's ratio, from one stop to the next: for less, no expert is moved."""
_SHARES = 1.5
"""How many equal shares of the budget a layer may take, among those that need any: bounds the search."""
_FEW_SLOTS = 8
"""That any layer may take: a swap needs two, and where there is little to spend it should go to the worst."""


@dataclass(frozen=True)
class Rebalance:
    """A next plan and what it is expected to do."""

    plan: ExpertPlan
    """Of the next epoch; the present one, if nothing gains."""
    moves: tuple[Move, ...]
    before: Balance
    after: Balance

    @property
    def moved_share(self) -> float:
        """Moved slots of all slots."""
        return len(self.moves) / self.plan.slots if self.plan.slots else 0.0


@dataclass(frozen=True)
class _Stop:
    """A point of a layer's curve at which it may stop."""

    moved: int
    ratio: float
    slots: Slots


def rebalance(present: ExpertPlan, loads: Loads, max_moved_share: float, enough: float) -> Rebalance:
    """The plan that gains most of those that move at most `max_moved_share` of all slots. No layer gets less even.

    enough: layers at this ratio or below stay as they are, and no layer is taken further. Raises ExpertPlanError if the
    loads do not fit.
    """
    before = present.balance(loads)
    budget = int(max_moved_share * present.slots)
    in_need = sum(ratio > enough for ratio in before.ratios)
    most = min(budget, max(int(_SHARES * budget / in_need), _FEW_SLOTS)) if in_need else 0
    curves = [
        _curve(present.shape, slots, of_layer, enough, most)
        for slots, of_layer in zip(present.layers, loads, strict=True)
    ]
    layers = tuple(curve[stop].slots for curve, stop in zip(curves, _spend(curves, budget), strict=True))
    if layers == present.layers:
        return Rebalance(present, (), before, before)
    plan = ExpertPlan(present.shape, layers, present.epoch + 1)
    return Rebalance(plan, present.moves_to(plan), before, plan.balance(loads))


def _curve(shape: GroupShape, slots: Slots, loads: Sequence[float], enough: float, most: int) -> list[_Stop]:
    """Stops of falling ratio, the present slots first, of at most `most` moved slots."""
    arrangement = Arrangement(shape, slots, loads)
    curve = [_Stop(0, arrangement.ratio, slots)]
    for _ in arrangement.changes(enough):
        if arrangement.moved > most:
            break
        if arrangement.ratio < curve[-1].ratio - _LEAST_FALL:
            curve.append(_Stop(arrangement.moved, arrangement.ratio, arrangement.slots()))
    return curve


def _spend(curves: Sequence[Sequence[_Stop]], budget: int) -> list[int]:
    """At which stop each layer ends, by the gain a moved slot, as far as the budget goes."""
    stops = [0] * len(curves)
    heap = [step for layer, curve in enumerate(curves) for step in _best_step(curve, layer, 0, budget)]
    heapq.heapify(heap)
    while heap:
        _, layer, further = heapq.heappop(heap)
        curve, at = curves[layer], stops[layer]
        cost = curve[further].moved - curve[at].moved
        if cost <= budget:
            stops[layer] = further
            budget -= cost
        for step in _best_step(curve, layer, stops[layer], budget):  # again, if what is left no longer paid for it
            heapq.heappush(heap, step)
    return stops


def _best_step(curve: Sequence[_Stop], layer: int, at: int, budget: int) -> list[tuple[float, int, int]]:
    """The affordable further stop that gains most a moved slot: (-gain, layer, stop); none if there is none."""
    present = curve[at]
    steps = [
        ((stop.ratio - present.ratio) / max(stop.moved - present.moved, 1), layer, further)
        for further, stop in enumerate(curve[at + 1 :], at + 1)
        if stop.moved - present.moved <= budget
    ]
    return [min(steps)] if steps else []
