"""The plan of one expert-parallel group: the expert of every slot of every layer that has experts.

Owns the shape of a group (`GroupShape`), the plan as a value (`ExpertPlan`) with its rules and its JSON form, and how
even a plan is under a load (`Balance`). Does not own how a plan is found: `packing`, `moves`.

Slots belong to ranks evenly and in order, ranks to nodes likewise. A worker sends the tokens of an expert to its copies
in turns, so each copy carries an equal part of the expert's load, and a rank carries the sum over its slots. A layer
takes as long as its most loaded rank: `max / mean` over ranks is what the whole group waits, 1 being even.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

from m3_operator.errors import OperatorError

Slots = tuple[int, ...]
"""The expert of each slot of one layer."""
Loads = Sequence[Sequence[float]]
"""[layers with experts][experts]: tokens, or anything in proportion to them."""

_DIGEST_LENGTH = 16


class ExpertPlanError(OperatorError):
    """A shape, plan or load that cannot be. One line: what is wrong, and what would be right."""


@dataclass(frozen=True)
class GroupShape:
    """How many experts share how many slots, on which ranks of which nodes."""

    experts: int
    nodes: int
    ranks_per_node: int
    redundant: int
    """Slots of a layer beyond one for each expert, over all ranks."""

    def __post_init__(self) -> None:
        if min(self.experts, self.nodes, self.ranks_per_node) < 1 or self.redundant < 0:
            raise ExpertPlanError(f"{self}: needs an expert, a node and a rank at least, and no negative redundancy")
        if self.slots % self.ranks:
            raise ExpertPlanError(
                f"{self.experts} experts and {self.redundant} redundant slots over {self.ranks} ranks: every rank must "
                f"own as many slots; {self.redundant + -self.slots % self.ranks} redundant would do"
            )
        if self.slots_per_rank > self.experts:
            raise ExpertPlanError(
                f"{self.slots_per_rank} slots on each rank for {self.experts} experts: a rank would hold one twice; "
                f"{self.experts * (self.ranks - 1)} redundant are the most"
            )

    @classmethod
    def with_spare_slots(cls, experts: int, nodes: int, ranks_per_node: int, spare_per_rank: int = 1) -> "GroupShape":
        """The shape in which every rank has so many slots beyond its share of the experts, rounded up.

        Fewer where a rank has every expert by then.
        """
        ranks = nodes * ranks_per_node
        slots_per_rank = min(-(-experts // ranks) + spare_per_rank, experts)
        return cls(experts, nodes, ranks_per_node, slots_per_rank * ranks - experts)

    @cached_property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @cached_property
    def slots(self) -> int:
        """Slots of a layer, over all ranks."""
        return self.experts + self.redundant

    @cached_property
    def slots_per_rank(self) -> int:
        return self.slots // self.ranks

    @cached_property
    def node_of(self) -> Sequence[int]:
        """The node of each rank."""
        return tuple(rank // self.ranks_per_node for rank in range(self.ranks))

    def rank_of(self, slot: int) -> int:
        """The rank that owns a slot."""
        return slot // self.slots_per_rank

    def by_rank(self, slots: Slots) -> list[Slots]:
        """A layer's slots, rank by rank."""
        each = self.slots_per_rank
        return [slots[first : first + each] for first in range(0, self.slots, each)]

    def check_loads(self, loads: Loads, layers: int) -> None:
        """Raises ExpertPlanError unless there is a finite load, not negative, for every expert of every layer."""
        if len(loads) != layers:
            raise ExpertPlanError(f"loads of {len(loads)} layers: the plan has {layers} with experts")
        for layer, of_layer in enumerate(loads):
            if len(of_layer) != self.experts:
                raise ExpertPlanError(f"loads[{layer}] has {len(of_layer)} figures: must be {self.experts}")
            for expert, load in enumerate(of_layer):
                if not (isfinite(load) and load >= 0):
                    raise ExpertPlanError(f"loads[{layer}][{expert}] is {load}: must be finite and not negative")


@dataclass(frozen=True)
class Move:
    """One slot that takes another expert."""

    layer: int
    slot: int
    before: int
    after: int


