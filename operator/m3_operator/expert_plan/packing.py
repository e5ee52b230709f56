"""A plan from nothing: how many copies each expert gets, and on which ranks they go.

Owns the three steps of one layer: redundant slots go to the experts that gain most by one copy more; copies are packed
onto ranks, the heaviest first; `arrangement` then exchanges them until the ranks are even. A rank never gets two copies
of an expert. Copies go to different nodes first, wherever there is room: a lost node seldom takes the last one.
"""

import heapq
from bisect import insort
from collections.abc import Callable, Sequence

from m3_operator.expert_plan.arrangement import Arrangement
from m3_operator.expert_plan.plan import ExpertPlan, GroupShape, Loads, Slots

EVEN_ENOUGH = 1.003
"""max / mean at which the search ends: below, chance in the load outweighs what is left."""

_GOOD = 1.01
"""At most that, and another way to share out the copies is not tried."""

Priority = Callable[[float, int], float]
"""(load, copies) of an expert -> how much it wants one copy more."""


def initial_plan(shape: GroupShape, layers: int, loads: Loads | None = None) -> ExpertPlan:
    """The plan of a group at its start, epoch 0.

    loads: what was measured of the same model, [layers][experts]; None: experts count as equal, and each layer gives
    its copies to other experts. Raises ExpertPlanError if the loads do not fit.
    """
    if loads is None:
        even = [1.0] * shape.experts
        spread = (copies_in_turn(shape, layer * shape.redundant) for layer in range(layers))
        return ExpertPlan(shape, tuple(pack(shape, even, copies) for copies in spread))
    shape.check_loads(loads, layers)
    return ExpertPlan(shape, tuple(place(shape, of_layer) for of_layer in loads))


def place(shape: GroupShape, loads: Sequence[float]) -> Slots:
    """One layer, as even as we find it.

    Copies by squares leave pieces of many sizes, which pack well; copies by weight leave the lightest heaviest piece,
    which matters where ranks have few slots. Which of them is better cannot be told before packing.
    """
    found: list[tuple[float, Slots]] = []
    for priority in (by_squares, by_weight):
        arrangement = Arrangement(shape, pack(shape, loads, copies_by_load(shape, loads, priority)), loads)
        arrangement.level(EVEN_ENOUGH)
        found.append((arrangement.ratio, arrangement.slots()))
        if arrangement.ratio <= _GOOD:
            break
    return min(found)[1]


def by_squares(load: float, copies: int) -> float:
    """What one copy more takes off the sum of the squared loads of copies, load**2 / copies for each expert."""
    return load * load / (copies * (copies + 1))


def by_weight(load: float, copies: int) -> float:
    """What a copy carries now: the heaviest is made lighter."""
    return load / copies


def copies_in_turn(shape: GroupShape, first: int) -> list[int]:
    """[experts]: the redundant slots go to one expert after the other, from `first` on."""
    copies = [1] * shape.experts
    for turn in range(shape.redundant):
        copies[(first + turn) % shape.experts] += 1
    return copies


def copies_by_load(shape: GroupShape, loads: Sequence[float], priority: Priority) -> list[int]:
    """[experts]: each redundant slot goes to the expert of the highest priority, at most one copy a rank."""
    copies = [1] * shape.experts
    heap = [(-priority(load, 1), expert) for expert, load in enumerate(loads)]
    heapq.heapify(heap)
    for _ in range(shape.redundant):
        _, expert = heapq.heappop(heap)
        copies[expert] += 1
        if copies[expert] < shape.ranks:
            heapq.heappush(heap, (-priority(loads[expert], copies[expert]), expert))
    return copies


def pack(shape: GroupShape, loads: Sequence[float], copies: Sequence[int]) -> Slots:
    """One layer: each copy, the heaviest first, on the least loaded rank that may have it."""
    weights = [load / count for load, count in zip(loads, copies, strict=True)]
    ranks = _Ranks(shape, weights)
    for expert in sorted(range(shape.experts), key=lambda expert: (-weights[expert], expert)):
        ranks.take(expert, copies[expert])
    return tuple(expert for held in ranks.held for expert in held)


class _Ranks:
    """The ranks of a group while they are filled with one layer's experts."""

    def __init__(self, shape: GroupShape, weights: Sequence[float]) -> None:
        """weights: [experts], of one copy."""
        self._shape = shape
        self._weights = weights
        self._carried = [0.0] * shape.ranks
        self._free = list(range(shape.ranks))  # ranks with a free slot, ascending
        self.held: list[list[int]] = [[] for _ in range(shape.ranks)]

    def take(self, expert: int, copies: int) -> None:
        """Put all copies of an expert on ranks: on one rank of each node before two of any, where there is room."""
        ranks = self._lightest(copies)
        for rank in ranks:
            self._put(rank, expert)
        for _ in range(copies - len(ranks)):
            self._put(self._make_room(expert), expert)

    def _lightest(self, count: int) -> list[int]:
        """So many of the ranks with a free slot, the least loaded of each node first; fewer if there are no more."""
        if count == 1:
            return [min(self._free, key=self._carried.__getitem__)]
        firsts, others, nodes = list[int](), list[int](), set[int]()
        for rank in sorted(self._free, key=self._carried.__getitem__):
            node = self._shape.node_of[rank]
            (others if node in nodes else firsts).append(rank)
            nodes.add(node)
        return (firsts + others)[:count]

    def _put(self, rank: int, expert: int) -> None:
        self.held[rank].append(expert)
        self._carried[rank] += self._weights[expert]
        if len(self.held[rank]) == self._shape.slots_per_rank:
            self._free.remove(rank)

    def _make_room(self, expert: int) -> int:
        """Free a slot on a rank without `expert`, by moving something to one with a free slot. Returns that rank.

        Called when every rank with a free slot has the expert already. The others are full, so each holds more other
        experts than a rank with a free slot does, and one of them can go there.
        """
        free = self._free[0]
        rank = next(rank for rank, held in enumerate(self.held) if expert not in held)
        moved = next(other for other in reversed(self.held[rank]) if other not in self.held[free])
        self.held[rank].remove(moved)
        self._carried[rank] -= self._weights[moved]
        insort(self._free, rank)
        self._put(free, moved)
        return rank
