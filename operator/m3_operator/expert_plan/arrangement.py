"""One layer's experts on their ranks while a better place is sought for them.

Owns that mutable state and the search over it (`Arrangement`); `packing` starts it from nothing, `moves` from the plan
in force. Each change takes load off the most loaded rank, in one of two ways:

    swap       two ranks exchange an expert                              two slots change
    replace    a slot takes another expert, whose load is then shared    one slot changes
               by one copy more; the one that had it keeps its others

What is lowered is the sum over ranks of squared load above the mean, for each slot that changes. The most loaded rank
alone would be too blunt a measure: where several ranks are equally loaded, no single change lowers their maximum.

No change gives a rank two copies of an expert, or leaves an expert on fewer nodes than its copies allow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from m3_operator.expert_plan.plan import GroupShape, Slots

_LEAST_GAIN = 1e-9
"""Of the mean's square. A smaller gain may be an error of rounding, and such changes could go on for ever."""


@dataclass(frozen=True, slots=True)
class _Change:
    """Slots that take another expert: each (rank, expert before, expert after)."""

    slots: tuple[tuple[int, int, int], ...]


class Arrangement:
    """The experts of one layer on the ranks of a group, under a load.

    `moved` counts the slots that differ from those at the start, whatever happened in between.
    """

    def __init__(self, shape: GroupShape, slots: Slots, loads: Sequence[float]) -> None:
        """slots: where the experts are; loads: [experts], not negative."""
        self._shape = shape
        self._loads = loads
        self._first = shape.by_rank(slots)
        self._held = [list(of_rank) for of_rank in self._first]  # experts of each rank, by slot
        self._ranks_of: list[list[int]] = [[] for _ in range(shape.experts)]  # ranks of each expert's copies
        for rank, of_rank in enumerate(self._held):
            for expert in of_rank:
                self._ranks_of[expert].append(rank)
        self._weight = [load / len(ranks) for load, ranks in zip(loads, self._ranks_of, strict=True)]  # of one copy
        self._carried = [sum(self._weight[expert] for expert in of_rank) for of_rank in self._held]
        self._mean = sum(loads) / shape.ranks
        self.moved = 0

    def __repr__(self) -> str:
        return f"Arrangement(ratio {self.ratio:.4f}, {self.moved} of {self._shape.slots} slots moved)"

    @property
    def ratio(self) -> float:
        """max / mean over ranks; 1 where nothing is loaded."""
        return max(self._carried) / self._mean if self._mean > 0 else 1.0

    def slots(self) -> Slots:
        """The expert of each slot."""
        return tuple(expert for held in self._held for expert in held)

    def level(self, enough: float) -> None:
        """Change what helps, however many slots it takes, until the ratio is at most `enough` or nothing helps."""
        while self.ratio > enough and (change := self._any_change()) is not None:
            self._make(change)

    def changes(self, enough: float) -> Iterator[None]:
        """Make one change after another, the one that gains most a slot, until as in `level`; yields after each."""
        while self.ratio > enough and (change := self._best_change()) is not None:
            self._make(change)
            yield

    def _any_change(self) -> _Change | None:
        """The best swap, which is quickly found; if none gains, the best replacement."""
        top, least = self._top(), _LEAST_GAIN * self._mean**2
        return self._best_swap(top, least)[1] or self._best_replace(top, least)

    def _best_change(self) -> _Change | None:
        """The change that gains most a slot; None if none gains."""
        top = self._top()
        gain, swap = self._best_swap(top, _LEAST_GAIN * self._mean**2)
        return self._best_replace(top, gain) or swap

    def _top(self) -> int:
        """The most loaded rank."""
        return max(range(self._shape.ranks), key=self._carried.__getitem__)

    def _best_swap(self, top: int, least: float) -> tuple[float, _Change | None]:
        """The best swap that gains more than `least` a slot, and its gain."""
        weight, mean = self._weight, self._mean
        over = self._carried[top] - mean
        ours = [(weight[expert], expert) for expert in self._held[top]]
        best: _Change | None = None
        for partner in sorted(range(self._shape.ranks), key=self._carried.__getitem__):
            room = mean - self._carried[partner]  # negative above the mean
            before = over * over + (room * room if room < 0 else 0.0)
            shared = over - room  # what is above the mean however the two share
            if (before - (shared * shared / 2 if shared > 0 else 0.0)) / 2 <= least:
                break  # and with those that have less room no more can be gained
            for theirs in self._held[partner]:
                their_weight = weight[theirs]
                for our_weight, expert in ours:
                    shift = our_weight - their_weight
                    if shift <= 0:
                        continue
                    left, excess = over - shift, shift - room
                    after = (left * left if left > 0 else 0.0) + (excess * excess if excess > 0 else 0.0)
                    gain = (before - after) / 2
                    if gain > least and self._may_swap(top, expert, partner, theirs):
                        least, best = gain, _Change(((top, expert, theirs), (partner, theirs, expert)))
        return least, best

    def _best_replace(self, top: int, least: float) -> _Change | None:
        """The best replacement that gains more than `least`.

        Either the top rank shares an expert of its own with another rank, or gives up its copy of one for a lighter
        one. What the two experts' other ranks gain and lose is added up as if no rank had both; what is then better
        than the best so far is counted exactly.
        """
        relief, weight = self._relief(), self._weight
        on_top = sorted(self._held[top], key=relief.__getitem__, reverse=True)
        by_relief = sorted(range(self._shape.experts), key=relief.__getitem__, reverse=True)
        utmost = relief[by_relief[0]] + (self._carried[top] - self._mean) ** 2
        best: _Change | None = None
        for leaving, ranks in enumerate(self._ranks_of):
            if len(ranks) == 1:
                continue
            burden = self._burden(leaving)
            if utmost <= burden + least:
                continue
            for rank in ranks:
                over = self._carried[rank] - self._mean
                most = (over * over if over > 0 else 0.0) - burden  # what is gained on this rank and lost on others
                for coming in by_relief if rank == top else on_top:
                    if most + relief[coming] <= least:
                        break
                    copies = len(self._ranks_of[coming])
                    left = over - weight[leaving] + weight[coming] * copies / (copies + 1)
                    if most + relief[coming] - (left * left if left > 0 else 0.0) <= least:
                        continue
                    if self._may_replace(rank, leaving, coming):
                        gain = self._exact_gain(rank, leaving, coming)
                        if gain > least:
                            least, best = gain, _Change(((rank, leaving, coming),))
        return best

    def _relief(self) -> list[float]:
        """[experts]: what one more copy would gain on the ranks that have the expert."""
        relief, weight, ranks_of = [0.0] * self._shape.experts, self._weight, self._ranks_of
        for load, held in zip(self._carried, self._held, strict=True):
            over = load - self._mean
            if over <= 0:
                continue
            for expert in held:
                left = over - weight[expert] / (len(ranks_of[expert]) + 1)
                relief[expert] += over * over - (left * left if left > 0 else 0.0)
        return relief

    def _burden(self, expert: int) -> float:
        """What one copy less of an expert costs on the ranks that have it."""
        ranks, carried, mean = self._ranks_of[expert], self._carried, self._mean
        more = self._weight[expert] / (len(ranks) - 1)
        total = 0.0
        for rank in ranks:
            over = carried[rank] - mean
            if over + more > 0:
                total += (over + more) ** 2 - (over * over if over > 0 else 0.0)
        return total

    def _exact_gain(self, rank: int, leaving: int, coming: int) -> float:
        """What replacing `leaving` by `coming` on a rank gains, all ranks together."""
        shift: dict[int, float] = {rank: 0.0}
        less, more = len(self._ranks_of[leaving]), len(self._ranks_of[coming])
        for other in self._ranks_of[leaving]:
            shift[other] = shift.get(other, 0.0) + self._weight[leaving] / (less - 1)
        for other in self._ranks_of[coming]:
            shift[other] = shift.get(other, 0.0) - self._weight[coming] / (more + 1)
        shift[rank] += self._loads[coming] / (more + 1) - self._loads[leaving] / (less - 1)
        before = (max(self._carried[other] - self._mean, 0.0) for other in shift)
        after = (max(self._carried[other] + by - self._mean, 0.0) for other, by in shift.items())
        return sum(over * over for over in before) - sum(over * over for over in after)

    def _may_swap(self, one: int, ours: int, other: int, theirs: int) -> bool:
        if ours in self._held[other] or theirs in self._held[one]:
            return False
        return self._keeps_nodes(ours, one, other) and self._keeps_nodes(theirs, other, one)

    def _may_replace(self, rank: int, leaving: int, coming: int) -> bool:
        if coming in self._held[rank]:
            return False
        return self._keeps_nodes(leaving, rank, None) and self._keeps_nodes(coming, None, rank)

    def _keeps_nodes(self, expert: int, leaves: int | None, enters: int | None) -> bool:
        """Whether an expert is on no fewer nodes than its copies allow, once one left a rank or entered one.

        An expert that is on fewer already may stay so.
        """
        node_of, most = self._shape.node_of, self._shape.nodes
        if most == 1 or (leaves is not None and enters is not None and node_of[leaves] == node_of[enters]):
            return True
        nodes = [node_of[rank] for rank in self._ranks_of[expert]]
        lost = leaves is not None and nodes.count(node_of[leaves]) == 1
        gained = enters is not None and node_of[enters] not in nodes
        copies = len(nodes) + (enters is not None) - (leaves is not None)
        return gained - lost >= min(copies, most) - min(len(nodes), most)

    def _make(self, change: _Change) -> None:
        """Make a change, and weigh anew what it concerns: copies of these experts, and the ranks that have them."""
        ranks = set()
        for rank, before, after in change.slots:
            slot, held = self._held[rank].index(before), self._held[rank]
            held[slot] = after
            self.moved += (after != self._first[rank][slot]) - (before != self._first[rank][slot])
            self._ranks_of[before].remove(rank)
            self._ranks_of[after].append(rank)
            ranks.add(rank)
        for _, before, after in change.slots:
            for expert in (before, after):
                self._weight[expert] = self._loads[expert] / len(self._ranks_of[expert])
                ranks.update(self._ranks_of[expert])
        for rank in ranks:
            self._carried[rank] = sum([self._weight[expert] for expert in self._held[rank]])