@dataclass(frozen=True)
class ExpertPlan:
    """The expert of every slot of every layer that has experts."""

    shape: GroupShape
    layers: tuple[Slots, ...]
    epoch: int = 0
    """Grows with every plan of a group; a worker starts with 0."""

    def __post_init__(self) -> None:
        """Raises ExpertPlanError. Two copies on one rank are allowed here: a worker's own first plan may have them."""
        if self.epoch < 0:
            raise ExpertPlanError(f"epoch is {self.epoch}: must not be negative")
        every = set(range(self.shape.experts))
        for layer, slots in enumerate(self.layers):
            if len(slots) != self.shape.slots:
                raise ExpertPlanError(f"layers[{layer}] has {len(slots)} slots: must be {self.shape.slots}")
            if strangers := set(slots) - every:
                raise ExpertPlanError(
                    f"layers[{layer}] has expert {min(strangers)}: must be 0 to {self.shape.experts - 1}"
                )
            if missing := every - set(slots):
                raise ExpertPlanError(f"layers[{layer}] has no slot for expert {min(missing)}: every expert needs one")

    @cached_property
    def digest(self) -> str:
        """Names what is where, whatever the epoch: 16 hexadecimal digits of SHA-256."""
        text = json.dumps([self.shape.ranks, self.layers], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]

    @property
    def slots(self) -> int:
        """Slots of all layers."""
        return len(self.layers) * self.shape.slots

    def as_json(self) -> dict[str, Any]:
        """The body of a worker's `PUT /internal/expert-plan`."""
        return {"epoch": self.epoch, "layers": [list(slots) for slots in self.layers]}

    def moves_to(self, later: "ExpertPlan") -> tuple[Move, ...]:
        """What `later` has otherwise, by layer and slot. Raises ExpertPlanError if it is of another shape."""
        if later.shape != self.shape or len(later.layers) != len(self.layers):
            raise ExpertPlanError("plans of two shapes: no moves lead from one to the other")
        return tuple(
            Move(layer, slot, before, after)
            for layer, pair in enumerate(zip(self.layers, later.layers, strict=True))
            for slot, (before, after) in enumerate(zip(*pair, strict=True))
            if before != after
        )

    def lost_experts(self, dead_ranks: Collection[int]) -> tuple[tuple[int, int], ...]:
        """(layer, expert) of every expert that has no copy on a live rank: none means that the others can go on."""
        rank_of = self.shape.rank_of
        every = range(self.shape.experts)
        lost: list[tuple[int, int]] = []
        for layer, slots in enumerate(self.layers):
            live = {expert for slot, expert in enumerate(slots) if rank_of(slot) not in dead_ranks}
            lost += ((layer, expert) for expert in every if expert not in live)
        return tuple(lost)

    def balance(self, loads: Loads) -> "Balance":
        """How even this plan is under a load. Raises ExpertPlanError if the load does not fit it."""
        self.shape.check_loads(loads, len(self.layers))
        pairs = zip(self.layers, loads, strict=True)
        return Balance(tuple(ratio(rank_loads(self.shape, slots, of_layer)) for slots, of_layer in pairs))


@dataclass(frozen=True)
class Balance:
    """Of each layer, the load of its most loaded rank over the mean of all."""

    ratios: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The highest ratio; 1 without layers."""
        return max(self.ratios, default=1.0)

    @property
    def worst_layer(self) -> int | None:
        """Which layer has it, counted among those with experts; None without layers."""
        return self.ratios.index(self.worst) if self.ratios else None

    @property
    def mean(self) -> float:
        """Over layers, which take turns: how much longer all experts take than if they were even. 1 without layers."""
        return sum(self.ratios) / len(self.ratios) if self.ratios else 1.0


def rank_loads(shape: GroupShape, slots: Slots, loads: Sequence[float]) -> list[float]:
    """[ranks]: what each carries of one layer's load."""
    copies = [0] * shape.experts
    for expert in slots:
        copies[expert] += 1
    return [sum(loads[expert] / copies[expert] for expert in held) for held in shape.by_rank(slots)]


def ratio(of_ranks: Sequence[float]) -> float:
    """max / mean; 1 where nothing is loaded."""
    total = sum(of_ranks)
    return max(of_ranks) * len(of_ranks) / total if total > 0 else 1.0
