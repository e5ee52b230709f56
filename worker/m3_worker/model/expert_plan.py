"""Which slot holds which expert: the plan of an expert-parallel group.

Owns the plan as a value (`ExpertPlan`), its rules, its JSON form, and the rule by which a token finds one of several
copies of its expert. Pure: reads no weights, knows no rank but by number, imports no torch. Who moves weights is
`ranks.expert_swap`, who exchanges tokens is `ranks.expert_exchange`.

A layer with experts has as many slots as every other; each rank owns the same number of them, in order. There may be
more slots than experts: an expert that many tokens choose then has several, and its tokens take them in turns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeGuard

_MAX_EPOCH = 2**53
"""The largest integer that every reader of JSON keeps exact."""


class PlanError(ValueError):
    """A plan that breaks a rule. One line: what is wrong, where, and what would be right."""


@dataclass(frozen=True, slots=True)
class ExpertPlan:
    """The expert of every slot of every layer that has experts."""

    epoch: int
    """Grows with every plan of a group."""
    ranks: int
    experts: int
    layers: tuple[tuple[int, ...], ...]
    """Per layer with experts, in their order: the expert of each slot."""

    def __post_init__(self) -> None:
        if not 0 <= self.epoch <= _MAX_EPOCH:
            raise PlanError(f"epoch is {self.epoch}: must be 0 to 2**53")
        for layer, slots in enumerate(self.layers):
            self._check_layer(layer, slots)

    @classmethod
    def default(cls, layers: int, experts: int, ranks: int, redundant: int | None = None) -> Self:
        """Epoch 0: experts in order, then copies of the first ones.

        redundant: slots beyond one an expert; None is the fewest that let every rank own as many slots.
        """
        slots = experts + (-experts % ranks if redundant is None else redundant)
        return cls(0, ranks, experts, (tuple(slot % experts for slot in range(slots)),) * layers)

    @property
    def slots(self) -> int:
        """Slots of a layer, over all ranks."""
        return len(self.layers[0]) if self.layers else 0

    @property
    def slots_per_rank(self) -> int:
        return self.slots // self.ranks

    def owned(self, rank: int) -> range:
        """The slots of a rank."""
        return range(rank * self.slots_per_rank, (rank + 1) * self.slots_per_rank)

    def held(self, layer: int, rank: int) -> tuple[int, ...]:
        """The experts in a rank's slots of the `layer`-th layer with experts."""
        owned = self.owned(rank)
        return self.layers[layer][owned.start : owned.stop]

    def copies(self, layer: int) -> tuple[tuple[int, ...], ...]:
        """Per expert, the slots that hold it, ascending.

        A token at index t of its step takes copy t modulo their number: so the same everywhere without a word between
        ranks, and in turns, since the tokens of a step that choose an expert are spread over its indices.
        """
        found: list[list[int]] = [[] for _ in range(self.experts)]
        for slot, expert in enumerate(self.layers[layer]):
            found[expert].append(slot)
        return tuple(map(tuple, found))

    def with_layer(self, layer: int, slots: tuple[int, ...]) -> "ExpertPlan":
        """This plan with another layer, of the same epoch: what is true in the middle of a swap."""
        layers = (*self.layers[:layer], slots, *self.layers[layer + 1 :])
        return ExpertPlan(self.epoch, self.ranks, self.experts, layers)

    def changed_layers(self, later: "ExpertPlan") -> Iterator[int]:
        """The layers that `later` has otherwise."""
        return (layer for layer, slots in enumerate(later.layers) if slots != self.layers[layer])

    def successor(self, body: object) -> "ExpertPlan":
        """The plan that a parsed JSON body asks for, in place of this one: {"epoch": 7, "layers": [[0, 5, ...], ...]}.

        Raises PlanError if it is no such body or does not fit this group. Its epoch may be any; see `is_after`.
        """
        if not isinstance(body, Mapping):
            raise PlanError("the body must be an object with epoch and layers")
        if unknown := body.keys() - {"epoch", "layers"}:
            raise PlanError(f"{min(map(str, unknown))} is no field of a plan: it has epoch and layers")
        epoch, layers = body.get("epoch"), body.get("layers")
        if not _is_int(epoch):
            raise PlanError(f"epoch must be an integer above the present one, {self.epoch}")
        if not isinstance(layers, list) or len(layers) != len(self.layers):
            raise PlanError(f"layers must be a list of {len(self.layers)} lists, one per layer with experts")
        for layer, slots in enumerate(layers):
            if not isinstance(slots, list) or len(slots) != self.slots or not all(map(_is_int, slots)):
                raise PlanError(f"layers[{layer}] must be a list of {self.slots} integers: the expert of each slot")
        return ExpertPlan(epoch, self.ranks, self.experts, tuple(map(tuple, layers)))

    def is_after(self, earlier: "ExpertPlan") -> bool:
        """Whether this plan may replace `earlier`."""
        return self.epoch > earlier.epoch

    def as_json(self) -> dict[str, Any]:
        """What `successor` reads."""
        return {"epoch": self.epoch, "layers": [list(slots) for slots in self.layers]}

    def _check_layer(self, layer: int, slots: tuple[int, ...]) -> None:
        if len(slots) % self.ranks:
            raise PlanError(
                f"{len(slots)} slots of {self.experts} experts over {self.ranks} ranks: every rank must own as many; "
                f"{len(slots) + -len(slots) % self.ranks} slots would do"
            )
        if len(slots) != len(self.layers[0]):
            raise PlanError(f"layers[{layer}] has {len(slots)} slots, layers[0] has {len(self.layers[0])}: must agree")
        for slot, expert in enumerate(slots):
            if not 0 <= expert < self.experts:
                raise PlanError(f"layers[{layer}][{slot}] is {expert}: must be an expert, 0 to {self.experts - 1}")
        if missing := set(range(self.experts)) - set(slots):
            raise PlanError(f"layers[{layer}] has no slot for expert {min(missing)}: every expert needs one")


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
